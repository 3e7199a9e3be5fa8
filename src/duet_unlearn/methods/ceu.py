"""CE-U: cross entropy to the model's own words without the label (arXiv 2503.01224)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import ceu
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Part, Step, Term, combine


@dataclass(frozen=True)
class Ceu:
    """Cross entropy to the model's own distribution without the answer's token, at each of its tokens (CE-U, arXiv
    2503.01224)."""

    name: Literal["ceu"] = "ceu"
    skip: Literal[0, 1] = 1
    """First tokens of an answer that are left alone; the paper's 1."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term. Ours; the paper has none."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's logits where KL reads them."""
        return retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers' tokens but the first, plus the retain term."""
        part = step.part("forget")
        forget = Term(self._without_label(part), self._positions(step)) if part else None
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))

    def _without_label(self, part: Part) -> Tensor:
        """Sum over the positions read; which they are is known from the rows' lengths."""
        places = [place for count in part.counts for place in range(count)]
        index_N = torch.tensor([n for n, place in enumerate(places) if place >= self.skip], device=part.rows_N.device)
        return ceu(part.logits_NV[index_N], part.tokens_N[index_N]).sum()

    def _positions(self, step: Step) -> int:
        return step.totals.positions["forget"] - self.skip * step.totals.rows["forget"]
