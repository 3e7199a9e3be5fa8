"""UNDIAL: self-distillation with the label pushed down (arXiv 2402.10052)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import undial
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Dense, Keep
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class Undial:
    """Cross entropy to the base model's own distribution with the answer's token pushed down, at each of its tokens
    (UNDIAL, arXiv 2402.10052)."""

    name: Literal["undial"] = "undial"
    beta: Positive = 10.0
    """By how much the token's logit is lowered; the paper's 10 (it looks at 3 to 30)."""
    retain: Retain = "none"
    """Term on the retain queries: none, ce (their answers) or kl (to the base model)."""
    retain_weight: Positive = 1.0
    """Weight of the retain term. Ours; the paper has none."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + retain_asks(material, self.retain)

    def keep(self, role: Role) -> Keep | None:
        """The reference's logits on the answers, and where KL reads them."""
        return Keep("dense") if role == "forget" else retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers' tokens, plus the retain term."""
        forget = token_term(step, self._push_down)
        return combine(step, forget, retain_term(step, self.retain, self.retain_weight))

    def _push_down(self, part: Part) -> Tensor:
        assert isinstance(part.signal, Dense)
        return undial(part.logits_NV, part.tokens_N, part.signal.logits_NV, beta=self.beta)
