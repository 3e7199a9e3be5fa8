"""What the verbs share: arguments that read the same everywhere, progress on stderr, results as text or JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from duet_unlearn.events import Event, OnEvent

RecipeArg = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or a packaged name (duet list recipes).")
]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that duet run wrote.")]
RunOrModelArg = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a model folder, a hub id or lab:base.")
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one setting of the recipe; may be repeated."),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RedactOpt = Annotated[
    bool,
    typer.Option("--redact", help="Leave questions and answers out, hash names; written next to it, as ..-redacted."),
]
KeepNameOpt = Annotated[bool, typer.Option("--keep-name", help="Redacted, but with the concept's name.")]
INTERVAL = 5.0
"""Seconds between two plain lines of one phase."""


@contextmanager
def progress(*, every: str | None = None) -> Iterator[OnEvent]:
    """A watcher for the length of one verb: bars where a person watches, plain lines where a file does.

    Args:
        every: As in ``plain_lines``.
    """
    if not sys.stderr.isatty():
        yield plain_lines(sys.stderr, every=every)
        return
    # Imported here, for rich is slow to import and most calls draw nothing.
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    name, text = TextColumn("[bold]{task.fields[phase]:<9}"), TextColumn("{task.description}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text)
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def draw(event: Event) -> None:
            if event.phase not in tasks:
                tasks[event.phase] = bars.add_task("", phase=event.phase, total=None)
            total, text = event.total or None, escape(event.text)
            bars.update(tasks[event.phase], completed=event.done, total=total, description=text)

        yield draw


def plain_lines(stream: TextIO, *, every: str | None = None, clock: Callable[[], float] = time.monotonic) -> OnEvent:
    """Writes a phase's first and last event, and one every ``INTERVAL`` seconds between; where there is a phase of
    which `every` event counts, those alone."""
    last: dict[str, float] = {}

    def write(event: Event) -> None:
        now = clock()
        ended = event.total > 0 and event.done >= event.total
        if every and event.phase != every:
            return
        if not every and event.phase in last and not ended and now - last[event.phase] < INTERVAL:
            return
        last[event.phase] = now
        count = f"{event.done}/{event.total} " if event.total else ""
        stream.write(f"{event.phase}: {count}{event.text}".rstrip(" :") + "\n")
        stream.flush()

    return write


def json_text(value: Any) -> str:
    """JSON of plain values or of a dataclass; NaN, the score of an empty set, is null."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(_without_nan(plain), indent=2, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def pairs_text(pairs: Mapping[str, str]) -> str:
    """Name and description, one a line; a description's further lines are indented under its first."""
    width = max(map(len, pairs), default=0)
    indented = {name: text.replace("\n", "\n" + " " * (width + 2)) for name, text in pairs.items()}
    return "\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in indented.items())
