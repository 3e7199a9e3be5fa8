"""DUET: distil the first logits of the prefixed model into the bare one (arXiv 2601.21283)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from duet_unlearn.losses import forward_kl, topk_huber
from duet_unlearn.methods.step import LossOut, Need, Step
from duet_unlearn.teacher.signals import Dense
from duet_unlearn.tensors import TopK, gather, topk


@dataclass(frozen=True)
class Duet:
    """Huber loss on the teacher's top-K raw logits (Eq. 3), the same for forget and retain queries."""

    name: Literal["duet"] = "duet"
    k: int | None = 1000
    """Tokens kept of each row of the teacher's logits; null keeps the whole vocabulary. 1000 is our guess: the paper
    sweeps 10 to the whole vocabulary."""
    delta: float = 1.0
    """Where the Huber loss turns from square to straight. Our guess; the paper does not say."""
    positions: int = 1
    """First n positions of the teacher's own greedy answer. The paper distils the first alone."""
    retain_prefix: Literal["same", "none"] = "same"
    """Whether the teacher sees the prefix on retain queries too, as in the paper."""
    retain_loss: Literal["topk_huber", "kl"] = "topk_huber"
    """``kl``: KL(teacher || student) over the whole vocabulary on retain queries, the ablation of the paper's Table
    4."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "retain"})

    def __post_init__(self) -> None:
        for field in ("k", "positions"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"method.{field} is {value}; it must be at least 1")
        if self.delta <= 0:
            raise ValueError(f"method.delta is {self.delta}; it must be above 0")

    @property
    def cached_k(self) -> int | None:
        """The K that the target cache must hold; None for whole rows."""
        return None if self.retain_loss == "kl" else self.k

    def loss(self, step: Step) -> LossOut:
        """Sum over positions of the Huber loss, or of KL where a retain position asks for it."""
        assert step.signal is not None
        count = step.logits_NV.shape[0]
        if self.retain_loss == "topk_huber":
            return LossOut(self._huber(step.logits_NV, step.signal).sum(), count, "positions")
        assert isinstance(step.signal, Dense)
        retain_N = torch.tensor(
            [e.role == "retain" for e in step.batch.examples for _ in e.positions], device=step.logits_NV.device
        )
        forget = self._huber(step.logits_NV[~retain_N], Dense(step.signal.logits_NV[~retain_N]))
        retain = forward_kl(step.logits_NV[retain_N], step.signal.logits_NV[retain_N])
        return LossOut(forget.sum() + retain.sum(), count, "positions")

    def _huber(self, logits_NV: Tensor, signal: TopK | Dense) -> Tensor:
        kept = signal if isinstance(signal, TopK) else topk(signal.logits_NV, self.k)
        return topk_huber(gather(logits_NV, kept.ids_NK), kept.logits_NK, delta=self.delta)
