"""What one run came to, from the files of its folder."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.runs import Run, read_metrics
from duet_unlearn.sweep.choose import selection
from duet_unlearn.sweep.suite import Tuning
from duet_unlearn.sweep.tasks import Row, Sweep, Task, read_json

KEPT = ("right", "refused", "rouge_l", "points")
"""Metrics of a set that a row keeps, beside the one that stands for the set."""


def head(sweep: Sweep, task: Task) -> Row:
    """Which run it was."""
    return {
        "kind": task.kind,
        "method": task.method,
        "target": task.target,
        "seed": task.seed,
        "trial": task.trial,
        "settings": sweep.settings(task),
        "folder": task.folder,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }


def finished_row(sweep: Sweep, task: Task, recipe: Recipe, *, wall: float) -> Row:
    """The row of a run that came to its end; `wall`: seconds since this worker began or took it up.

    Raises:
        UserError: tuning reads a set that is not there, or that the base knows nothing of.
    """
    run = sweep.run(task)
    student = json.loads((run.evals / "student.json").read_text(encoding="utf-8"))
    timings = [entry for one in _with_before(run.path) for entry in (read_json(one.timings) or {}).items()]
    seconds = {name: sum(e["seconds"] for phase, e in timings if phase == name) for name, _ in timings}
    return {
        **head(sweep, task),
        "failed": None,
        "needs": sorted(recipe.method.needs),
        "scores": kept_scores(student),
        "shift": student["scores"].get("shift", {}).get("points"),
        **_marks(run, student, sweep.loaded.suite.tune if task.kind == "tune" else None),
        "relearned": read_json(run.path / "attacks" / "relearn.json"),
        **_training(run),
        "seconds": {"total": max(wall, sum(seconds.values())), **seconds},
        "peak_memory": max((entry["peak_memory"] for _, entry in timings), default=None),
    }


def failed_row(sweep: Sweep, task: Task, reason: str, *, hint: str = "", trace: str = "") -> Row:
    """The row of a run that has no result."""
    return head(sweep, task) | {"failed": reason, "hint": hint} | ({"traceback": trace} if trace else {})


def kept_scores(subject: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of a subject, without the metrics that no table shows."""
    own = {name: about.get("metric") for name, about in subject["sets"].items()}
    return {
        name: {metric: score for metric, score in metrics.items() if metric in (*KEPT, own.get(name))}
        for name, metrics in subject["scores"].items()
    }


def about_method(recipe: Recipe) -> str:
    """The first line of a method's description."""
    return (inspect.getdoc(type(recipe.method)) or "").split("\n")[0]


def clear_up(run: Run, *, keep_model: bool) -> None:
    """Remove what a scored run needs no more: targets, checkpoints, other models on the way; or its student, too."""
    for one in _with_before(run.path):
        student = (one.model, one.subject) if keep_model and one.path == run.path else ()
        kept = {one.samples, one.evals, one.path / "attacks", one.path / "before", *student}
        for folder in one.path.iterdir() if one.path.is_dir() else ():
            if folder.is_dir() and folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _marks(run: Run, student: dict[str, Any], tuning: Tuning | None) -> Row:
    if tuning is None:
        return {"score": None, "forget": None, "keep": None}
    base = json.loads((run.evals / "base.json").read_text(encoding="utf-8"))
    mark = selection(student["scores"], base["scores"], student["sets"], forget=tuning.forget, keep=tuning.keep)
    return mark._asdict()


def _training(run: Run) -> Row:
    """Optimiser steps and tokens, those of the runs before included."""
    steps = [row for one in _with_before(run.path) for row in read_metrics(one) if "tokens" in row]
    return {"steps": len(steps), "tokens": sum(row["tokens"] for row in steps)}


def _with_before(folder: Path) -> list[Run]:
    return [Run(folder), *(_with_before(folder / "before") if (folder / "before").exists() else [])]
