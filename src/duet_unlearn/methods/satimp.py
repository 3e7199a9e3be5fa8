"""SatImp: gradient ascent on tokens neither forgotten nor certain (arXiv 2505.11953)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Amount, Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import satimp
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class SatImp:
    """Gradient ascent weighted by saturation and importance of a token (SatImp, arXiv 2505.11953)."""

    name: Literal["satimp"] = "satimp"
    beta1: Amount = 5.0
    """Power of a token's probability p: what is forgotten already weighs less. The paper's 5."""
    beta2: Amount = 1.0
    """Power of 1 - p: what is still certain weighs less. The paper's 1."""
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
        """Mean over the forget answers' tokens, plus the retain term."""
        forget = token_term(
            step, lambda part: satimp(part.logits_NV, part.tokens_N, beta1=self.beta1, beta2=self.beta2)
        )
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
