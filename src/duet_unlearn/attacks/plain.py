"""The measure of all attacks: the questions as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.attacks.asking import ask, plain
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.result import Access, Instance, Metric, Watch, unwatched
from duet_unlearn.evals.subject import Subject


@dataclass(frozen=True)
class Plain:
    """Ask, and nothing else. Whatever comes back here was not forgotten."""

    name: Literal["plain"] = "plain"
    title: ClassVar[str] = "Asked plainly"
    access: ClassVar[Access] = "chat"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return len(goal.wanted) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        return ask(subject, plain(goal), goal)


ASK_TOKENS = 64
"""What one short question and its answer take, in tokens through the model: for estimates only."""
