"""SimNPO: NPO by the token, without a reference (arXiv 2410.07163)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import simnpo
from duet_unlearn.methods.forget import answer_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class SimNpo:
    """NPO without a reference, of the mean log-probability of an answer's tokens (SimNPO, arXiv 2410.07163)."""

    name: Literal["simnpo"] = "simnpo"
    beta: Positive = 2.5
    """How fast the loss flattens. The paper's 2.5 to 4.5 on TOFU, 0.7 on MUSE books."""
    gamma: float = 0.0
    """Margin that an answer's mean loss, times beta, is to have; the paper's 0."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term; ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's logits where KL reads them."""
        return retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers, long and short alike; plus the retain term."""
        forget = answer_term(step, lambda part: simnpo(part.logps_B, part.lengths_B, beta=self.beta, gamma=self.gamma))
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
