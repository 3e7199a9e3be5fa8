"""AltPO: another answer preferred to the true one (arXiv 2409.13474)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.methods.forget import dpo_keep, dpo_term
from duet_unlearn.methods.material import Material, pairs
from duet_unlearn.methods.retain import Retain, retain_asks, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class AltPo:
    """A plausible other answer preferred to the true one, compared with the base model (AltPO, arXiv 2409.13474).

    The other answer is the first of the query's `wrong`, else its answer with another of its `choices` for its `value`,
    drawn by the seed; the paper has a model write several.
    """

    name: Literal["altpo"] = "altpo"
    beta: Positive = 0.1
    """How fast the loss flattens as the other answer gains; the paper's 0.1."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term; the paper's 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "alternatives", "reference"})

    def asks(self, material: Material) -> list[Asked]:
        """The forget answers, each beside another; the retain answers."""
        return pairs(material.answers("forget"), material.alternatives()) + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's log-probabilities of both answers; its logits where KL reads them."""
        return dpo_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """``2 / beta`` (the authors' factor) times the mean over the pairs of DPO's loss; plus the retain term."""
        forget = dpo_term(step, beta=self.beta, weight=2 / self.beta)
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
