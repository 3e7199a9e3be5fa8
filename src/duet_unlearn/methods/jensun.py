"""JensUn: bounded distances to a refusal and to the base model (arXiv 2509.02820)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import gkd, label_jsd
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Dense, Keep
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class JensUn:
    """Jensen-Shannon divergence of the student from a refusal on forget queries, token by token, and from the base
    model on the retain answers (JensUn, arXiv 2509.02820). Both lie between 0 and log 2: neither outgrows the other."""

    name: Literal["jensun"] = "jensun"
    forget_weight: Positive = 0.5
    """Weight of the refusal. Ours: the paper balances the two on each data set."""
    retain_weight: Positive = 0.5
    """Weight of the base model's answers. Ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals", "retain", "reference"})

    def asks(self, material: Material) -> list[Asked]:
        """A refusal of each forget query, and the retain answers."""
        return material.refused() + material.answers("retain")

    def keep(self, role: Role) -> Keep | None:
        """The reference's whole rows on the retain answers."""
        return Keep("dense") if role == "retain" else None

    def loss(self, step: Step) -> LossOut:
        """The two means, over the refusals' and over the retain answers' tokens."""
        forget = token_term(step, lambda part: label_jsd(part.logits_NV, part.tokens_N), role="preferred")
        retain = token_term(step, _from_base, role="retain")
        return combine(
            step,
            forget._replace(weight=self.forget_weight) if forget else None,
            retain._replace(weight=self.retain_weight) if retain else None,
        )


def _from_base(part: Part) -> Tensor:
    assert isinstance(part.signal, Dense)
    return gkd(part.logits_NV, part.signal.logits_NV, beta=0.5)
