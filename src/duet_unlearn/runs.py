"""The run folder: where everything of one run lies, who may write into it, and how its files are written.

``recipe.yaml`` is written first and decides what the folder is; ``DONE`` is last and means that all is there. Between
the two, one process at a time holds the folder's lock.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from duet_unlearn.data.files import atomic_write_json, atomic_write_text, disk_errors
from duet_unlearn.errors import UserError
from duet_unlearn.redact import require_not_purged

LOCK = ".lock"
"""The file that the process at work has locked; in it stands who that is."""
SUITE = "suite.json"
"""The file by which a folder of many runs is a sweep's."""
PACKAGES = (
    "duet-unlearn",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "safetensors",
    "rouge-score",
)


class _Inside:
    """A path inside a run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, _kind: type[Run] | None = None) -> Path:
        return run.path / self.name


class InUse(UserError):
    """Another process is at work in a run folder."""


@dataclass(frozen=True)
class Run:
    """A run folder and the paths in it, none of which needs to exist yet."""

    path: Path
    """The folder."""

    recipe = _Inside("recipe.yaml")
    """The resolved recipe."""
    env = _Inside("env.json")
    """Versions, device, seed and hashes."""
    metrics = _Inside("metrics.jsonl")
    """One line a training step."""
    probe = _Inside("probe.json")
    """What the prefix does, before training."""
    targets = _Inside("targets")
    """The teacher's cached logits."""
    picks = _Inside("picks")
    """Which row of each pool an epoch met, one file an epoch, of methods that have pools."""
    checkpoints = _Inside("checkpoints")
    """Where a killed run goes on from."""
    model = _Inside("model")
    """The student, in `save_pretrained` form."""
    subject = _Inside("subject")
    """What a method that changes no weights puts beside the model: detector, assistant, examples."""
    samples = _Inside("samples")
    """Every answer that was scored, one file a subject."""
    evals = _Inside("evals")
    """Scores, one file a subject."""
    timings = _Inside("timings.json")
    """Seconds and peak memory of each phase."""
    report = _Inside("report.html")
    """The page."""
    done = _Inside("DONE")
    """Its existence means that the run is finished."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.done.exists()


def find_run(path: Path | str) -> Run:
    """The run that lies in a folder.

    Raises:
        UserError: there is none, or it was purged.
    """
    run = Run(Path(path))
    require_not_purged(run.path)
    if not run.recipe.is_file():
        problem = "is no run folder" if run.path.exists() else "no such folder"
        raise UserError(f"{run.path}: {problem}", "name a folder that `duet run` wrote; it has a recipe.yaml")
    return run


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run folder, which is made if need be, for the length of a block.

    The system lets go of the lock of a process that is gone, even of one that was killed; the file that it leaves
    behind hinders nobody.

    Raises:
        InUse: another process holds it.
    """
    path = run.path / LOCK
    with disk_errors(path):
        run.path.mkdir(parents=True, exist_ok=True)
        # Read first: older versions of filelock empty the file before they find it locked.
        holder = path.read_text(encoding="utf-8") if path.exists() else ""
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InUse(
                f"{run.path}: {holder or 'another process'} is at work in this folder",
                "wait until it has ended, or stop it; then give the same command again",
            ) from None
    try:
        with disk_errors(path):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # Only a finished run may lose the file: who has it open by now would lock what nobody else can see, but finds
        # nothing left to do.
        if run.finished:
            path.unlink(missing_ok=True)
        lock.release()


def append_metrics(run: Run, row: Mapping[str, Any]) -> None:
    """Add one row to ``metrics.jsonl``: a whole line in one write."""
    line = json.dumps(dict(row), allow_nan=False) + "\n"
    with disk_errors(run.metrics), run.metrics.open("a", encoding="utf-8") as file:
        file.write(line)


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; empty where there is none. A last line that a kill tore is dropped.

    Raises:
        UserError: a line before the last is no JSON.
    """
    if not run.metrics.exists():
        return []
    lines = run.metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # a whole line ends in \n
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{run.metrics}:{number}: is not JSON", "run again in another folder") from error
    return rows


def truncate_metrics(run: Run, *, step: int) -> None:
    """Keep rows up to a checkpoint's step: what came after it is done again."""
    if run.metrics.exists():
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        atomic_write_text(run.metrics, "".join(f"{json.dumps(row)}\n" for row in kept))


def add_timing(run: Run, phase: str, *, seconds: float, peak_memory: int) -> None:
    """Add a phase's seconds to ``timings.json`` (a resumed phase sums up); keep its highest peak (bytes)."""
    timings = json.loads(run.timings.read_text(encoding="utf-8")) if run.timings.exists() else {}
    before = timings.get(phase, {"seconds": 0.0, "peak_memory": 0})
    timings[phase] = {
        "seconds": before["seconds"] + seconds,
        "peak_memory": max(before["peak_memory"], peak_memory),
    }
    atomic_write_json(run.timings, timings)


def mark_done(run: Run) -> None:
    """Write ``DONE``: the last thing a run does."""
    atomic_write_text(run.done, "")


def versions() -> dict[str, str]:
    """Package -> version, of those that results depend on and that are installed."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
