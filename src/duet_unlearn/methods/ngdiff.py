"""NGDiff: normalised gradient difference (arXiv 2410.22086)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.data.examples import Role
from duet_unlearn.losses import cross_entropy, gradient_ascent
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.training.step import LossOut, Need, Step, combine


@dataclass(frozen=True)
class NgDiff:
    """GradDiff whose two gradients are brought to length 1 before they are added: ``g_R / |g_R| - g_F / |g_F|`` of the
    answers' cross entropies (NGDiff, arXiv 2410.22086). The paper's rate comes from a quadratic fit, which is left out:
    here it is `train.rate`, tuned like every method's. Set `train.max_grad_norm` to null: the sum is up to 2 long."""

    name: Literal["ngdiff"] = "ngdiff"

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + material.answers("retain")

    def keep(self, role: Role) -> None:
        """Nothing: no frozen model is asked."""

    def loss(self, step: Step) -> LossOut:
        """GradDiff's: the retain answers' mean cross entropy less the forget answers'. The loop takes the gradients of
        the two apart."""
        forget = token_term(step, lambda part: gradient_ascent(part.logits_NV, part.tokens_N))
        retain = token_term(step, lambda part: cross_entropy(part.logits_NV, part.tokens_N), role="retain")
        return combine(step, forget, retain)
