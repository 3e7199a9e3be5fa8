"""How library code reports its progress: one kind of event, and no terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """How far one phase of the work is."""

    phase: str
    """Short name of the phase: probe, targets, train, evaluate, report, lab."""
    done: int
    """Units finished: steps, queries or answers."""
    total: int
    """Units in all; 0 where that is not known."""
    text: str = ""
    """One short line about now, such as the loss or the subject being asked."""


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Does nothing: the default of every `on_event`."""


def duration_text(seconds: float) -> str:
    """A time as it is said: ``40 s``, ``12 min``, ``1 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
