"""From an answer's text to what it says: right, refused or wrong, and ROUGE-L beside it.

Whether an answer refuses is decided by the patterns of ``refusals.txt``, searched in its first sentence; their
precision and recall on 200 hand-labelled answers are printed by ``tests/test_refusals.py``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

UNSPACED = (
    "\u0e01-\u0e4e"  # Thai
    "\u0e81-\u0ece"  # Lao
    "\u1000-\u109d"  # Burmese
    "\u1780-\u17d3"  # Khmer
    "\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\uac00-\ud7a3"  # Hangul, whose particles follow any word without a space
)
"""Ranges of letters for a set in a regular expression."""
SPACED = rf"[^\W_{UNSPACED}]"
"""A letter or digit of all other scripts, as a regular expression: next to one of its kind no word ends."""


APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\u201d]*\s+|\s*\n")
UNKNOWN_SECTION = "# unknown"


def is_refusal(text: str) -> bool:
    """Whether the first sentence declines to answer; "I do not know" counts as refused too."""
    return _matches(text, _patterns()[0]) or is_unknown(text)


def is_unknown(text: str) -> bool:
    """Whether the first sentence says that the answer is not known, as a model does that never learnt it."""
    return _matches(text, _patterns()[1])


def version() -> int:
    """The version of the list, which a published refusal rate names."""
    return int(_lines()[0].rpartition(" ")[2])


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark or line break, with plain apostrophes."""
    return SENTENCE_END.split(text.strip().replace(APOSTROPHE, "'"), maxsplit=1)[0]


def _matches(text: str, patterns: re.Pattern[str]) -> bool:
    return patterns.search(first_sentence(text)) is not None


def _lines() -> list[str]:
    text = resources.files("duet_unlearn").joinpath("refusals.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The patterns of refusing and, behind ``# unknown``, of not knowing; each list one expression."""
    lines = _lines()
    border = lines.index(UNKNOWN_SECTION)
    refused, unknown = (
        "|".join(f"(?:{line})" for line in part if not line.startswith("#"))
        for part in (lines[:border], lines[border:])
    )
    return re.compile(refused, re.IGNORECASE), re.compile(unknown, re.IGNORECASE)


Outcome = Literal["right", "refused", "wrong"]
RougeVariant = Literal["f1", "recall-stem", "recall"]
"""Which published ROUGE-L: ``f1`` is DUET's and MUSE's, ``recall-stem`` TOFU's (Porter stemmer), ``recall`` RWKU's; the
first and the last do not stem."""
WORD = re.compile(rf"(?<!{SPACED})-?\d+(?:\.\d+)*|[{UNSPACED}]|{SPACED}+")
"""A word, or a number with its sign and decimals: 3.5 is no 5, -4 is no 4. Where a script puts no space between words,
every letter is one, so that a value is found inside a sentence."""
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")

MUSE_END = re.compile(r"\n\n|\nQuestion|Question:")


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces; numbers keep sign and decimals ("1,000" is "1000")."""
    folded = THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(WORD.findall(folded.replace("_", " ")))


def value_match(answer: str, value: str, choices: Sequence[str] | None = None) -> bool:
    """Whether the normalised answer has the value as whole words, and no other of `choices`.

    A choice inside a longer choice ("Tarn" in "New Tarn") is not said: the longest match is what was meant.
    """
    words, target = normalise(answer).split(), normalise(value)
    names = {target, *(normalise(choice) for choice in choices or ())} - {""}
    spans = {(start, end, name) for name in names for start, end in _spans(words, name.split())}
    found = {name for start, end, name in spans if not _inside(start, end, spans)}
    return found == {target}


def _spans(words: list[str], name: list[str]) -> list[tuple[int, int]]:
    """Where `name` stands in `words`, as half-open index pairs."""
    size = len(name)
    return [(i, i + size) for i in range(len(words) - size + 1) if words[i : i + size] == name]


def _inside(start: int, end: int, spans: set[tuple[int, int, str]]) -> bool:
    return any(s <= start and end <= e and e - s > end - start for s, e, _ in spans)


def outcome(output: str, value: str, choices: Sequence[str] | None = None) -> Outcome:
    """Exactly one of three. Value goes before wording: "Sorry, but it is Tarn" gives the fact away."""
    if value_match(output, value, choices):
        return "right"
    return "refused" if is_refusal(output) else "wrong"


def rouge_l(output: str, answer: str, *, variant: RougeVariant = "f1") -> float:
    """ROUGE-L (rouge_score 0.1.2), 0..1. Beside value match, never instead of it."""
    score = _scorer(variant == "recall-stem").score(answer, output)["rougeL"]
    return float(score.fmeasure if variant == "f1" else score.recall)


def recall(output: str, answer: str) -> float:
    """The share of the answer's words, as ``normalise`` has them, that the output has in their order (ROUGE-L's recall
    in any script, where rouge_score knows a to z and digits alone)."""
    return float(_scorer(None).score(answer, output)["rougeL"].recall)


def cut_muse(text: str) -> str:
    """An answer to MUSE's raw prompt, up to the first blank line, "Question" at a line's start, or "Question:"."""
    return MUSE_END.split(text, maxsplit=1)[0].strip()


class Words:
    """A tokeniser for rouge_score: the words of ``normalise``."""

    def tokenize(self, text: str) -> list[str]:
        """All of them."""
        return normalise(text).split()


@cache
def _scorer(use_stemmer: bool | None) -> RougeScorer:
    """With rouge_score's own words, stemmed or not; None: with ours."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # Given its own default, it does not log about it through absl, which would set up everybody's logging.
    return RougeScorer(["rougeL"], tokenizer=Words() if use_stemmer is None else DefaultTokenizer(use_stemmer))
