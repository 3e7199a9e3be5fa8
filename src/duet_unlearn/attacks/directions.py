"""Abliteration: take the direction out of a model along which it refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from duet_unlearn.answers import is_refusal
from duet_unlearn.attacks.asking import Ask, answers
from duet_unlearn.attacks.copies import asked, bare
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.hidden import last_hidden, spread
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.config.sections import Count
from duet_unlearn.data.prompts import render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.blocks import blocks_of

FEWEST = 4
"""Refused, and answered, questions that a mean needs; ours."""


@dataclass(frozen=True)
class RefusalDirection:
    """Find the direction in which the model's states for refused questions differ from those for answered ones, and
    take it out of everything that the blocks read and write; then ask (arXiv 2406.11717).

    The direction is the difference of the means at the prompt's last token behind one block; each block's own is tried.
    Refused are questions about the concept, answered are neighbours and anything else, as the model itself treats them;
    no answer need be known. The paper tries all tokens of the template's end, too, and chooses by validation; here the
    strongest counts. Numbers: how many questions each mean is of.
    """

    name: Literal["refusal-direction"] = "refusal-direction"
    layers: Count | None = None
    """How many blocks' directions are tried, evenly spaced, the last among them; null: all."""
    questions: Count = 64
    """Questions of each side that are asked for the means, at most; ours, the paper has 128."""
    seed: int = 0
    """Draws them."""
    title: ClassVar[str] = "Refusal direction removed"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return (3 * self.questions + (self.layers or 8) * len(goal.wanted)) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``. Where too few questions are refused, or answered, plain answers are the only instance.

        Raises:
            NotApplicable: there are no questions about anything else.
        """
        held = bare(subject)
        refused = self._asked(held, (*goal.wanted, *goal.known), "refused", goal)
        answered = self._asked(held, (*goal.neighbours, *goal.others), "answered", goal)
        if min(len(refused), len(answered)) < FEWEST:
            return [asked(held, goal, f"no direction: {len(refused)} refused, {len(answered)} answered")]
        direction_LD = _mean(held, refused, goal) - _mean(held, answered, goal)
        found, stops = [], spread(len(direction_LD), self.layers)
        for number, stop in enumerate(stops):
            with without(held.model, direction_LD[stop - 1]):
                one = asked(held, goal, f"direction behind block {stop} of {len(direction_LD)}")
            found.append(replace(one, numbers={"refused": len(refused), "answered": len(answered)}))
            watch(number + 1, len(stops))
        return found

    def _asked(
        self, held: ModelSubject, queries: Sequence[Query], wanted: Literal["refused", "answered"], goal: Goal
    ) -> list[Query]:
        """Those of some questions that the model treats so."""
        if not queries:
            raise NotApplicable("there is no question about anything else to compare refusals with")
        drawn = random.Random(f"{wanted}/{self.seed}").sample(queries, min(self.questions, len(queries)))
        said = answers(held, [Ask(wanted, number, query) for number, query in enumerate(drawn)], goal)
        return [q for q, text in zip(drawn, said, strict=True) if is_refusal(text) == (wanted == "refused")]


@contextmanager
def without(model: nn.Module, direction_D: Tensor) -> Iterator[None]:
    """Inside, ``x - (x . d) d / |d|^2`` takes the place of every x that a block reads from the residual stream, that
    its attention or MLP adds to it, and that it hands on.

    It is the same as taking d out of all weights that write to the stream, and works for every architecture.
    """
    norm = direction_D.norm().clamp_min(torch.finfo(torch.float32).tiny)
    unit_D = (direction_D / norm).float().to(next(model.parameters()).device)

    def taken_out(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[-1] != len(unit_D):
            return value
        wide = value.float()
        return (wide - (wide @ unit_D)[..., None] * unit_D).to(value.dtype)

    def before(_block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (taken_out(args[0]), *args[1:]), named
        return args, named | {"hidden_states": taken_out(named.get("hidden_states"))}

    def behind(_part: nn.Module, _inputs: Any, output: Any) -> Any:
        return (taken_out(output[0]), *output[1:]) if isinstance(output, tuple) else taken_out(output)

    with ExitStack() as hooks:
        for block in blocks_of(model):
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            for part in (*filter(_writes, block.children()), block):
                hooks.callback(part.register_forward_hook(behind).remove)
        yield


def _writes(part: nn.Module) -> bool:
    """Whether a part of a block may add to the stream: attention and MLP, not a norm."""
    return any(weight.ndim > 1 for weight in part.parameters())


def _mean(held: ModelSubject, queries: Sequence[Query], goal: Goal) -> Tensor:
    """(L, D) mean of every block's output at the prompt's last token."""
    return last_hidden(held, [render(held.tokenizer, query.messages) for query in queries], goal.batch_size).mean(1)
