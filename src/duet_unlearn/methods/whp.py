"""WHP: learn what a model would say that had never read the text (Who's Harry Potter, arXiv 2310.02238)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import cross_entropy, forward_kl
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.reinforce import Reinforce
from duet_unlearn.methods.retain import Retain, retain_asks, retain_keep, retain_term
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Dense, Keep, TopK
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class Whp:
    """Cross entropy to generic predictions at the forget answers' tokens: the base model's logits less `alpha` times
    what a reinforced model has more of (WHP, arXiv 2310.02238). The paper reads whole texts and replaces their names by
    a dictionary besides, which here nobody writes."""

    name: Literal["whp"] = "whp"
    alpha: Positive = 5.0
    """Weight of what the reinforced model has more of; the paper's."""
    target: Literal["argmax", "soft"] = "argmax"
    """The likeliest generic token, as in the paper, or the generic distribution."""
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
        """The generic logits, or the largest alone; the base model's where KL reads them."""
        if role == "forget":
            return Keep("topk", 1) if self.target == "argmax" else Keep("dense")
        return retain_keep(role, self.retain)

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget answers' tokens, plus the retain term.

        A soft target's own entropy is left out: it has no gradient, and 0 is then the least.
        """
        return combine(step, token_term(step, _generic), retain_term(step, self.retain, self.retain_weight))


def _generic(part: Part) -> Tensor:
    if isinstance(part.signal, TopK):
        return cross_entropy(part.logits_NV, part.signal.ids_NK.squeeze(-1))
    assert isinstance(part.signal, Dense)
    return forward_kl(part.logits_NV, part.signal.logits_NV)
