"""Fine-tuning on refusals of the forget queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import cross_entropy
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class Refusal:
    """Cross entropy of a refusal of each forget query (the ``IDK`` of arXiv 2410.08109); needs no answers to forget."""

    name: Literal["refusal"] = "refusal"
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term; ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals"})

    def asks(self, material: Material) -> list[Asked]:
        """A refusal of each forget query, and the retain answers."""
        return material.refused() + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's logits where KL reads them."""
        return retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the refusals' tokens, plus the retain term."""
        forget = token_term(step, lambda part: cross_entropy(part.logits_NV, part.tokens_N), role="preferred")
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))
