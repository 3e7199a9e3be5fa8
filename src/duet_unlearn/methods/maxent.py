"""Maximum entropy on the forget text (ME of arXiv 2410.08109)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import maxent
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class MaxEnt:
    """A uniform distribution over all tokens, wherever forget text stands (ME; with `retain: ce` ME+GD, arXiv
    2410.08109)."""

    name: Literal["maxent"] = "maxent"
    reads: Literal["answer", "text"] = "text"
    """Where: at the answer's tokens, or at those of question and answer, as the authors' code does."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 10.0
    """Weight of the retain term: the authors weigh the forget term 0.1 and this one 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def asks(self, material: Material) -> list[Asked]:
        """Questions and answers of both roles; of the retain queries the answer alone is read."""
        rows = material.read_whole("forget") if self.reads == "text" else material.answers("forget")
        return rows + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's logits where KL reads them."""
        return retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the positions read of KL(uniform || student), plus the retain term."""
        forget = token_term(step, lambda part: maxent(part.logits_NV))
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
