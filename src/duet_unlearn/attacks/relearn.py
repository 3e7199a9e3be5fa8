"""Relearning: fine-tune an unlearned model on a part of what it forgot, and see how fast the rest comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, epochs_source, example_of, render_examples
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.models.load import merged
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.training.loop import train
from duet_unlearn.training.step import fine_tuning_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RATES = (3e-4, 1e-3, 3e-3)
"""Rates to sweep for models of the lab's size; ours. UNDO sweeps its own for models of 100 M to 2 B."""
Measure = Callable[["PreTrainedModel"], Mapping[str, float]]
"""What a model knows, in named shares, 0..1."""


class Point(NamedTuple):
    """A model in training."""

    rate: float
    step: int
    model: PreTrainedModel
    """Valid until the next point is asked for."""


class Relearned(NamedTuple):
    """What a model knows after some steps of relearning at one rate."""

    rate: float
    step: int
    knowledge: Mapping[str, float]


def relearn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    shown: Sequence[Query],
    *,
    measure: Measure,
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
    whole, examples, before = every_weight(model), answers_of(tokenizer, shown), None
    points = trained(
        whole,
        tokenizer,
        examples,
        start=start_of(whole),
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


def answers_of(tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query]) -> list[Example]:
    """Rows of question, answer and end token, of which the answer and the end are learnt.

    Raises:
        UserError: a query has no answer.
    """
    return render_examples(tokenizer, [_asked(query) for query in queries])


def every_weight(model: nn.Module) -> PreTrainedModel:
    """A copy in fp32 of which every weight is trained; adapters are merged first."""
    own = copy.deepcopy(model)
    whole = merged(own) if has_adapter(own) else own
    return whole.float().requires_grad_(True).eval()  # type: ignore[return-value]


def start_of(own: nn.Module) -> list[Tensor]:
    """The weights that are trained, copied to the CPU: ``trained`` begins with them, as often as it is called."""
    return [p.detach().to("cpu", copy=True) for p in own.parameters() if p.requires_grad]


def trained(
    own: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    start: Sequence[Tensor],
    rates: Sequence[float],
    steps: Sequence[int],
    batch_size: int,
    seed: int,
) -> Iterator[Point]:
    """Train `own` in place, those of its weights that want gradients, and hand it over after each of `steps`.

    Each rate begins with the weights `start`, put back into the one model: a sweep needs no second. Where the loss
    stops being finite, the rate ends. Step 0 is before any training.
    """
    later = {*steps} - {0}
    for rate in rates:
        _put_back(own, start)
        own.eval()
        if 0 in steps:
            yield Point(rate, 0, own)
        for step in _steps(own, tokenizer, examples, rate, max(later, default=0), batch_size, seed):
            if step in later:
                own.eval()
                yield Point(rate, step, own)
                own.train()
        own.eval()


def _put_back(own: nn.Module, start: Sequence[Tensor]) -> None:
    trainable = [p for p in own.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, value in zip(trainable, start, strict=True):
            parameter.copy_(value)
            parameter.grad = None  # a rate that diverged leaves its last


def _asked(query: Query) -> Example:
    if not query.answer:
        raise UserError(
            f"query {query.id!r} has no answer, and relearning trains on answers", 'give every query an "answer"'
        )
    return example_of(query, "forget", answer=query.answer)


def _steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    rate: float,
    last: int,
    batch_size: int,
    seed: int,
) -> Iterator[int]:
    """Train; each step that was done, up to the first whose loss is no number: such a rate is too high to be the worst
    case."""
    per_epoch = -(-len(examples) // batch_size)
    source, _ = epochs_source(examples, batch_size=batch_size, epochs=-(-last // per_epoch), seed=seed)
    logs = train(
        model,
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
            yield log.step
    except UserError:  # without checkpoints and disk there is no other
        return
