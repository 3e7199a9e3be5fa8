"""What a run wants of its benchmarks."""

from __future__ import annotations

from typing import NamedTuple


class Ask(NamedTuple):
    folder: str | None
    """The recipe's `data.folder`."""
    limit: int | None
    """Questions of a set at most; None: all."""
    shots: int
    """Solved examples before an MMLU question."""
    concept: str
    """What the recipe forgets: RWKU's person."""
    trained: frozenset[str]
    """Ids of the queries that are trained on, which a benchmark of its own questions leaves out."""
