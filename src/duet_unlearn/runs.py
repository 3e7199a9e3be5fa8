"""The run folder: where everything of one run lies, when it may go on, and how its files are written.

``recipe.yaml`` is written first and decides what the folder is; ``DONE`` is last and means that all is there.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from duet_unlearn.config.reading import differing_key, dump_recipe, load_recipe
from duet_unlearn.config.recipe import Recipe, recipe_hash
from duet_unlearn.data.files import atomic_write_json, atomic_write_text, disk_errors
from duet_unlearn.errors import UserError
from duet_unlearn.redact import require_words

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


@dataclass(frozen=True)
class Run:
    """A run folder. The properties are its paths; none of them needs to exist yet."""

    path: Path
    """The folder."""

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def env(self) -> Path:
        """Versions, device, seed and hashes."""
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        """One line a training step."""
        return self.path / "metrics.jsonl"

    @property
    def probe(self) -> Path:
        """What the prefix does, before training."""
        return self.path / "probe.json"

    @property
    def targets(self) -> Path:
        """The teacher's cached logits."""
        return self.path / "targets"

    @property
    def picks(self) -> Path:
        """Which row of each pool an epoch met, one file an epoch, of methods that have pools."""
        return self.path / "picks"

    @property
    def checkpoints(self) -> Path:
        """Where a killed run goes on from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The student, in `save_pretrained` form."""
        return self.path / "model"

    @property
    def subject(self) -> Path:
        """What a method that changes no weights puts beside the model: detector, assistant, examples."""
        return self.path / "subject"

    @property
    def samples(self) -> Path:
        """Every answer that was scored, one file a subject."""
        return self.path / "samples"

    @property
    def evals(self) -> Path:
        """Scores, one file a subject."""
        return self.path / "evals"

    @property
    def timings(self) -> Path:
        """Seconds and peak memory of each phase."""
        return self.path / "timings.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def done(self) -> Path:
        """Its existence means that the run is finished."""
        return self.path / "DONE"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.done.exists()


def default_out(recipe: Recipe) -> Path:
    """Where a run goes if nobody says: ``runs/<name>-<short hash>``, so another recipe is another folder."""
    slug = re.sub(r"[^\w.-]+", "-", recipe.name).strip("-.") or "run"
    return Path("runs") / f"{slug}-{recipe_hash(recipe)[:8]}"


def may_run(path: Path | str, recipe: Recipe) -> Run:
    """A folder that is free for a recipe's run, or holds it already, finished or not. Writes nothing.

    Raises:
        UserError: the folder is another recipe's run, a purged one, or holds something that is no run.
    """
    run = Run(Path(path))
    require_words(run.path)
    if run.path.is_dir() and run.recipe.exists():
        _require_same(run, recipe)
    elif run.path.exists() and (not run.path.is_dir() or _foreign(run.path)):
        raise UserError(f"{run.path}: is there already and is no run folder", "choose another folder with --out")
    return run


def open_run(path: Path | str, recipe: Recipe) -> Run:
    """A new run folder, or the one that this recipe began. Raises as ``may_run``."""
    run = may_run(path, recipe)
    if not run.recipe.exists():
        atomic_write_text(run.recipe, dump_recipe(recipe))
    return run


def find_run(path: Path | str) -> Run:
    """The run that lies in a folder.

    Raises:
        UserError: there is none, or it was purged.
    """
    run = Run(Path(path))
    require_words(run.path)
    if not run.recipe.is_file():
        problem = "is no run folder" if run.path.exists() else "no such folder"
        raise UserError(f"{run.path}: {problem}", "name a folder that `duet run` wrote; it has a recipe.yaml")
    return run


def _require_same(run: Run, recipe: Recipe) -> None:
    there = load_recipe(run.recipe)
    if key := differing_key(there, recipe):
        raise UserError(
            f"{run.path}: is the output folder of another run: {key} differs",
            "choose another folder with --out",
        )


def _foreign(folder: Path) -> bool:
    """Whether a folder holds anything but what a killed ``open_run`` leaves."""
    return any(not (p.name.startswith(".recipe.yaml.") and p.name.endswith(".tmp")) for p in folder.iterdir())


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


def env_info(
    recipe: Recipe, *, hashes: Mapping[str, str], device: str = "cpu", warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``env.json`` holds. `hashes`: of model, forget and retain queries; the recipe's is added."""
    import torch

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
        "commit": _commit(),
        "device": device,
        "threads": torch.get_num_threads(),
        "seed": recipe.seed,
        "hashes": {**hashes, "recipe": recipe_hash(recipe)},
        "warnings": list(warnings),
    }


def versions() -> dict[str, str]:
    """Package -> version, of those that results depend on and that are installed."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that this package runs from; None when it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            env=_git_env(),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _git_env() -> dict[str, str]:
    """The environment without git's own variables, which a hook sets to another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
