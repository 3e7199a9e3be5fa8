"""Other ways to take tokens than the most likely: drawn, with some forbidden, or by the best whole answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duet_unlearn.teacher.beams import beam_search
from duet_unlearn.teacher.decode import Choose, greedy, likeliest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoding:
    """How answers are made of logits. As it stands: greedily.

    A prompt that is asked several times gets as many answers: other draws, or the next best beams.
    """

    temperature: float = 0.0
    """Tokens are drawn from ``softmax(logits / temperature)``; 0 takes the most likely."""
    seed: int = 0
    """Of the draws. What is drawn for a prompt does not depend on what else is asked."""
    beams: int = 1
    """The answers of highest probability, as a search of so many beams finds them; 1: no search. Nothing is drawn
    then."""
    banned: tuple[str, ...] = ()
    """No answer begins with the first token of any of these texts as it stands behind the prompt, with or without a
    space in front."""
    banned_for: int = 1
    """How many of an answer's tokens the ban is for."""


GREEDY = Decoding()


def decode(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    how: Decoding,
    *,
    banned: frozenset[int],
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """An answer to each row as `how` says, up to and without the first id of `ends`; `banned` are its ids."""
    if how.beams > 1:
        return beam_search(
            model,
            rows,
            beams=how.beams,
            ends=ends,
            filler=filler,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    return greedy(
        model,
        rows,
        ends=ends,
        filler=filler,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        choose=chooser(how, rows, banned=banned, max_new_tokens=max_new_tokens),
    )


def chooser(how: Decoding, rows: Sequence[Sequence[int]], *, banned: frozenset[int], max_new_tokens: int) -> Choose:
    """What takes the next token of these rows."""
    if not how.temperature and not banned:
        return likeliest
    uniforms = torch.tensor(_uniforms(rows, how.seed, max_new_tokens) if how.temperature else [], dtype=torch.float64)
    forbidden = sorted(banned)

    def choose(logits_BV: Tensor, chosen: Sequence[int], said: int) -> Tensor:
        if forbidden and said < how.banned_for:
            logits_BV = logits_BV.index_fill(-1, torch.tensor(forbidden, device=logits_BV.device), -torch.inf)
        if not how.temperature:
            return logits_BV.argmax(-1)
        return draw(logits_BV / how.temperature, uniforms[list(chosen), said].to(logits_BV.device))

    return choose


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """(B,) tokens of the softmax, by the inverse of its distribution function: one number of [0, 1) a row, in fp64."""
    reached_BV = torch.softmax(logits_BV.double(), dim=-1).cumsum(-1)
    # Of the total, which rounding leaves a little off 1: nothing behind the last possible token is ever meant.
    wanted_B1 = uniform_B[:, None] * reached_BV[:, -1:]
    return torch.searchsorted(reached_BV, wanted_B1, right=True).squeeze(-1)


def _uniforms(rows: Sequence[Sequence[int]], seed: int, count: int) -> list[list[float]]:
    """Numbers of [0, 1) for each row, other ones each time that it stands there."""
    before: Counter[tuple[int, ...]] = Counter()
    found = []
    for row in map(tuple, rows):
        source = random.Random(f"{seed}/{before[row]}/{row}")
        found.append([source.random() for _ in range(count)])
        before[row] += 1
    return found
