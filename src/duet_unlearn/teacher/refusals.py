"""Whether an answer refuses: the patterns of ``refusals.txt``, searched in the first sentence.

Their precision and recall on 200 hand-labelled answers are printed by ``tests/teacher/test_refusals.py``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

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
    text = resources.files("duet_unlearn.teacher").joinpath("refusals.txt").read_text(encoding="utf-8")
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
