"""RKLD: reverse KL to an unlearning teacher (arXiv 2406.01983)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import reverse_kl
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.reinforce import Reinforce
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Dense, Keep
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class Rkld:
    """KL(student || teacher) at the forget answers' tokens; the teacher is the base model's logits less `alpha` times
    what a reinforced model has more of (RKLD, arXiv 2406.01983)."""

    name: Literal["rkld"] = "rkld"
    alpha: Positive = 5.0
    """Weight of what the reinforced model has more of. Ours, as WHP's; RKLD's own is not known to us."""
    reinforce: Reinforce = field(default_factory=Reinforce)
    """How the reinforced model is trained."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term. Ours; the paper has none."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference", "reinforced"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The teacher's logits; the base model's where KL reads them."""
        return Keep("dense") if role == "forget" else retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers' tokens, plus the retain term."""
        return combine(step, token_term(step, _reverse), retain_term(step, self.retain, self.retain_weight))


def _reverse(part: Part) -> Tensor:
    assert isinstance(part.signal, Dense)
    return reverse_kl(part.logits_NV, part.signal.logits_NV)
