"""Terms on the forget queries that methods share: means of a loss over single tokens, over whole answers, over pairs of
answers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from duet_unlearn.data.examples import Role
from duet_unlearn.losses import dpo
from duet_unlearn.methods.retain import Retain, retain_keep
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import Part, Step, Term


def token_term(step: Step, loss: Callable[[Part], Tensor], *, role: Role = "forget") -> Term | None:
    """The mean over a role's positions of a loss that gives (N,) values; None where the micro-batch has none."""
    part = step.part(role)
    return Term(loss(part).sum(), step.totals.positions[role]) if part else None


def answer_term(step: Step, loss: Callable[[Part], Tensor]) -> Term | None:
    """The mean over the forget rows of a loss that gives (B,) values."""
    part = step.part("forget")
    return Term(loss(part).sum(), step.totals.rows["forget"]) if part else None


def pair_term(step: Step, loss: Callable[[Part, Part], Tensor], *, weight: float = 1.0) -> Term | None:
    """The mean over pairs of a loss of the preferred and the forgotten rows, in this order, that gives (B,) values.

    A pair is never parted, so both have the same rows in the same order.
    """
    win, lose = step.part("preferred"), step.part("forget")
    if win is None or lose is None:
        return None
    assert win.num_rows == lose.num_rows
    return Term(loss(win, lose).sum(), step.totals.rows["forget"], weight)


def dpo_term(step: Step, *, beta: float, weight: float = 1.0) -> Term | None:
    """The mean over pairs of DPO's loss."""

    def loss(win: Part, lose: Part) -> Tensor:
        return dpo(win.logps_B, win.reference_B, lose.logps_B, lose.reference_B, beta=beta)

    return pair_term(step, loss, weight=weight)


def dpo_keep(role: Role, retain: Retain) -> Keep | None:
    """The reference's log-probabilities of both answers; its logits where KL reads them."""
    return Keep("logps") if role in ("forget", "preferred") else retain_keep(role, retain)
