"""The unit of all data: one question to a model."""

from __future__ import annotations

from dataclasses import dataclass

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``, or one message of role ``text``: raw text, no
template."""


@dataclass(frozen=True)
class Query:
    """One question. Forgetting needs `messages` alone; the rest is for scoring."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    """The full right answer; of a letter question, the letter."""
    value: str | None = None
    """The fact inside the answer, for value match (a short answer is its own); of a letter question, the right
    option."""
    choices: tuple[str, ...] | None = None
    """All values that the fact could take, the right one included; of a letter question, its options in order."""
    source: str = ""
    """What the query is about: a story, a subject, a file."""
    split: str = ""
    request: str = ""
    """Id of the deletion request that it belongs to; results are given for each request too."""
    concept: str | None = None
    """What the prefix names for this query, where requests differ; None: the recipe's concept."""
    paraphrase: str | None = None
    """The right answer in other words (TOFU's truth ratio)."""
    wrong: tuple[str, ...] | None = None
    """Wrong answers of the same form (TOFU's truth ratio, probability among options)."""

    @property
    def text(self) -> str:
        """What the user says last."""
        return self.messages[-1]["content"]
