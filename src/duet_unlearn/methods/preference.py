"""Methods that say something else in the answer's place: a refusal or another answer, learnt or preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Example, Role, TrainingData, pairs
from duet_unlearn.losses import Divergence, cross_entropy, flat, gkd, label_jsd
from duet_unlearn.methods.base import ForgetAndRetain, Method, Need, dpo_term, pair_term, token_term
from duet_unlearn.teacher.targets import Dense, TargetSpec
from duet_unlearn.training.step import LossOut, Part, Step, Term, combine


@dataclass(frozen=True)
class Refusal(ForgetAndRetain):
    """Cross entropy of a refusal of each forget query (the ``IDK`` of arXiv 2410.08109); needs no answers to forget."""

    name: Literal["refusal"] = "refusal"

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals"})

    def forget_examples(self, data: TrainingData) -> list[Example]:
        """A refusal of each forget query."""
        return data.refused()

    def forget_term(self, step: Step) -> Term | None:
        """Mean over the refusals' tokens."""
        return token_term(step, lambda part: cross_entropy(part.logits_NV, part.tokens_N), role="preferred")


@dataclass(frozen=True)
class Dpo(ForgetAndRetain):
    """A refusal preferred to the answer, compared with the base model (DPO, arXiv 2305.18290; as TOFU's IDK, arXiv
    2401.06121). Published code has a factor 2 / beta before DPO's loss; a `retain_weight` of beta / 2 is the same."""

    name: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    """How fast the loss flattens as the refusal gains; the paper's 0.1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "refusals", "reference"})

    def forget_examples(self, data: TrainingData) -> list[Example]:
        """The forget answers, each beside a refusal."""
        return pairs(data.answers("forget"), data.refused())

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """The reference's log-probabilities of both answers."""
        return TargetSpec("logps") if role in ("forget", "preferred") else None

    def forget_term(self, step: Step) -> Term | None:
        """Mean over the pairs, of summed log-probabilities."""
        return dpo_term(step, beta=self.beta)


@dataclass(frozen=True)
class AltPo(ForgetAndRetain):
    """A plausible other answer preferred to the true one, compared with the base model (AltPO, arXiv 2409.13474).

    The other answer is the first of the query's `wrong`, else its answer with another of its `choices` for its `value`,
    drawn by the seed; the paper has a model write several.
    """

    name: Literal["altpo"] = "altpo"
    beta: Positive = 0.1
    """How fast the loss flattens as the other answer gains; the paper's 0.1."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "alternatives", "reference"})

    def forget_examples(self, data: TrainingData) -> list[Example]:
        """The forget answers, each beside another."""
        return pairs(data.answers("forget"), data.alternatives())

    def forget_spec(self, role: Role) -> TargetSpec | None:
        """The reference's log-probabilities of both answers."""
        return TargetSpec("logps") if role in ("forget", "preferred") else None

    def forget_term(self, step: Step) -> Term | None:
        """``2 / beta`` (the authors' factor) times the mean over the pairs of DPO's loss."""
        return dpo_term(step, beta=self.beta, weight=2 / self.beta)


@dataclass(frozen=True)
class Flat(Method):
    """A refusal made likely and the answer unlikely, apart by an f-divergence; reads forget queries alone (FLAT, arXiv
    2410.11143)."""

    name: Literal["flat"] = "flat"
    divergence: Divergence = "kl"
    """The f-divergence: one of the paper's four, of which none is best everywhere."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "refusals"})

    def build_examples(self, data: TrainingData) -> list[Example]:
        """The forget answers, each beside a refusal."""
        return pairs(data.answers("forget"), data.refused())

    def loss(self, step: Step) -> LossOut:
        """Mean over the pairs."""

        def apart(win: Part, lose: Part) -> Tensor:
            return flat(_mean_probability(win), _mean_probability(lose), divergence=self.divergence)

        return combine(step, pair_term(step, apart))


def _mean_probability(part: Part) -> Tensor:
    """(B,) mean over each row's tokens of their probabilities."""
    return part.by_row(part.label_logps_N.exp()) / part.lengths_B


@dataclass(frozen=True)
class JensUn(Method):
    """Jensen-Shannon divergence of the student from a refusal on forget queries, token by token, and from the base
    model on the retain answers (JensUn, arXiv 2509.02820). Both lie between 0 and log 2: neither outgrows the other."""

    name: Literal["jensun"] = "jensun"
    forget_weight: Positive = 0.5
    """Weight of the refusal. Ours: the paper balances the two on each data set."""
    retain_weight: Positive = 0.5
    """Weight of the base model's answers. Ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals", "retain", "reference"})

    def build_examples(self, data: TrainingData) -> list[Example]:
        """A refusal of each forget query, and the retain answers."""
        return data.refused() + data.answers("retain")

    def target_spec(self, role: Role) -> TargetSpec | None:
        """The reference's whole rows on the retain answers."""
        return TargetSpec("dense") if role == "retain" else None

    def loss(self, step: Step) -> LossOut:
        """The two means, over the refusals' and over the retain answers' tokens."""

        def from_base(part: Part) -> Tensor:
            assert isinstance(part.targets, Dense)
            return gkd(part.logits_NV, part.targets.logits_NV, beta=0.5)

        def from_refusal(part: Part) -> Tensor:
            return label_jsd(part.logits_NV, part.tokens_N)

        forget = token_term(step, from_refusal, role="preferred", weight=self.forget_weight)
        retain = token_term(step, from_base, role="retain", weight=self.retain_weight)
        return combine(step, forget, retain)
