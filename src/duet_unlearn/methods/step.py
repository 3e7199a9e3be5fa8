"""What a method is given at a step, and what it gives back."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from duet_unlearn.data.examples import Batch
from duet_unlearn.teacher.signals import Signal

Unit = Literal["tokens", "positions", "sequences"]
Need = Literal["teacher", "retain", "answers"]


class Step(NamedTuple):
    """One micro-batch: the student's logits at the batch's N positions, and the teacher's words there."""

    logits_NV: Tensor
    batch: Batch
    signal: Signal | None


class LossOut(NamedTuple):
    """A sum and how many units it is over; the loop divides by the count of the whole optimiser step."""

    sum: Tensor
    count: int
    unit: Unit
