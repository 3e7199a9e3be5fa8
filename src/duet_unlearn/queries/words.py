"""Words of questions: normalised, the ones that carry content, the names, and how alike two questions are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
"""A word; where words are written without spaces between them, a character."""
POSSESSIVE = re.compile("['\u2019](?:s\\b)?")
IMPERATIVES = frozenset(
    "ask define describe explain give identify list mention name say state summarise summarize tell write".split()
)
"""First words of a question that has no question mark."""
STOPWORDS = IMPERATIVES | frozenset(
    """a about after all also an and any are as at be been before being between both but by can could did do does during
    each else ever for from had has have he her hers him his how i if in into is it its itself many may me might more
    most much my no not of off on one only or other our out over own shall she should so some such than that the their
    them then there these they this those through to too under up us was we were what when where which while who whom
    whose why will with would you your""".split()
)
SIMILAR = 0.75
"""Likeness from which two questions count as one, ours: on the lab, four wordings of a question differ by more."""


@lru_cache(4096)
def words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation and possessive endings."""
    return tuple(WORD.findall(POSSESSIVE.sub(" ", unicodedata.normalize("NFKC", text)).casefold()))


@lru_cache(4096)
def content(text: str) -> frozenset[str]:
    """The words that say what a text is about."""
    return frozenset(words(text)) - STOPWORDS


@lru_cache(4096)
def names(text: str) -> frozenset[tuple[str, ...]]:
    """Runs of words with a capital letter, and numbers of three digits or more: what a question must not invent.

    The first word counts only where it is no common word. In a language that writes every noun with a capital, a
    noun is a name too.
    """
    text, runs, end = POSSESSIVE.sub(" ", unicodedata.normalize("NFKC", text)), [], -1
    for place in WORD.finditer(text):
        word = place[0]
        capital = word[0].isupper() and word.casefold() not in STOPWORDS
        if not capital and not (word.isdigit() and len(word) > 2):
            end = -1
            continue
        if end >= 0 and not text[end : place.start()].strip("- "):
            runs[-1].append(word.casefold())
        else:
            runs.append([word.casefold()])
        end = place.end()
    return frozenset(tuple(run) for run in runs)


def alike(one: str, other: str) -> float:
    """0..1: how far two questions are the same: the lower of two shares.

    Jaccard index of their content words, and F1 of the longest common subsequence of all their words (ROUGE-L, by which
    Self-Instruct drops likes, arXiv 2212.10560). The first keeps apart what differs in a name alone, the second
    what asks for another thing, or in other words, about the same name.
    """
    left, right = content(one), content(other)
    shared = len(left & right) / len(left | right) if left | right else 1.0
    return min(shared, _common(words(one), words(other))) if shared >= SIMILAR else shared


def _common(left: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the longest common subsequence."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        new = [0]
        for column, (diagonal, above) in enumerate(pairwise(lengths)):
            new.append(diagonal + 1 if word == right[column] else max(above, new[-1]))
        lengths = new
    return 2 * lengths[-1] / (len(left) + len(right)) if left or right else 1.0
