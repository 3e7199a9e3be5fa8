"""Multiple choice by likelihood: which letter, or which option's text, a model holds most likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Subject

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Per = Literal["raw", "byte", "character"]
"""What a log-probability is divided by: 1, the text's UTF-8 bytes (lm-eval ``acc_bytes``) or characters
(``acc_norm``)."""


def letters_of(query: Query) -> tuple[str, ...]:
    """A letter question's letters, in the order of its options.

    Raises:
        UserError: the query has no options, or its answer is none of their letters.
    """
    letters = tuple(LETTERS[: len(query.choices or ())])
    if query.answer not in letters:
        raise UserError(
            f"query {query.id!r} is no letter question",
            "it needs `choices` (the options in order) and `answer` (the letter of the right one)",
        )
    return letters


def options_of(query: Query) -> tuple[str, ...]:
    """The option texts of a query.

    Raises:
        UserError: no options, or the right value is not among them.
    """
    if not query.choices or query.value not in query.choices:
        raise UserError(
            f"query {query.id!r} has no options to choose from",
            "it needs `choices` (the options) and `value` (the right one's text)",
        )
    return query.choices


def letter_logps(subject: Subject, queries: Sequence[Query], *, batch_size: int) -> list[list[float]]:
    """Per query, log p of each letter."""
    letters = [letters_of(query) for query in queries]
    return subject.letter_logps([query.messages for query in queries], letters, batch_size=batch_size)


def text_logps(subject: Subject, queries: Sequence[Query], *, batch_size: int) -> list[list[float]]:
    """Per query, the summed log p of each option's text as the answer."""
    pairs = [(query, option) for query in queries for option in options_of(query)]
    flat = iter(subject.logps([q.messages for q, _ in pairs], [o for _, o in pairs], batch_size=batch_size))
    return [[next(flat) for _ in options_of(query)] for query in queries]


def pick(logps: Sequence[float], options: Sequence[str], *, per: Per = "raw") -> str:
    """The likeliest option; of equal ones the first."""
    scaled = [logp / _length(option, per) for logp, option in zip(logps, options, strict=True)]
    return options[scaled.index(max(scaled))]


def _length(option: str, per: Per) -> int:
    if per == "raw":
        return 1
    return len(option.encode()) if per == "byte" else len(option)
