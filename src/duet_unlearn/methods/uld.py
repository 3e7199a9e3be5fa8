"""ULD: the logits of a small assistant, which remembers what is to be forgotten, are taken from the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Amount, Count, PositiveShare
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import cross_entropy, maxent
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.training.step import LossOut, Need, Step, Term, combine


@dataclass(frozen=True)
class Uld:
    """The model is not trained: an assistant of its first layers learns the forget answers and to know nothing of the
    retain answers, and its logits are subtracted from the model's (ULD, logit difference, arXiv 2406.08607). `train`
    and `model.lora` are the assistant's; embeddings and head are the model's own. The paper also trains it on
    paraphrases of the forget answers, and on wrong ones as retain answers."""

    name: Literal["uld"] = "uld"
    layers: Count = 8
    """Layers of the model that the assistant is a copy of, from the first: the paper's 8 of Llama 2's 32."""
    weight: Amount = 1.0
    """What the assistant's logits are multiplied by: the released code's default, 0.8 in its runs on TOFU."""
    top: PositiveShare = 0.1
    """Tokens whose logits are touched: this share of the vocabulary, the model's likeliest, and what is at least so
    many times as likely as the likeliest; 1: all. The released code's default, 0.01 in its runs on TOFU."""
    retain_weight: Amount = 5.0
    """Weight of KL(uniform || assistant) on the retain answers, against the cross entropy of the forget answers; the
    released code's."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain"})

    def asks(self, material: Material) -> list[Asked]:
        """The answers of both roles."""
        return material.answers("forget") + material.answers("retain")

    def keep(self, role: Role) -> None:
        """Nothing: the assistant is compared with no other model."""
        return

    def loss(self, step: Step) -> LossOut:
        """Mean cross entropy of the forget answers' tokens, plus the weighted mean distance from knowing nothing at the
        retain answers'."""
        forget = token_term(step, lambda part: cross_entropy(part.logits_NV, part.tokens_N))
        part, retain = step.part("retain"), None
        if part and self.retain_weight:
            retain = Term(maxent(part.logits_NV).sum(), step.totals.positions["retain"], self.retain_weight)
        return combine(step, forget, retain)
