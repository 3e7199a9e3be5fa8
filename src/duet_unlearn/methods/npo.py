"""NPO: negative preference optimisation (arXiv 2404.05868)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import npo
from duet_unlearn.methods.forget import answer_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class Npo:
    """Gradient ascent that slows as an answer becomes unlikely compared with the base model (NPO, arXiv 2404.05868)."""

    name: Literal["npo"] = "npo"
    beta: Positive = 0.1
    """How fast the loss flattens; as it falls to 0, NPO becomes gradient ascent. The paper's 0.1."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term; the paper's 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's log-probabilities of the answers; its logits where KL reads them."""
        return Keep("logps") if role == "forget" else retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers, of summed log-probabilities; plus the retain term."""
        forget = answer_term(step, lambda part: npo(part.logps_B, part.reference_B, beta=self.beta))
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
