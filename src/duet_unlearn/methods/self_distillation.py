"""Methods that distil a model's own distribution with something taken out of it, or flatten it altogether."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from duet_unlearn.config.sections import Positive, Share
from duet_unlearn.data.examples import Example, Role, TrainingData
from duet_unlearn.losses import ceu, demoted, maxent, topk_kl, undial
from duet_unlearn.methods.base import ForgetAndRetain, Method, Need, token_term
from duet_unlearn.teacher.targets import Dense, TargetSpec, TopLogps
from duet_unlearn.training.step import LossOut, Part, Step, Term, combine


@dataclass(frozen=True)
class Undial(ForgetAndRetain):
    """Cross entropy to the base model's own distribution with the answer's token pushed down, at each of its tokens
    (UNDIAL, arXiv 2402.10052)."""

    name: Literal["undial"] = "undial"
    beta: Positive = 10.0
    """By how much the token's logit is lowered; the paper's 10 (it looks at 3 to 30)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference"})

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """The reference's logits on the answers."""
        return TargetSpec("dense") if role == "forget" else None

    def token_losses(self, part: Part) -> Tensor:
        """See ``losses.undial``."""
        assert isinstance(part.targets, Dense)
        return undial(part.logits_NV, part.tokens_N, part.targets.logits_NV, beta=self.beta)


@dataclass(frozen=True)
class Ceu(ForgetAndRetain):
    """Cross entropy to the model's own distribution without the answer's token, at each of its tokens (CE-U, arXiv
    2503.01224)."""

    name: Literal["ceu"] = "ceu"
    skip: Literal[0, 1] = 1
    """First tokens of an answer that are left alone; the paper's 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def forget_term(self, step: Step) -> Term | None:
        """Mean over the forget answers' tokens but the first; which they are is known from the rows' lengths."""
        part = step.part("forget")
        if part is None:
            return None
        places = [place for count in part.counts for place in range(count)]
        index_N = torch.tensor([n for n, place in enumerate(places) if place >= self.skip], device=part.rows_N.device)
        total = step.totals.positions["forget"] - self.skip * step.totals.rows["forget"]
        return Term(ceu(part.logits_NV[index_N], part.tokens_N[index_N]).sum(), total)


@dataclass(frozen=True)
class MaxEnt(ForgetAndRetain):
    """A uniform distribution over all tokens, wherever forget text stands (ME; with `retain: ce` ME+GD, arXiv
    2410.08109)."""

    name: Literal["maxent"] = "maxent"
    reads: Literal["answer", "text"] = "text"
    """Where: at the answer's tokens, or at those of question and answer, as the authors' code does."""
    retain_weight: Positive = 10.0
    """Weight of the retain term: the authors weigh the forget term 0.1 and this one 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def forget_examples(self, data: TrainingData) -> list[Example]:
        """Questions and answers; of the retain queries the answer alone is read."""
        return data.answers("forget", reads=self.reads)

    def token_losses(self, part: Part) -> Tensor:
        """See ``losses.maxent``."""
        return maxent(part.logits_NV)


@dataclass(frozen=True)
class Shred(Method):
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

    def target_spec(self, role: Role) -> TargetSpec | None:
        """The top K, and the log-probability of each answer token, which may not be among them."""
        return TargetSpec("top-logps", self.k) if role == "forget" else None

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers' tokens of KL(target || student)."""
        return combine(step, token_term(step, self._distil))

    def _distil(self, part: Part) -> Tensor:
        assert isinstance(part.targets, TopLogps)
        ids_NK, logps_NK, label_logps_N = part.targets
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
