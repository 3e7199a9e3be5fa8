"""Every method is one frozen dataclass; the union below is the register."""

from __future__ import annotations

from duet_unlearn.methods.duet import Duet
from duet_unlearn.methods.sft import Sft
from duet_unlearn.methods.step import LossOut, Step

Method = Duet
"""What a recipe may name under `method`. `Sft` trains on answers and forgets nothing: the lab and relearning use it."""
METHODS: tuple[type[Method], ...] = (Duet,)

__all__ = ["METHODS", "Duet", "LossOut", "Method", "Sft", "Step"]
