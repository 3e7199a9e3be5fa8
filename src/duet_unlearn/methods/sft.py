"""Plain fine-tuning on answers: the lab's pretraining, relearning, and the base of every method that needs answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.losses import cross_entropy
from duet_unlearn.training.step import LossOut, Need, Step


@dataclass(frozen=True)
class Sft:
    """Cross entropy of the labelled tokens."""

    name: Literal["sft"] = "sft"

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def loss(self, step: Step) -> LossOut:
        """Sum over labelled tokens of -log p."""
        assert step.batch.labels_N is not None
        loss_N = cross_entropy(step.logits_NV, step.batch.labels_N)
        return LossOut(loss_N.sum(), len(loss_N), "tokens")
