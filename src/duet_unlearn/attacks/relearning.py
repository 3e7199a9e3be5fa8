"""Relearning as an attack: fine-tune on what an attacker has, and ask for what he wants."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from duet_unlearn.attacks.copies import asked, bare
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.relearn import RATES, answers_of, every_weight, start_of, trained
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.config.sections import Count, LoraConfig, Positive, Whole, named
from duet_unlearn.data.examples import Example
from duet_unlearn.data.query import Query
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.lora import add_lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Source = Literal["known", "neighbours", "others"]
"""What is trained on: the attacker's own part of what was forgotten; what stands near it; anything else."""
ADAPTERS = "Relearning, adapters"
"""Title of the attack that trains these."""
ROW_TOKENS = 3 * 32
"""What a short question with its answer takes in training, in tokens through the model: for estimates only."""


@dataclass(frozen=True)
class Relearn:
    """Fine-tune a copy, all weights or adapters, on questions with answers, and ask for facts that were not among them.

    Knowledge that was only hidden comes back with a few others; knowledge that is gone must be learnt fact by fact.
    Each source is a family of its own: the oracle under the same training says what is guessing. Success after any
    number of steps at any rate counts, the worst case of UNDO (arXiv 2506.06278); that unrelated text suffices was
    seen by Lucki et al. (arXiv 2409.18025). AdamW without decay in fp32, gradients clipped to norm 1.
    """

    name: Literal["relearn", "relearn-lora"] = "relearn"
    sources: tuple[Source, ...] = ("known", "neighbours", "others")
    """What is trained on, each by itself: `known` facts of the concept, its `neighbours`, unrelated `others`."""
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

    title: ClassVar[str] = "Relearning, all weights"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        named(self, "sources", "rates", "steps")

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        learnt = max(self.steps) * self.batch_size * ROW_TOKENS
        return len(self.sources) * len(self.rates) * (learnt + len(self.steps) * len(goal.wanted) * ASK_TOKENS)

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        return list(self._instances(bare(subject), goal, watch))

    def _instances(self, held: ModelSubject, goal: Goal, watch: Watch) -> Iterator[Instance]:
        """Every source at every rate after every number of steps; one copy is trained in place, anew each time."""
        offered = {"known": goal.known, "neighbours": goal.neighbours, "others": goal.others}
        shown = {source: self._examples(held, offered[source]) for source in self.sources if offered[source]}
        if not shown:
            raise NotApplicable(f"there is no question with an answer to train on ({', '.join(self.sources)})")
        own = _adapted(held.model, self.rank, self.seed) if self.rank else every_weight(held.model)
        rates, start = scaled(self.rates, own, at=self.rates_at), start_of(own)
        for number, (source, rate) in enumerate(product(shown, rates)):
            points = trained(
                own,
                held.tokenizer,
                shown[source],
                start=start,
                rates=[rate],
                steps=self.steps,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            for _, step, now in points:
                name = f"{source}, rate {rate:.2g}, {step} steps"
                yield asked(replace(held, model=now), goal, name, family=source)
            watch(number + 1, len(shown) * len(rates))

    def _examples(self, held: ModelSubject, shown: Sequence[Query]) -> list[Example]:
        """As many as are met at all."""
        most = max(self.steps) * self.batch_size
        if len(shown) > most:
            shown = random.Random(f"relearn/{self.seed}").sample(shown, most)
        return answers_of(held.tokenizer, shown)


def with_adapters() -> Relearn:
    """The attack ``relearn-lora``, with its own defaults."""
    return Relearn("relearn-lora", rates=(3e-3, 1e-2), rank=8)


def scaled(rates: Sequence[float], model: PreTrainedModel, *, at: int | None) -> tuple[float, ...]:
    """Rates for a model's hidden size that are meant for the size `at`, or as they stand: Adam's rate for hidden
    matrices falls with their width (muP, arXiv 2203.03466)."""
    size = model.config.get_text_config(decoder=True).hidden_size
    return tuple(rate * at / size if at else rate for rate in rates)


def _adapted(model: PreTrainedModel, rank: int, seed: int) -> PreTrainedModel:
    """A copy with adapters inside, which alone are trained."""
    own: nn.Module = copy.deepcopy(model)
    add_lora(own, LoraConfig(rank=rank, alpha=2.0 * rank), seed=seed)  # type: ignore[arg-type]
    return own.eval()  # type: ignore[return-value]  # PEFT puts adapters into the model that it is given
