"""``audit.json``: everything that an audit says, as plain values. The page is made of it and of nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from duet_unlearn import __version__
from duet_unlearn.audit.recovery import Entry, entries, not_tried, verdict_of
from duet_unlearn.config.recipe import METHODS
from duet_unlearn.errors import UserError
from duet_unlearn.redact import Redactor
from duet_unlearn.report.run_data import SUBJECTS, Column, RunData, method_name, metric_words, read_run, redacted
from duet_unlearn.report.verdict import RECOVERY_RULE, verdict
from duet_unlearn.runs import Run, find_run
from duet_unlearn.subjects import model_folder
from duet_unlearn.teacher.targets import weights_id

FORMAT = "duet-unlearn/audit/1"
UNCHANGING = {kind().name for kind in METHODS if not kind.changes_weights}
"""Methods that change no weights."""
LEFT_OUT = (
    "report.html",
    "report-redacted.html",
    "audit.html",
    "audit.json",
    "audit-redacted.html",
    "audit-redacted.json",
)
"""Files that are made of the others."""
OF_MODELS = ("model", "start", "oracle", "tokenizer", "recipe", "settings")
"""Hashes in ``env.json`` that are not of data."""
LIMITATIONS = (
    "Only what was asked was measured: questions that no set asks, attacks that were not run, may bring back more.",
    "An answer counts as right if it has the value as whole words and no other of the known choices, or, of a long"
    " answer without a value, half of its words. Hints and other wordings of the fact are not counted.",
    "Intervals are of 95 % and hold for each number by itself; among many one or the other misses.",
    "Costs are tokens through the model; what an attacker spends on finding the attack is not counted.",
    "Nothing is said of other copies: of the data, the base, caches, logs and backups.",
)


def audit_record(path: Path | str, by: Redactor | None = None) -> dict[str, Any]:
    """What an audit of a finished run says; with a redactor, hashes in place of words, and of files the model's alone.

    The same run gives the same record.

    Raises:
        UserError: no such run, not finished, or purged.
    """
    run = finished_run(path)
    data = read_run(run.path)
    return record_of(run, redacted(data, by) if by else data, base=str(data.recipe["model"]["path"]))


def finished_run(path: Path | str) -> Run:
    """A run that came to its end.

    Raises:
        UserError: it did not, or there is none.
    """
    run = find_run(path)
    if not run.finished:
        raise UserError(
            f"{run.path}: this run is not finished", "give its `duet run` command again, which goes on, then this one"
        )
    return run


def record_of(run: Run, data: RunData, *, base: str) -> dict[str, Any]:
    """The record of a run that was read, redacted or not; `base` is where its base lies."""
    inference = method_name(data.recipe) in UNCHANGING
    unmerged = not inference and (run.model / "adapter_config.json").exists()
    weights = None if inference else weights_id(run.model)
    found = entries(data, unmerged=unmerged, inference=inference, weights=weights)
    told, kind = verdict(data), "beside the base" if inference else "adapter" if unmerged else "whole"
    return {
        "format": FORMAT,
        "written_by": f"duet-unlearn {__version__}",
        "redacted": data.redacted,
        "verdict": verdict_of(found) | {"forgotten": told.forgotten, "cost": told.cost, "rule": RECOVERY_RULE},
        "asked": _asked(data),
        "done": _done(data),
        "weights": _weights(data) | {"base_now": _identity(base), "student": weights, "student_is": kind},
        "data": {name: value for name, value in data.env.get("hashes", {}).items() if name not in OF_MODELS},
        "forgotten": [_row(data, column) for column in data.columns if column.goal == "forget"],
        "kept": [_row(data, column) for column in data.columns if column.goal == "keep" and column.group != "summary"],
        "requests": _requests(data),
        "recovery": [one.to_json() for one in found],
        "not_tested": not_tried(data, weights),
        "limitations": _limitations(data, found, unmerged=unmerged, inference=inference),
        "files": _files(run, model_only=data.redacted),
    }


def _asked(data: RunData) -> dict[str, Any]:
    """The request: what was to be forgotten, and where the questions about it came from."""
    recipe = data.recipe
    requests = sorted({request for found in data.requests.values() for request in found})
    concepts = list(dict.fromkeys([str(recipe.get("concept") or ""), *data.env.get("concepts", [])]))
    told = recipe.get("data") or {}
    return {
        "concepts": [concept for concept in concepts if concept],
        "requests": requests,
        "data": {name: told[name] for name in ("forget", "retain", "neighbours") if told.get(name)},
    }


def _done(data: RunData) -> dict[str, Any]:
    recipe, env = data.recipe, data.env
    return {
        "recipe": recipe.get("name"),
        "method": method_name(recipe),
        "settings": {name: recipe.get(name) for name in ("method", "train", "prefix", "model") if recipe.get(name)},
        "after": recipe.get("after"),
        "seed": recipe.get("seed"),
        "started": env.get("started"),
        "seconds": {phase: round(found["seconds"], 1) for phase, found in data.timings.items()},
        "steps": max((row["step"] for row in data.steps), default=0),
        "device": env.get("device"),
        "platform": env.get("platform"),
        "python": env.get("python"),
        "commit": env.get("commit"),
        "packages": dict(env.get("packages", {})),
        "warnings": list(env.get("warnings", [])),
        "recipe_hash": env.get("hashes", {}).get("recipe"),
        "settings_hash": env.get("hashes", {}).get("settings"),
    }


def _weights(data: RunData) -> dict[str, Any]:
    """Identities when the run began: 16 digits of the SHA-256 of a model's safetensors files, with their names."""
    hashes = data.env.get("hashes", {})
    return {"base": hashes.get("model")} | {part: hashes.get(part) for part in ("start", "oracle", "tokenizer")}


def _identity(path: str) -> str | None:
    """The base's weights as they lie there today; None where they are not on this machine."""
    try:
        folder = Path(model_folder(path))
    except UserError:
        return None
    return weights_id(folder) if path and folder.is_dir() else None


def _row(data: RunData, column: Column) -> dict[str, Any]:
    """A set: what it asks, and every subject's score."""
    scores = {name: data.subjects[name].score(column.name, column.metric) for name in SUBJECTS if name in data.subjects}
    return {
        "set": column.name,
        "title": column.title,
        "group": column.group,
        "about": column.about,
        "metric": metric_words(column.metric),
        "better": column.better,
        "scores": {name: score.to_json() for name, score in scores.items()},
    }


def _requests(data: RunData) -> list[dict[str, Any]]:
    """A row a deletion request and set."""
    names = sorted({request for found in data.requests.values() for request in found})
    rows = []
    for request in names:
        for column in data.columns:
            found = {who: sets.get(request, {}).get(column.name, {}) for who, sets in data.requests.items()}
            scores = {who: scores[column.metric].to_json() for who, scores in found.items() if column.metric in scores}
            if scores:
                row = {"request": request, "set": column.name, "title": column.title}
                rows.append(row | {"metric": metric_words(column.metric), "better": column.better, "scores": scores})
    return rows


def _limitations(data: RunData, found: list[Entry], *, unmerged: bool, inference: bool) -> list[str]:
    told = list(LIMITATIONS)
    if unmerged:
        told.insert(0, "The student is an adapter: the base's weights are unchanged. `duet export` merges it.")
    if inference:
        told.insert(0, "The method changes no weights: who has the model has all that the base knows.")
    if "oracle" not in data.subjects:
        told.append("There was no oracle, a model that never knew: what guessing brings counts as recovered.")
    if not any(one.source == "attack" for one in found):
        told.append("The student was not attacked: that the evaluation's sets find nothing is no proof.")
    if (limit := (data.recipe.get("evaluate") or {}).get("limit")) is not None:
        told.append(f"Benchmarks were asked in part only: evaluate.limit is {limit}.")
    sizes = [one.scores["student"].n for one in found if "student" in one.scores]
    smallest = min((size for size in sizes if size), default=0)
    if smallest:
        told.append(f"The smallest set or attack has {smallest} questions.")
    return told


def _files(run: Run, *, model_only: bool) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of the run's files; hidden ones and those that are made of the others are left out."""
    paths = sorted(path for path in (run.model if model_only else run.path).rglob("*") if path.is_file())
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(run.path).parts)]
    return [
        {"path": path.relative_to(run.path).as_posix(), "bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in shown
        if path.relative_to(run.path).as_posix() not in LEFT_OUT
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
