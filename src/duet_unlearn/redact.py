"""Evidence without the secret: what stands in a report, an audit or attack results in place of words that nobody may
read, and whether a run's words are there at all."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from duet_unlearn.answers import SPACED, UNSPACED
from duet_unlearn.errors import UserError

Shown = Literal["everything", "scores and name", "scores"]
"""What evidence holds: words and scores; scores and the concept's name; scores alone."""
PURGED = "PURGED"
"""File that says that a run's words were deleted; written last."""
PURGING = ".purge"
"""Folder with what a purged run will hold; while it is there, a purge is under way."""
MIN_LETTERS = 3
"""Letters and digits of a word that is looked for in running text; a shorter one tells nothing there, and is common.
Where a whole field is secret, it is replaced however short."""
COMMON = frozenset(
    "about and any anything books data everything facts film films for from her his how knowledge movies novel novels"
    " of on series stories story text texts that the their this topic what who with world".split()
)
"""Words of a concept's name that name nothing by themselves."""


@dataclass(frozen=True)
class Redactor:
    """Replaces words by their keyed hash. One key gives one text one hash, so that a reader sees what is the same
    without seeing what it is. A plain hash would not do: who has a list of names or towns hashes them all, and
    compares. So the key is drawn at random, kept nowhere, and gone with the process."""

    key: bytes
    secrets: tuple[str, ...] = ()
    """Texts that are replaced wherever they stand in running text, as whole words, in any case."""

    def hashed(self, text: str) -> str:
        """A text's name in the evidence: the first 12 digits of its HMAC-SHA256, in brackets; nothing of nothing."""
        if not text:
            return ""
        return f"[{hmac.new(self.key, text.encode('utf-8', 'replace'), hashlib.sha256).hexdigest()[:12]}]"

    def swept(self, text: str) -> str:
        """A text with each of the secrets in it replaced by its hash."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: self.hashed(found[0].casefold()), text)

    def swept_all(self, value: Any) -> Any:
        """The texts in a JSON value swept; keys and numbers stay."""
        if isinstance(value, str):
            return self.swept(value)
        if isinstance(value, Mapping):
            return {key: self.swept_all(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.swept_all(inner) for inner in value]
        return value

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        words = [re.findall(r"[^\W_]+", text) for text in self.secrets]
        long = {tuple(word.casefold() for word in one) for one in words if _is_telling("".join(one))}
        if not long:
            return None
        # Longest first, so that a phrase is one hash.
        parts = map(_phrase_pattern, sorted(long, key=lambda one: (-len("".join(one)), one)))
        return re.compile("|".join(parts), re.IGNORECASE)


def _is_telling(letters: str) -> bool:
    """Whether it is long enough to be looked for; a letter of a script without spaces counts for more than others."""
    return len(letters) + len(re.findall(f"[{UNSPACED}]", letters)) >= MIN_LETTERS


def _phrase_pattern(words: Sequence[str]) -> str:
    """A phrase as a regular expression: between its words anything may stand or nothing, as in a file's name; around it
    neither a letter nor a digit, unless its script knows no borders of words."""
    begins, ends = (re.match(SPACED, letter) for letter in (words[0][0], words[-1][-1]))
    inside = r"[\W_]*".join(map(re.escape, words))
    return f"{f'(?<!{SPACED})' if begins else ''}{inside}{f'(?!{SPACED})' if ends else ''}"


def redactor(texts: Iterable[str] = (), names: Iterable[str] = (), *, key: bytes | None = None) -> Redactor:
    """A redactor of `texts`, and of `names` of concepts and the words that they consist of; a fresh key if none is
    given."""
    named = [part for name in names for part in parts_of(name)]
    return Redactor(key or secrets.token_bytes(32), tuple(dict.fromkeys([*texts, *named])))


def parts_of(name: str) -> list[str]:
    """A concept's name and what in it names something: "the story Amber Gate" -> that, "Amber Gate", "Amber", "Gate".

    Where it has no capitals, every word counts that is not common.
    """
    words = re.findall(r"[^\W_]+", name)
    capital = [word for word in words if word[:1].isupper() and word.casefold() not in COMMON]
    own = capital or [word for word in words if word.casefold() not in COMMON]
    runs = re.findall(r"(?:\b[^\W_a-z]\w*[ _-]?){2,}", name)
    return list(dict.fromkeys([name, *(run.strip() for run in runs), *own]))


def redacted_attack(stored: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    """An attack's stored result without a word of the prompts and answers; scores, marks, status and cost stay.

    Facts and the transcript become hashes. What follows from the questions or the concept, and could be found by
    trying (the goal's hash; the identity of base + prefix), is hashed again, with the key.
    """
    found = by.swept_all(dict(stored))
    found["facts"] = [by.hashed(fact) for fact in stored.get("facts", [])]
    found["transcript"] = [
        row | {part: by.hashed(row[part]) for part in ("prompt", "prefill", "output")}
        for row in stored.get("transcript", [])
    ]
    for part in ("goal", "weights"):
        if part in stored:
            known = part == "weights" and "+" not in str(stored[part])
            found[part] = found[part] if known else by.hashed(str(stored[part]))
    return found


def require_not_purged(folder: Path) -> None:
    """Check that a run was not purged.

    Raises:
        UserError: it was, or a purge of it was stopped.
    """
    if (folder / PURGED).exists():
        raise UserError(
            f"{folder}: this run was purged: its questions, answers, samples and checkpoints are deleted",
            "audit-redacted.html there says what was measured, model/ is its student; for more, run the recipe anew",
        )
    if (folder / PURGING).exists():
        raise UserError(f"{folder}: a purge of this run was stopped half-way", f"finish it with: duet purge {folder}")


__all__ = ["PURGED", "PURGING", "Redactor", "Shown", "parts_of", "redacted_attack", "redactor", "require_not_purged"]
