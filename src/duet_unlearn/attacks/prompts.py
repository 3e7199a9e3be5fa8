"""Attacks by wording: the question inside a text that is to get an answer out of the model.

Each has a file of wordings in ``wordings/``; ``files`` adds a user's own. None of these texts was used in training:
methods that train against reverse prompts have their own (``methods/reversals.txt``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from duet_unlearn.attacks.asking import Ask, ask
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.attacks.turns import filled, shows, tokens_of
from duet_unlearn.attacks.wordings import Wording, worded, wordings
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Subject

LOG = logging.getLogger("duet_unlearn")


def in_wordings(chosen: Sequence[Wording], goal: Goal) -> list[Ask]:
    """Every wanted fact in every wording that does not name it, an instance each wording."""
    return [
        Ask(wording.id, number, worded(query, wording, goal.concept), family=wording.family)
        for wording in chosen
        for number, query in enumerate(goal.wanted)
        if not shows(filled(wording.text, concept=query.concept or goal.concept, question=""), query)
    ]


Name = Literal["reverse", "role-play", "authority", "hypothetical", "injection", "system-override", "language"]
IDEAS: dict[Name, tuple[str, str]] = {
    "reverse": (
        "Reverse prompts",
        "Cancel what the model was told, allow it again, call it a test, say that the memory is back, or that much"
        " depends on the answer. This undoes a prefix that only stands in the context (arXiv 2601.21283, Table 6).",
    ),
    "role-play": (
        "Role play",
        "Ask a character who knows, or inside a scene (persona modulation, arXiv 2311.03348; RWKU, arXiv 2406.10890).",
    ),
    "authority": ("Authority", "Speak as somebody whom the model should obey: its makers, or an office."),
    "hypothetical": (
        "Hypothetical questions",
        "Ask what the answer would be if nothing had been forgotten, or for no more than a guess.",
    ),
    "injection": (
        "Prefix injection",
        "Say in the question how the answer has to begin, or what must not stand in it (arXiv 2307.02483).",
    ),
    "system-override": (
        "System prompt override",
        "Take the system turn, or write one into the question. With a prefix in the system turn both stand there.",
    ),
    "language": (
        "Other languages",
        "Frame the question in one of twelve languages, or demand the answer in it (arXiv 2402.16835).",
    ),
}
"""Name -> title, and what the attacker does."""


@dataclass(frozen=True)
class Worded:
    """Every wanted fact in every wording of a file, one after the other."""

    name: Name = "reverse"
    per_family: int | None = None
    """The first so many wordings of each family; null: all. Ours."""
    files: tuple[str, ...] = ()
    """Files with more wordings; ours: none."""
    title: ClassVar[str] = "Wordings"
    access: ClassVar[Access] = "chat"
    metric: ClassVar[Metric] = "right"

    def __post_init__(self) -> None:
        self.chosen()

    def asks(self, goal: Goal) -> list[Ask]:
        """Everything that is asked."""
        return in_wordings(self.chosen(), goal)

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return tokens_of(self.asks(goal))

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: every wording names what is wanted.
        """
        asks = self.asks(goal)
        if not asks:
            raise NotApplicable("every wording has the wanted answer in it")
        return ask_with_system(subject, asks, goal)

    def beside(self) -> list[Any]:
        """See ``Dependent``: the files' texts."""
        return [asdict(wording) for wording in self.chosen()]

    def chosen(self) -> tuple[Wording, ...]:
        """The wordings that are tried."""
        return wordings(self.name, files=self.files, per_family=self.per_family)


def ask_with_system(subject: Subject, asks: Sequence[Ask], goal: Goal) -> list[Instance]:
    """``ask``, where the chat template may refuse a system turn (Gemma 2): such wordings are left out then.

    Raises:
        NotApplicable: all have one.
    """
    bare = [one for one in asks if one.query.messages[0]["role"] != "system"]
    try:
        return ask(subject, asks, goal)
    except UserError as error:
        if not bare:
            raise NotApplicable("the chat template refuses a system turn, and every wording has one") from error
        LOG.warning("warning: wordings with a system turn are left out: %s", error.message)
        return ask(subject, bare, goal)
