"""What a teacher says at the distilled positions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from duet_unlearn.tensors import TopK


class Dense(NamedTuple):
    """The whole row of logits at N positions."""

    logits_NV: Tensor


Signal = TopK | Dense
"""A method declares which of the two it reads; it cannot tell a live teacher from a cached one."""
