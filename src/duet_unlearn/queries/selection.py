"""One question at a time, and then all of them: how questions are read out of a model's answer, why one is not used,
how alike two are, and which are chosen so that they cover a corpus evenly."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

MAX_WORDS = 40
"""Words of a question; more is a task, or a question with its answer."""
MIN_WORDS = 3
SIMILAR = 0.75
"""Likeness from which two questions count as one, ours: on the lab, four wordings of a question differ by more."""
GOLDEN = (5**0.5 - 1) / 2

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

THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
MARK = re.compile(r"^(?:[-*+\u2022\u2013]\s+|\(?\d{1,3}[.):]\s*|(?:Q|Question)\s*\d*\s*[.:)]\s*)", re.IGNORECASE)
ANSWER = re.compile(r"(?<=[?.])\s*(?:\(?(?:A|Answer)\s*[:)].*|\([^()]*\))$", re.IGNORECASE)
"""What stands behind a question on its line: its answer, or a remark in brackets."""
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
WRAPPING = "\"'`*_\u201c\u201d\u2018\u2019\u00ab\u00bb, "
TEXT = "passage|text|excerpt|extract|snippet|paragraph"
ABOUT_TEXT = re.compile(
    rf"\b(?:the|this|that|given|above|following|provided) (?:{TEXT})s?\b"
    r"|\b(?:this|given|above|following|provided) (?:article|chapter|document|line|page|section|sentence|statement)s?\b"
    r"|\baccording to the (?:article|author|chapter|document|narrator|page|section)\b"
    r"|\b(?:mentioned|described|stated) (?:above|here)\b",
    re.IGNORECASE,
)


def parse_questions(answer: str) -> list[str]:
    """The lines of an answer, each without its number, bullet, quotes and answer; of a JSON list, its items.

    Whether a line is a question is for ``reason_against`` to say.
    """
    text = THOUGHT.sub("", answer).strip()
    listed = _json_items(text)
    questions = []
    for line in text.splitlines() if listed is None else listed:
        bare = line.strip().strip(WRAPPING).strip()
        # A list in a list has two marks: "- 1. Who ..".
        while mark := MARK.match(bare):
            bare = bare[mark.end() :].strip(WRAPPING)
        bare = "" if bare.startswith("```") else ANSWER.sub("", bare).strip(WRAPPING)
        questions += [bare] if bare else []
    return questions


def _json_items(text: str) -> list[str] | None:
    """The items of a JSON list, even of one that was cut off; None where there is no list."""
    start = text.find("[")
    if start < 0 or not re.fullmatch(r"\s*(?:```\w*\s*)?", text[:start]):
        return None
    try:
        found = json.loads(text[start : text.rfind("]") + 1])
    except json.JSONDecodeError:
        return QUOTED.findall(text[start:])
    return [str(item.get("question", "")) if isinstance(item, dict) else str(item) for item in found]


@lru_cache(4096)
def normal_words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation and possessive endings."""
    return tuple(WORD.findall(POSSESSIVE.sub(" ", unicodedata.normalize("NFKC", text)).casefold()))


def spaced(words: Iterable[str]) -> str:
    """Words with a space on both sides of each, so that whole words are found by ``in``."""
    return f" {' '.join(words)} "


@lru_cache(4096)
def content_words(text: str) -> frozenset[str]:
    """The words that say what a text is about."""
    return frozenset(normal_words(text)) - STOPWORDS


@lru_cache(4096)
def names_in(text: str) -> frozenset[tuple[str, ...]]:
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


def reason_against(question: str, passage: str, *, concept: str, corpus: str) -> str | None:
    """Why a question about a passage is not used, or None.

    On the concept is what shares a content word with the passage or the concept, and names nobody whom the corpus does
    not name: a run of capitalised words stands in the corpus as it is, or all its words in passage and concept.

    Args:
        corpus: The ``spaced`` words of all the corpus.
    """
    if reason := reason_against_form(question):
        return reason
    if ABOUT_TEXT.search(question):
        return "speaks of the text"
    near = content_words(passage) | content_words(concept)
    for name in names_in(question):
        if spaced(name) not in corpus and not near.issuperset(name):
            return "a name that is not in the corpus"
    return None if content_words(question) & near else "off the concept"


def reason_against_form(question: str) -> str | None:
    """Why a line is not used, whatever it is about: it neither ends as a question nor begins as a request."""
    words = normal_words(question)
    is_request = bool(words) and words[0] in IMPERATIVES and question.endswith(".")
    if not (question.endswith(("?", "\uff1f", "\u061f")) or is_request) or len(words) < MIN_WORDS:
        return "no question"
    return "too long" if len(words) > MAX_WORDS else None


def key_names(concept: str, questions: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """What a retain question must not say: the names in the concept (all its content words where it has none), and
    those in the forget questions."""
    own = names_in(concept) or frozenset((word,) for word in content_words(concept))
    return own.union(*(names_in(question) for question in questions))


def says_any(question: str, forbidden: Iterable[tuple[str, ...]]) -> bool:
    """Whether one of the names stands in a question, as whole words."""
    text = spaced(normal_words(question))
    return any(spaced(name) in text for name in forbidden)


def alike(one: str, other: str) -> float:
    """0..1: how far two questions are the same: the lower of two shares.

    Jaccard index of their content words, and F1 of the longest common subsequence of all their words (ROUGE-L, by which
    Self-Instruct drops likes, arXiv 2212.10560). The first keeps apart what differs in a name alone, the second
    what asks for another thing, or in other words, about the same name.
    """
    left, right = content_words(one), content_words(other)
    shared = len(left & right) / len(left | right) if left | right else 1.0
    # The subsequence is slow, and only the lower share counts.
    return min(shared, _rouge_l(normal_words(one), normal_words(other))) if shared >= SIMILAR else shared


def _rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the longest common subsequence. Not rouge_score's: its tokeniser drops every letter that is not a-z."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        new = [0]
        for column, (diagonal, above) in enumerate(pairwise(lengths)):
            new.append(diagonal + 1 if word == right[column] else max(above, new[-1]))
        lengths = new
    return 2 * lengths[-1] / (len(left) + len(right)) if left or right else 1.0


def is_new(question: str, others: Iterable[str]) -> bool:
    """Whether a question is like none of the others."""
    return not any(alike(question, other) >= SIMILAR for other in others)


def choose(
    written: Mapping[int, Sequence[str]], groups: Sequence[Sequence[int]], *, count: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """`count` questions at most: round and round the groups, and in each round the chunks of a group.

    A question that is like a chosen one costs its chunk no turn: the chunk's next question is tried.

    Returns:
        (chunk, question) of those that are chosen, in that order; and of those that are like one of them.
    """
    kept: list[tuple[int, str]] = []
    duplicates: list[tuple[int, str]] = []
    left = {chunk: deque(questions) for chunk, questions in written.items()}
    turns = [deque(chunk for chunk in group if chunk in left) for group in groups]
    while len(kept) < count and (turns := [turn for turn in turns if turn]):
        for turn in turns:
            chosen = False
            while turn and not chosen and len(kept) < count:
                chunk = turn.popleft()
                while left[chunk] and not chosen:
                    question = left[chunk].popleft()
                    chosen = is_new(question, (other for _, other in kept))
                    (kept if chosen else duplicates).append((chunk, question))
                if chosen:
                    turn.append(chunk)
    return kept, duplicates


def spread(groups: Iterable[Sequence[int]]) -> list[int]:
    """All members of the groups in an order whose every beginning is even over the groups and along each of them.

    Along a group: by the fractional part of the place times the golden ratio, which leaves no large gaps.
    """
    queues = [deque(sorted(group, key=lambda item: (group.index(item) * GOLDEN) % 1)) for group in groups]
    found = []
    while queues := [queue for queue in queues if queue]:
        found += [queue.popleft() for queue in queues]
    return found
