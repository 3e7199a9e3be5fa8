"""What a watcher is told: every run that was finished, by whomever, and the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from duet_unlearn.events import Event, OnEvent, duration_text
from duet_unlearn.sweep.estimate import seconds_left
from duet_unlearn.sweep.tasks import Row, Sweep, Task

SWEEP, NOW = "sweep", "now"
"""Phases of the events: a run was finished; what this worker is doing this moment."""


@dataclass
class Board:
    """The state of a sweep as it was last told."""

    sweep: Sweep
    on_event: OnEvent
    workers: Callable[[], int]
    """How many are at work."""
    seen: set[Task] = field(default_factory=set, init=False)
    left: str = field(default="", init=False)

    def begin(self) -> None:
        """Take what is done already as told."""
        self.seen = {task for task in self.sweep.tasks() if self.sweep.done(task)}
        self.left = duration_text(seconds_left(self.sweep, workers=self.workers()))
        self._tell("", f"{self.left} left")

    def look(self) -> None:
        """Tell every run that was finished since."""
        fresh = [(task, row) for task in self.sweep.tasks() if task not in self.seen and (row := self.sweep.row(task))]
        if fresh:
            self.left = duration_text(seconds_left(self.sweep, workers=self.workers()))
        for task, row in fresh:
            self.seen.add(task)
            self._tell(task.about, f"{outcome(row)}; {self.left} left")

    def inner(self, task: Task, event: Event) -> None:
        """Tell what this worker is at."""
        text = f"{task.about}: {event.phase}; {self.left} left"
        self.on_event(Event(NOW, event.done, event.total, text))

    def _tell(self, name: str, text: str) -> None:
        self.on_event(Event(SWEEP, len(self.seen), self.sweep.num_runs, f"{name}: {text}" if name else text))


def outcome(row: Row) -> str:
    """A run's result in some words."""
    if row["failed"]:
        return f"failed: {row['failed']}"
    time = duration_text(row["seconds"]["total"])
    if row["kind"] == "tune":
        return f"score {row['score']:.3f} (forgot {1 - row['forget']:.0%}, kept {row['keep']:.0%}) in {time}"
    return f"done in {time}"
