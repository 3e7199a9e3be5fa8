"""DPO with refusals as wins: TOFU's IDK (arXiv 2305.18290, 2401.06121)."""

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
class Dpo:
    """A refusal preferred to the answer, compared with the base model (DPO, arXiv 2305.18290; as TOFU's IDK, arXiv
    2401.06121)."""

    name: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    """How fast the loss flattens as the refusal gains; the paper's 0.1."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term. Ours: published code has a factor 2 / beta before DPO's loss; beta / 2 here is the
    same."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "refusals", "reference"})

    def asks(self, material: Material) -> list[Asked]:
        """The forget answers, each beside a refusal; the retain answers."""
        return pairs(material.answers("forget"), material.refused()) + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's log-probabilities of both answers; its logits where KL reads them."""
        return dpo_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the pairs, of summed log-probabilities; plus the retain term."""
        forget = dpo_term(step, beta=self.beta)
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
