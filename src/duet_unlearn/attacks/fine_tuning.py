"""Relearning: fine-tune an unlearned model on a part of what it forgot, and see how fast the rest comes back.

As an attack (``Relearn``) it counts the facts that come back; ``relearn`` measures any model whatever way its caller
likes. Both train one copy in place, anew for each rate, by ``train_at_rates``.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.attack_base import QUESTION_TOKENS, Attack, AttackGoal, ask_plainly
from duet_unlearn.attacks.result import Instance, NotApplicable, OnProgress, no_progress
from duet_unlearn.attacks.weights import merged_subject
from duet_unlearn.config.sections import Count, LoraConfig, Positive, TrainConfig, Whole
from duet_unlearn.data.examples import Example, epochs_source, example_of, render_examples
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Subject
from duet_unlearn.models.load import merged
from duet_unlearn.models.lora import add_lora, has_adapter
from duet_unlearn.training.loop import train
from duet_unlearn.training.step import fine_tuning_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RATES = (3e-4, 1e-3, 3e-3)
"""Rates to sweep for models of the lab's size; ours. UNDO sweeps its own for models of 100 M to 2 B."""
EXAMPLE_TOKENS = 3 * 32
"""What a short question with its answer takes in training, in tokens through the model: for estimates only."""


# The attack ----------------------------------------------------------------------------------------------------------

Source = Literal["known", "neighbours", "others"]
"""What is trained on: the attacker's own part of what was forgotten; what stands near it; anything else."""


@dataclass(frozen=True)
class Relearn(Attack):
    """Fine-tune a copy, all weights or adapters, on questions with answers, and ask for facts that were not among them.

    Knowledge that was only hidden comes back with a few others; knowledge that is gone must be learnt fact by fact.
    Each source is a family of its own: the oracle under the same training says what is guessing. Success after any
    number of steps at any rate counts, the worst case of UNDO (arXiv 2506.06278); that unrelated text suffices was
    seen by Lucki et al. (arXiv 2409.18025). AdamW without decay in fp32, gradients clipped to norm 1.
    """

    name: Literal["relearn", "relearn-lora"] = "relearn"
    sources: tuple[Source, ...] = ("known", "neighbours", "others")
    """What is trained on, each by itself: `known`, the auxiliary facts of the concept; its `neighbours`; unrelated
    `others`."""
    rates: tuple[Positive, ...] = RATES
    """Constant learning rates, for a hidden size of `rates_at`; ours."""
    rates_at: Count | None = 128
    """A model of another hidden size is trained at rates in inverse proportion to it (muP, arXiv 2203.03466): what is
    3e-4 in the lab, whose size is 128, is 9e-6 at 4096. null: at the rates as they stand."""
    steps: tuple[Count, ...] = (10, 20)
    """Optimiser steps after which is asked; ours."""
    rank: Count | None = None
    """Rank of low-rank adapters on every linear layer of the blocks, which alone are trained then, in fp32: a fraction
    of the memory, and more is kept of what the model can do otherwise. Their scale is twice the rank. null: all
    weights are trained. Ours."""
    batch_size: Count = 16
    """Questions a step; ours."""
    seed: Whole = 0
    """Draws the adapters and the order of the questions."""
    access = "weights"
    not_empty = ("sources", "rates", "steps")

    @property
    def title(self) -> str:
        return "Relearning, adapters" if self.rank else "Relearning, all weights"

    def num_tokens(self, goal: AttackGoal) -> int:
        learnt = max(self.steps) * self.batch_size * EXAMPLE_TOKENS
        asked = len(self.steps) * len(goal.target_facts) * QUESTION_TOKENS
        return len(self.sources) * len(self.rates) * (learnt + asked)

    def run(self, subject: Subject, goal: AttackGoal, on_progress: OnProgress = no_progress) -> list[Instance]:
        """Every source at every rate after every number of steps.

        Raises:
            NotApplicable: no source has a question.
        """
        attacked, most = merged_subject(subject), max(self.steps) * self.batch_size
        pools = {"known": goal.auxiliary_facts, "neighbours": goal.neighbours, "others": goal.others}
        examples = {}
        for source in self.sources:
            if shown := pools[source]:
                if len(shown) > most:  # no more are rendered than are met at all
                    shown = random.Random(f"relearn/{self.seed}").sample(shown, most)
                examples[source] = answer_examples(attacked.tokenizer, shown)
        if not examples:
            raise NotApplicable(f"there is no question with an answer to train on ({', '.join(self.sources)})")
        if self.rank:
            own = copy.deepcopy(attacked.model)  # PEFT puts adapters into the model that it is given
            add_lora(own, LoraConfig(rank=self.rank, alpha=2.0 * self.rank), seed=self.seed)
            own.eval()
        else:
            own = trainable_copy(attacked.model)
        rates, start = scaled_rates(self.rates, own, at=self.rates_at), trainable_weights(own)
        instances = []
        for done, (source, rate) in enumerate(product(examples, rates), start=1):
            points = train_at_rates(
                own,
                attacked.tokenizer,
                examples[source],
                start=start,
                rates=[rate],
                steps=self.steps,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            for _, step, model in points:
                name = f"{source}, rate {rate:.2g}, {step} steps"
                instances.append(ask_plainly(replace(attacked, model=model), goal, name, family=source))
            on_progress(done, len(examples) * len(rates))
        return instances


def relearn_with_adapters() -> Relearn:
    """The attack ``relearn-lora``, with its own defaults."""
    return Relearn("relearn-lora", rates=(3e-3, 1e-2), rank=8)


def scaled_rates(rates: Sequence[float], model: PreTrainedModel, *, at: int | None) -> tuple[float, ...]:
    """Rates for a model's hidden size that are meant for the size `at`, or as they stand: Adam's rate for hidden
    matrices falls with their width (muP, arXiv 2203.03466)."""
    size = model.config.get_text_config(decoder=True).hidden_size
    return tuple(rate * at / size if at else rate for rate in rates)


# Any measure ---------------------------------------------------------------------------------------------------------


class Relearned(NamedTuple):
    """What a model knows after some steps of relearning at one rate."""

    rate: float
    step: int
    knowledge: Mapping[str, float]
    """Named shares, 0..1."""


def relearn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    shown: Sequence[Query],
    *,
    measure: Callable[[PreTrainedModel], Mapping[str, float]],
    rates: Sequence[float] = RATES,
    steps: Sequence[int],
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[Relearned]:
    """Train a copy of a model on the answers of `shown`, anew at each rate, and measure it after each of `steps`.

    All weights in fp32 (an adapter is merged first), AdamW without decay, a constant rate: the attack of UNDO (arXiv
    2506.06278), which takes the *worst case* over rates at every step, as ``worst`` does. Gradients are clipped to
    norm 1; ours. The order of `shown` comes from `seed`; `model` itself is not changed. Step 0 is before any training
    and is measured once. A rate at which the loss stops being finite yields nothing from there on.

    Raises:
        UserError: a shown query has no answer.
    """
    own, examples, before = trainable_copy(model), answer_examples(tokenizer, shown), None
    points = train_at_rates(
        own,
        tokenizer,
        examples,
        start=trainable_weights(own),
        rates=rates,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )
    for rate, step, now in points:
        knowledge = before if step == 0 and before is not None else measure(now)
        before = knowledge if step == 0 else before
        yield Relearned(rate, step, knowledge)


def worst(curve: Iterable[Relearned], name: str) -> dict[int, Relearned]:
    """Step -> the point at which most of the knowledge `name` is back, over all rates; of equals the first."""
    found: dict[int, Relearned] = {}
    for point in curve:
        if point.step not in found or point.knowledge[name] > found[point.step].knowledge[name]:
            found[point.step] = point
    return found


# The training --------------------------------------------------------------------------------------------------------


class ModelInTraining(NamedTuple):
    """A model after some steps at one rate."""

    rate: float
    step: int
    model: PreTrainedModel
    """Valid until the next point is asked for."""


def answer_examples(tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query]) -> list[Example]:
    """Rows of question, answer and end token, of which the answer and the end are learnt.

    Raises:
        UserError: a query has no answer.
    """
    examples = []
    for query in queries:
        if not query.answer:
            raise UserError(
                f"query {query.id!r} has no answer, and relearning trains on answers", 'give every query an "answer"'
            )
        examples.append(example_of(query, "forget", answer=query.answer))
    return render_examples(tokenizer, examples)


def trainable_copy(model: nn.Module) -> PreTrainedModel:
    """A copy in fp32 of which every weight is trained; adapters are merged first."""
    own = copy.deepcopy(model)
    whole = merged(own) if has_adapter(own) else own
    return whole.float().requires_grad_(True).eval()  # type: ignore[return-value]


def trainable_weights(own: nn.Module) -> list[Tensor]:
    """The weights that are trained, copied to the CPU: ``train_at_rates`` begins each rate with them."""
    return [p.detach().to("cpu", copy=True) for p in own.parameters() if p.requires_grad]


def train_at_rates(
    own: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    start: Sequence[Tensor],
    rates: Sequence[float],
    steps: Sequence[int],
    batch_size: int,
    seed: int,
) -> Iterator[ModelInTraining]:
    """Train `own` in place, those of its weights that want gradients, and hand it over after each of `steps`.

    Each rate begins with the weights `start`, put back into the one model: a sweep needs no second. Where the loss
    stops being finite, the rate ends: it is too high to be the worst case. Step 0 is before any training.
    """
    last = max(steps, default=0)
    per_epoch = -(-len(examples) // batch_size)
    for rate in rates:
        with torch.no_grad():
            for parameter, value in zip((p for p in own.parameters() if p.requires_grad), start, strict=True):
                parameter.copy_(value)
                parameter.grad = None  # a rate that diverged leaves its last
        own.eval()  # an attack asks the model between steps, and dropout would answer
        if 0 in steps:
            yield ModelInTraining(rate, 0, own)
        source, _ = epochs_source(examples, batch_size=batch_size, epochs=-(-last // per_epoch), seed=seed)
        logs = train(
            own,
            source=source,
            num_steps=last,
            loss=fine_tuning_loss,
            targets=None,
            config=TrainConfig(rate=rate, batch_size=batch_size, checkpoint_every=0),
            pad_id=int(tokenizer.pad_token_id or 0),
            seed=seed,
        )
        try:
            for log in logs:
                if log.step in steps:
                    own.eval()
                    yield ModelInTraining(rate, log.step, own)
                    own.train()
        except UserError:  # the loss is not finite: without checkpoints and disk nothing else is raised
            pass
        own.eval()
