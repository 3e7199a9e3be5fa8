"""What the steps of one extraction share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from duet_unlearn.data.corpus import Chunk
from duet_unlearn.events import Event, OnEvent
from duet_unlearn.queries.choose import spread
from duet_unlearn.queries.config import ExtractConfig
from duet_unlearn.queries.filters import Ground
from duet_unlearn.queries.notes import Ask, Notes
from duet_unlearn.queries.writer import Writer


@dataclass
class Work:
    """What the steps of one extraction share."""

    chunks: Sequence[Chunk]
    concept: str
    config: ExtractConfig
    writer: Writer
    notes: Notes
    on_event: OnEvent
    written: dict[int, list[str]] = field(default_factory=dict)
    """Chunk -> usable questions, in order."""
    dropped: Counter[str] = field(default_factory=Counter)
    silent: set[int] = field(default_factory=set)
    """Chunks that say nothing about the concept."""
    off: set[tuple[int, str]] = field(default_factory=set)
    """(chunk, question) that the model found to be off the concept."""

    @cached_property
    def grounds(self) -> dict[str, Ground]:
        """Concept -> what its questions may speak of."""
        texts = {id(chunk.document): chunk.document.text for chunk in self.chunks}
        corpus = Ground.of("", texts.values()).corpus
        return {concept: Ground(concept, corpus) for concept in {self.concept_of(i) for i in range(len(self.chunks))}}

    @cached_property
    def groups(self) -> list[list[int]]:
        """The chunks of each request, each in an order whose every beginning is even over the request."""
        found: dict[str, list[int]] = {}
        for number, chunk in enumerate(self.chunks):
            found.setdefault(chunk.document.request, []).append(number)
        return [spread([group]) for group in found.values()]

    @cached_property
    def order(self) -> list[int]:
        """All chunks, requests by turns."""
        return [row[turn] for turn in range(max(map(len, self.groups))) for row in self.groups if turn < len(row)]

    def concept_of(self, number: int) -> str:
        return self.chunks[number].document.concept or self.concept

    def ask(self, asks: Sequence[Ask], phase: str, *, text: str = "", max_new_tokens: int | None = None) -> list[str]:
        """Answers of the writer, with an event a batch."""
        self.on_event(Event(phase, 0, len(asks), text))
        return self.notes.ask(
            self.writer,
            asks,
            seed=self.config.seed,
            max_new_tokens=max_new_tokens or self.config.max_new_tokens,
            on_batch=lambda done: self.on_event(Event(phase, done, len(asks), text)),
        )
