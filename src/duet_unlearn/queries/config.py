"""The settings of an extraction, and the prompts of this package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from duet_unlearn.errors import UserError


def packaged(name: str) -> str:
    """A prompt of this package, by the name of its file."""
    text = resources.files("duet_unlearn.queries").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    return text.strip()


def fill(prompt: str, **values: str) -> str:
    """A prompt with its `{fields}` put in; other braces stay, in the prompt and in the values."""
    return re.sub(r"\{(\w+)\}", lambda field: values.get(field[1], field[0]), prompt)


@dataclass(frozen=True)
class ExtractConfig:
    """How questions are asked for and chosen. All defaults are ours.

    Raises:
        UserError: an instruction without `{passage}`, a number below its least.
    """

    count: int = 100
    """Forget queries that are wanted: the paper's number."""
    per_chunk: int = 5
    """Questions asked for at a time: `{n}` of the instruction."""
    chunk: int = 1200
    """Characters of a chunk at most, in whole sentences; 1: every sentence by itself."""
    instructions: tuple[str, ...] = ()
    """What the writer is told, with `{passage}`, `{concept}` and `{n}` in it; several take turns. Empty: the
    packaged one."""
    passes: int = 10
    """How often a chunk is asked at most, as long as questions are missing and new ones come."""
    temperature: float = 0.7
    """Of all passes after the first with each instruction, which are greedy."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    check: Literal["words", "model"] = "words"
    """Who says whether a question is on the concept: its words, or its words and then the writer, asked yes or no."""
    retain: int = 0
    """Retain queries: half about neighbours of the concept, half general ones, which fill up where neighbours lack."""
    paraphrases: int = 0
    """Other wordings of each forget query, never to be trained on."""
    seed: int = 0
    """Of the sampling, and of the choice of general questions."""

    def __post_init__(self) -> None:
        for text in self.instructions:
            if "{passage}" not in text:
                raise UserError(f"the instruction {text[:60]!r} has no {{passage}}", "say where the passage goes")
        least = {
            "count": 1,
            "per_chunk": 1,
            "chunk": 1,
            "passes": 1,
            "max_new_tokens": 1,
            "retain": 0,
            "paraphrases": 0,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"{name} is {getattr(self, name)}", f"it is at least {value}")

    def instruction(self, turn: int) -> str:
        """The wording of a pass."""
        return self.wordings[turn % len(self.wordings)]

    @property
    def wordings(self) -> tuple[str, ...]:
        return self.instructions or (packaged("ask"),)
