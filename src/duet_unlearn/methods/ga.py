"""Gradient ascent on the answers to forget, alone or against a retain term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import gradient_ascent
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class GradientAscent:
    """Cross entropy of the forgotten answers, maximised (GA, arXiv 2210.01504); with `retain: ce` GradDiff (TOFU, arXiv
    2401.06121), with `retain: kl` its KL minimisation."""

    name: Literal["ga"] = "ga"
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term; TOFU's 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's logits where KL reads them."""
        return retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean log-probability of the forget answers' tokens, plus the retain term."""
        forget = token_term(step, lambda part: gradient_ascent(part.logits_NV, part.tokens_N))
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
