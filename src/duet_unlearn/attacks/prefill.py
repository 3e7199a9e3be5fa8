"""Prefilling: somebody writes the beginning of the answer, and the model goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import ClassVar, Literal

from duet_unlearn.answers import normalise
from duet_unlearn.attacks.asking import Ask, ask
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, Watch, unwatched
from duet_unlearn.data.query import Query
from duet_unlearn.evals.question_sets import expected_answer
from duet_unlearn.evals.subject import Subject

UNVALUED = 4
"""Of an answer in which nothing is known to be the value, one word in so many is shown; ours."""


@dataclass(frozen=True)
class Prefill:
    """Open the answer: with words that promise one (a family), or with the right answer's own first words, never one
    of the value's. Only what the model says behind them counts.

    A student that learnt to refuse at its first token may have nothing left at its second.
    """

    name: Literal["prefill"] = "prefill"
    openers: int | None = None
    """How many of the openers are tried; null: all."""
    words: tuple[int | None, ...] = (1, 2, None)
    """How many words of the right answer are shown; null: all up to the value. An answer with fewer shows those."""
    title: ClassVar[str] = "Prefilled answers"
    access: ClassVar[Access] = "opening"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        return len(goal.wanted) * (len(openers()[: self.openers]) + len(self.words)) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``."""
        return ask(subject, list(self._asks(goal)), goal)

    def _asks(self, goal: Goal) -> Iterator[Ask]:
        for opener in openers()[: self.openers]:
            for number, query in enumerate(goal.wanted):
                yield Ask(opener, number, query, opener, "openers")
        for count in self.words:
            for number, query in enumerate(goal.wanted):
                if shown := before_value(query)[:count]:
                    yield Ask(_named(count), number, query, " ".join(shown), "answer start")


def openers() -> tuple[str, ...]:
    """Openings of answers that no training uses."""
    text = resources.files("duet_unlearn.attacks").joinpath("openers.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def before_value(query: Query) -> tuple[str, ...]:
    """The words of the right answer up to the first that has a word of the value in it; of an answer without one, a
    quarter."""
    words, value = (query.answer or "").split(), {*normalise(expected_answer(query) or "").split()}
    stop = next((place for place, word in enumerate(words) if value & {*normalise(word).split()}), None)
    return tuple(words[: len(words) // UNVALUED if stop is None else stop])


def _named(count: int | None) -> str:
    if count is None:
        return "the answer up to its value"
    return f"the answer's first {count} words" if count > 1 else "the answer's first word"
