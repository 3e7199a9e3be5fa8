"""Two subjects and a detector that says which of them is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from duet_unlearn.data.query import Message
from duet_unlearn.evals.generate import Until
from duet_unlearn.evals.subject import Subject, TokenScores
from duet_unlearn.teacher.decoding import Decoding

Said = TypeVar("Said")


class Detects(Protocol):
    """Says of each prompt whether it is about what is to be forgotten."""

    def __call__(self, messages: Sequence[Sequence[Message]], *, batch_size: int) -> list[bool]: ...


@dataclass(frozen=True)
class Routed:
    """Prompts that a detector takes for forget queries go to one subject, all others to another.

    The detector reads the prompt alone: no opening of the answer, nothing that is generated.
    """

    name: str
    detects: Detects
    detected: Subject
    others: Subject

    @property
    def model(self) -> None:
        """See ``Subject``."""
        return

    def about(self, concept: str | None) -> Routed:
        """See ``Subject``."""
        return replace(self, detected=self.detected.about(concept), others=self.others.about(concept))

    def decoded(self, how: Decoding) -> Routed:
        """See ``Subject``."""
        return replace(self, detected=self.detected.decoded(how), others=self.others.decoded(how))

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
        until: Until = "example",
    ) -> list[str]:
        """See ``Subject``."""

        def say(subject: Subject, chosen: list[int]) -> list[str]:
            return subject.generate(
                [messages[i] for i in chosen],
                prefill=None if prefill is None else [prefill[i] for i in chosen],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                until=until,
            )

        return self._each(messages, batch_size, say)

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        """See ``Subject``."""

        def say(subject: Subject, chosen: list[int]) -> list[float]:
            return subject.logps(*_those(chosen, messages, answers), batch_size=batch_size)

        return self._each(messages, batch_size, say)

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """See ``Subject``."""

        def say(subject: Subject, chosen: list[int]) -> list[list[float]]:
            return subject.letter_logps(*_those(chosen, messages, letters), batch_size=batch_size)

        return self._each(messages, batch_size, say)

    def token_scores(
        self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int
    ) -> list[TokenScores]:
        """See ``Subject``."""

        def say(subject: Subject, chosen: list[int]) -> list[TokenScores]:
            return subject.token_scores(*_those(chosen, messages, answers), batch_size=batch_size)

        return self._each(messages, batch_size, say)

    def _each(
        self,
        messages: Sequence[Sequence[Message]],
        batch_size: int,
        say: Callable[[Subject, list[int]], list[Said]],
    ) -> list[Said]:
        """What the chosen subject says to each prompt, in their order; a subject without prompts is not asked."""
        distinct = {id(m): m for m in messages}  # a question with several answers is one object
        found = dict(zip(distinct, self.detects(list(distinct.values()), batch_size=batch_size), strict=True))
        said: dict[int, Said] = {}
        for subject, wanted in ((self.detected, True), (self.others, False)):
            if chosen := [i for i, m in enumerate(messages) if found[id(m)] is wanted]:
                said |= zip(chosen, say(subject, chosen), strict=True)
        return [said[i] for i in range(len(messages))]


def _those(chosen: Sequence[int], *columns: Sequence[Any]) -> list[list[Any]]:
    """The chosen rows of each column."""
    return [[column[i] for i in chosen] for column in columns]
