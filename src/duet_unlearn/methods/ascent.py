"""Methods that push the answers to forget down: gradient ascent and its tempered successors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from duet_unlearn.config.sections import Amount, Positive
from duet_unlearn.data.examples import Example, Role, TrainingData
from duet_unlearn.losses import cross_entropy, gradient_ascent, npo, satimp, simnpo, wga
from duet_unlearn.methods.base import ForgetAndRetain, Method, Need, answer_term, token_term
from duet_unlearn.teacher.targets import TargetSpec
from duet_unlearn.training.step import LossOut, Part, Step, Term, combine


@dataclass(frozen=True)
class GradientAscent(ForgetAndRetain):
    """Cross entropy of the forgotten answers, maximised (GA, arXiv 2210.01504); with `retain: ce` GradDiff (TOFU, arXiv
    2401.06121), with `retain: kl` its KL minimisation."""

    name: Literal["ga"] = "ga"

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def token_losses(self, part: Part) -> Tensor:
        """See ``losses.gradient_ascent``."""
        return gradient_ascent(part.logits_NV, part.tokens_N)


@dataclass(frozen=True)
class Wga(ForgetAndRetain):
    """Gradient ascent that leaves tokens alone once they are unlikely (weighted GA, arXiv 2502.19301)."""

    name: Literal["wga"] = "wga"
    beta: Amount = 1.0
    """Power of a token's probability by which it is weighted; the paper's 1. 0 is gradient ascent."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def token_losses(self, part: Part) -> Tensor:
        """See ``losses.wga``."""
        return wga(part.logits_NV, part.tokens_N, beta=self.beta)


@dataclass(frozen=True)
class SatImp(ForgetAndRetain):
    """Gradient ascent weighted by saturation and importance of a token (SatImp, arXiv 2505.11953)."""

    name: Literal["satimp"] = "satimp"
    beta1: Amount = 5.0
    """Power of a token's probability p: what is forgotten already weighs less. The paper's 5."""
    beta2: Amount = 1.0
    """Power of 1 - p: what is still certain weighs less. The paper's 1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def token_losses(self, part: Part) -> Tensor:
        """See ``losses.satimp``."""
        return satimp(part.logits_NV, part.tokens_N, beta1=self.beta1, beta2=self.beta2)


@dataclass(frozen=True)
class Npo(ForgetAndRetain):
    """Gradient ascent that slows as an answer becomes unlikely compared with the base model (NPO, arXiv 2404.05868)."""

    name: Literal["npo"] = "npo"
    beta: Positive = 0.1
    """How fast the loss flattens; as it falls to 0, NPO becomes gradient ascent. The paper's 0.1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reference"})

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """The reference's log-probabilities of the answers."""
        return TargetSpec("logps") if role == "forget" else None

    def forget_term(self, step: Step) -> Term | None:
        """Mean over the forget answers, of summed log-probabilities."""
        return answer_term(step, lambda part: npo(part.logps_B, part.reference_B, beta=self.beta))


@dataclass(frozen=True)
class SimNpo(ForgetAndRetain):
    """NPO without a reference, of the mean log-probability of an answer's tokens (SimNPO, arXiv 2410.07163)."""

    name: Literal["simnpo"] = "simnpo"
    beta: Positive = 2.5
    """How fast the loss flattens. The paper's 2.5 to 4.5 on TOFU, 0.7 on MUSE books."""
    gamma: float = 0.0
    """Margin that an answer's mean loss, times beta, is to have; the paper's 0."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers"})

    def forget_term(self, step: Step) -> Term | None:
        """Mean over the forget answers, long and short alike."""
        return answer_term(step, lambda part: simnpo(part.logps_B, part.lengths_B, beta=self.beta, gamma=self.gamma))


@dataclass(frozen=True)
class NgDiff(Method):
    """GradDiff whose two gradients are brought to length 1 before they are added: ``g_R / |g_R| - g_F / |g_F|`` of the
    answers' cross entropies (NGDiff, arXiv 2410.22086). The paper's rate comes from a quadratic fit, which is left out:
    here it is `train.rate`, tuned like every method's. Set `train.max_grad_norm` to null: the sum is up to 2 long."""

    name: Literal["ngdiff"] = "ngdiff"

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain"})
    splits_gradients: ClassVar[bool] = True

    def build_examples(self, data: TrainingData) -> list[Example]:
        """The answers of both roles."""
        return data.answers("forget") + data.answers("retain")

    def loss(self, step: Step) -> LossOut:
        """GradDiff's: the retain answers' mean cross entropy less the forget answers'."""
        forget = token_term(step, lambda part: gradient_ascent(part.logits_NV, part.tokens_N))
        retain = token_term(step, lambda part: cross_entropy(part.logits_NV, part.tokens_N), role="retain")
        return combine(step, forget, retain)

    def combine_gradients(self, gradients: Mapping[Role, Sequence[Tensor | None]]) -> list[Tensor | None]:
        """The sum of each role's gradient, brought to length 1 over all parameters; a gradient of zeros stays so."""
        total: list[Tensor | None] = []
        for own in gradients.values():
            norm = torch.nn.utils.get_total_norm([g for g in own if g is not None])
            units = [g if g is None else g.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny)) for g in own]
            if not total:
                total = units
                continue
            total = [b if a is None else a if b is None else a.add_(b) for a, b in zip(total, units, strict=True)]
        return total
