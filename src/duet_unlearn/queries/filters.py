"""Why a written question is not used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from duet_unlearn.queries.words import IMPERATIVES, content, names, words

Reason = Literal[
    "no question",
    "too long",
    "speaks of the text",
    "a name that is not in the corpus",
    "off the concept",
    "off the concept, says the model",
    "near-duplicate",
]
LONGEST = 40
"""Words of a question; more is a task, or a question with its answer."""
SHORTEST = 3
TEXT = "passage|text|excerpt|extract|snippet|paragraph"
ABOUT_TEXT = re.compile(
    rf"\b(?:the|this|that|given|above|following|provided) (?:{TEXT})s?\b"
    r"|\b(?:this|given|above|following|provided) (?:article|chapter|document|line|page|section|sentence|statement)s?\b"
    r"|\baccording to the (?:article|author|chapter|document|narrator|page|section)\b"
    r"|\b(?:mentioned|described|stated) (?:above|here)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ground:
    """What a question may speak of: the concept, and the words and names of the corpus."""

    concept: str
    corpus: str
    """All the corpus's words, each with a space on both sides."""

    @classmethod
    def of(cls, concept: str, texts: Iterable[str]) -> Ground:
        return cls(concept, f" {' '.join(word for text in texts for word in words(text))} ")


def reason_against(question: str, passage: str, ground: Ground) -> Reason | None:
    """Why a question about a passage is not used, or None.

    On the concept is what shares a content word with the passage or the concept, and names nobody whom the corpus does
    not name: a run of capitalised words stands in the corpus as it is, or all its words in passage and concept.
    """
    if reason := reason_against_form(question):
        return reason
    if ABOUT_TEXT.search(question):
        return "speaks of the text"
    near = content(passage) | content(ground.concept)
    for name in names(question):
        if f" {' '.join(name)} " not in ground.corpus and not near.issuperset(name):
            return "a name that is not in the corpus"
    return None if content(question) & near else "off the concept"


def reason_against_form(question: str) -> Reason | None:
    """Why a line is not used, whatever it is about: it neither ends as a question nor begins as a request."""
    said = words(question)
    asks = question.endswith(("?", "\uff1f", "\u061f")) or (said and said[0] in IMPERATIVES and question.endswith("."))
    if not asks or len(said) < SHORTEST:
        return "no question"
    return "too long" if len(said) > LONGEST else None


def key_names(concept: str, questions: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """What a retain question must not say: the names in the concept (all its content words where it has none), and
    those in the forget questions."""
    own = names(concept) or frozenset((word,) for word in content(concept))
    return own.union(*(names(question) for question in questions))


def says_any(question: str, forbidden: Iterable[tuple[str, ...]]) -> bool:
    """Whether one of the names stands in a question, as whole words."""
    said = f" {' '.join(words(question))} "
    return any(f" {' '.join(name)} " in said for name in forbidden)
