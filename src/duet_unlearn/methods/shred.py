"""SHRED: self-distillation with the least likely answer tokens taken out; no retain set (arXiv 2605.07482)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from duet_unlearn.config.sections import Share
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import demoted, topk_kl
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep, TopLogps
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class Shred:
    """KL to the base model's own distribution, out of which the answer's least likely tokens are taken; the answer's
    other tokens stand for a retain set (SHRED, arXiv 2605.07482)."""

    name: Literal["shred"] = "shred"
    variant: Literal["A", "B"] = "A"
    """What is taken out where a token is to go: the token (`A`), or with it the nucleus of the distribution (`B`)."""
    percent: Annotated[float, Gt(0), Le(100)] = 15.0
    """Share of an answer's tokens that are to go, rounded up: those of the lowest probability. Ours; a figure of the
    paper shows 50."""
    k: Annotated[int, Ge(2)] = 1000
    """Tokens kept of each row of the base model's distribution. Ours; the paper's is not known to us."""
    nucleus: Share = 0.9
    """Mass of the nucleus of variant `B`: the fewest most likely tokens that have it."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference"})

    def asks(self, material: Material) -> list[Asked]:
        """The forget answers."""
        return material.answers("forget")

    def keep(self, role: Role) -> Keep | None:
        """The top K, and the log-probability of each answer token, which may not be among them."""
        return Keep("top-logps", self.k) if role == "forget" else None

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers' tokens of KL(target || student)."""
        return combine(step, token_term(step, self._distil))

    def _distil(self, part: Part) -> Tensor:
        assert isinstance(part.signal, TopLogps)
        ids_NK, logps_NK, label_logps_N = part.signal
        out_NK = ids_NK == part.tokens_N[:, None]
        if self.variant == "B":
            out_NK = out_NK | in_nucleus(logps_NK, self.nucleus)
        going_N = least_likely(label_logps_N, part.counts, self.percent)
        return topk_kl(part.logits_NV, ids_NK, demoted(logps_NK, out_NK & going_N[:, None]))


def least_likely(logps_N: Tensor, counts: Sequence[int], percent: float) -> Tensor:
    """(N,) True at the given share of each row's positions, rounded up, that have the lowest log-probability; of equal
    ones the first."""
    starts = [sum(counts[:row]) for row in range(len(counts))]
    lowest = [
        start + row_N.argsort(stable=True)[: math.ceil(percent * len(row_N) / 100)]
        for start, row_N in zip(starts, logps_N.split(list(counts)), strict=True)
    ]
    return torch.zeros_like(logps_N, dtype=torch.bool).index_fill(0, torch.cat(lowest), True)


def in_nucleus(logps_NK: Tensor, mass: float) -> Tensor:
    """(N, K) True at the first tokens, of a row in falling order, that together have the mass.

    Never at the last two: with the label, too, taken out, a token is left.
    """
    p_NK = logps_NK.exp()
    inside_NK = p_NK.cumsum(-1) - p_NK < mass
    inside_NK[:, -2:] = False
    return inside_NK
