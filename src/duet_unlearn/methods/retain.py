"""What holds the rest of the model in place: a term on the retain queries' answers, the same for every method that
has one."""

from __future__ import annotations

from typing import Literal

from duet_unlearn.data.examples import Role
from duet_unlearn.losses import cross_entropy, forward_kl
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Dense, Keep
from duet_unlearn.training.step import Step, Term

Retain = Literal["none", "ce", "kl"]
"""``ce``: cross entropy of the answers ("gradient difference"); ``kl``: KL(reference || student) over the whole
vocabulary at the answers' tokens, the reference's logits being computed once; ``none`` reads no retain query."""


def retain_asks(material: Material, kind: Retain) -> list[Asked]:
    """The retain queries' rows; none where there is no term, so that no forward pass has weight 0."""
    return [] if kind == "none" else material.answers("retain")


def retain_keep(role: Role, kind: Retain) -> Keep | None:
    """What the reference says on a role's rows, for the term alone."""
    return Keep("dense") if role == "retain" and kind == "kl" else None


def retain_term(step: Step, kind: Retain, weight: float) -> Term | None:
    """The mean over the retain answers' tokens."""
    part = step.part("retain")
    if kind == "none" or part is None:
        return None
    if kind == "kl":
        assert isinstance(part.signal, Dense)
        loss_N = forward_kl(part.logits_NV, part.signal.logits_NV)
    else:
        loss_N = cross_entropy(part.logits_NV, part.tokens_N)
    return Term(loss_N.sum(), step.totals.positions["retain"], weight)
