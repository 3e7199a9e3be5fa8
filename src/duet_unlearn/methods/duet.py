"""DUET: distil the first logits of the prefixed model into the bare one (arXiv 2601.21283)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from duet_unlearn.data.examples import Example, Role, TrainingData
from duet_unlearn.losses import bild, forward_kl, gkd, reverse_kl, topk_huber
from duet_unlearn.methods.base import Method, Need
from duet_unlearn.teacher.targets import Dense, TargetSpec, rows_spec
from duet_unlearn.tensors import TopK, gather, topk
from duet_unlearn.training.step import LossOut, Part, Step

Distance = Literal["topk_huber", "kl", "reverse_kl", "gkd", "bild"]
"""Between student and teacher at one position. ``topk_huber``: DUET's; ``kl``: KL(teacher || student); ``reverse_kl``:
KL(student || teacher); ``gkd``: their generalised Jensen-Shannon divergence (arXiv 2306.13649); ``bild``: the logit
differences of both models' top tokens (arXiv 2406.13555). All but the first read the teacher's whole rows."""


@dataclass(frozen=True)
class Duet(Method):
    """Huber loss on the teacher's top-K raw logits (Eq. 3), the same for forget and retain queries; or another distance
    in its place, with all else alike."""

    name: Literal["duet"] = "duet"
    distance: Distance = "topk_huber"
    """What is distilled with: topk_huber (the paper's), kl, reverse_kl, gkd or bild. Only the paper's holds the logits
    themselves; to the others a constant added to all of them is nothing."""
    k: int | None = 1000
    """Tokens kept of each row of the teacher's logits; null keeps the whole vocabulary. 1000 is our guess: the paper
    sweeps 10 to the whole vocabulary. With bild the tokens that are compared pair by pair, of each model: its paper's
    8."""
    delta: float = 1.0
    """Where the Huber loss turns from square to straight. Our guess; the paper does not say."""
    beta: float = 0.5
    """With gkd: the teacher's share in the mixture that both are compared with, above 0 and below 1. 0.5, its paper's
    Jensen-Shannon divergence."""
    temperature: float = 3.0
    """With bild: logits are divided by it; its paper's 3."""
    positions: int = 1
    """First n positions of the teacher's own greedy answer. The paper distils the first alone."""
    retain_prefix: Literal["same", "none"] = "same"
    """Whether the teacher sees the prefix on retain queries too, as in the paper."""
    retain_loss: Distance | Literal["same"] = "same"
    """The distance on retain queries. `same`: that of forget queries, as in the paper; kl: KL(teacher || student) over
    the whole vocabulary, the ablation of its Table 4."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "retain"})

    def __post_init__(self) -> None:
        for field in ("k", "positions"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"method.{field} is {value}; it must be at least 1")
        for field in ("delta", "temperature"):
            if getattr(self, field) <= 0:
                raise ValueError(f"method.{field} is {getattr(self, field)}; it must be above 0")
        if not 0 < self.beta < 1:
            raise ValueError(f"method.beta is {self.beta}; it must lie between 0 and 1; at its ends take kl")
        if "bild" in self._distances and (self.k is None or self.k < 3):
            raise ValueError(f"method.k is {self.k}; bild compares pairs of k tokens, 3 or more: its paper's 8")

    @property
    def probe_k(self) -> int | None:
        """See ``Method``."""
        return self.k

    def build_examples(self, data: TrainingData) -> list[Example]:
        """Forget and retain queries, each to be answered by the teacher itself."""
        on_retain = data.prefix if self.retain_prefix == "same" else None
        forget = data.own_answers("forget", data.prefix, positions=self.positions)
        return forget + data.own_answers("retain", on_retain, positions=self.positions)

    def target_spec(self, role: Role) -> TargetSpec:
        """The top K; whole rows, of both roles, where either's distance reads them."""
        return rows_spec(self.k if self._distances == {"topk_huber"} else None)

    def loss(self, step: Step) -> LossOut:
        """Sum over positions of the distance between student and teacher."""
        losses = [
            self._distance(part, self._on_retain if role == "retain" else self.distance)
            for role in ("forget", "retain")
            if (part := step.part(role))
        ]
        return LossOut(torch.cat(losses).sum(), len(step.logits_NV), "positions")

    @property
    def _on_retain(self) -> Distance:
        return self.distance if self.retain_loss == "same" else self.retain_loss

    @property
    def _distances(self) -> set[Distance]:
        return {self.distance, self._on_retain}

    def _distance(self, part: Part, kind: Distance) -> Tensor:
        """(N,) of one role's positions."""
        if kind == "topk_huber":
            return pull_to_top(part, k=self.k, delta=self.delta)
        assert isinstance(part.targets, Dense)
        student_NV, teacher_NV = part.logits_NV, part.targets.logits_NV
        match kind:
            case "kl":
                return forward_kl(student_NV, teacher_NV)
            case "reverse_kl":
                return reverse_kl(student_NV, teacher_NV)
            case "gkd":
                return gkd(student_NV, teacher_NV, beta=self.beta)
            case "bild":
                assert self.k is not None
                return bild(student_NV, teacher_NV, k=self.k, temperature=self.temperature)


def pull_to_top(part: Part, *, k: int | None, delta: float) -> Tensor:
    """(N,) Huber loss between student and teacher on the teacher's top K raw logits, kept as such or in whole rows."""
    assert isinstance(part.targets, TopK | Dense)
    kept = part.targets if isinstance(part.targets, TopK) else topk(part.targets.logits_NV, k)
    return topk_huber(gather(part.logits_NV, kept.ids_NK), kept.logits_NK, delta=delta)
