"""Deletes a run's words and keeps its proof: scores, hashes, a redacted audit and the student.

What the folder will hold is made first, whole, in ``.purge/``; then it is put in its place, all else is deleted, and
``PURGED`` is written last. Killed anywhere, the same call goes on.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet_unlearn.audit.record import UNCHANGING, finished_run, record_of, write_record
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.files import atomic, atomic_folder, atomic_write_json, atomic_write_text, disk_errors, read_text
from duet_unlearn.errors import UserError
from duet_unlearn.job import load_job
from duet_unlearn.redact import PURGED, PURGING, Redactor, Shown, redacted_attack
from duet_unlearn.report.run_data import RunData, method_name, read_run, redacted, redacted_env, redactor_of
from duet_unlearn.report.run_page import REDACTED, render_run
from duet_unlearn.runs import SUITE, Run

KEPT = ("model", "metrics.jsonl", "timings.json", "DONE")
"""What stays as it is: the student, and files that hold numbers alone."""
OF_LM_EVAL = ("tasks", "packages", "results", "versions", "n-samples", "n-shot", "higher_is_better")
"""What stays of lm-eval's record: its prompts go."""


@dataclass(frozen=True)
class Purge:
    """What a purge deletes."""

    path: Path
    deleted: tuple[str, ...]
    """Files inside the run folder; those that are replaced by a redacted copy are among them."""
    size: int
    """Bytes."""
    notes: tuple[str, ...]
    """What somebody should know before."""


def plan_purge(path: Path | str) -> Purge:
    """What ``purge`` would delete. Writes nothing.

    Raises:
        UserError: no such run, not finished, purged already; its method changes no weights; a sweep counts on it.
    """
    folder = Path(path)
    if (folder / PURGING).exists():
        return _planned(folder, ("a purge was stopped half-way; it goes on",))
    run = finished_run(folder)
    data = read_run(run.path)
    if method_name(data.recipe) in UNCHANGING:
        raise UserError(
            f"{run.path}: {method_name(data.recipe)} changes no weights: its student needs the run's own files to hide"
            " what the model still knows",
            "delete the folder if nobody uses it; a method that trains leaves a model that stands alone",
        )
    if any((parent / SUITE).exists() for parent in run.path.resolve().parents[:3]):
        raise UserError(
            f"{run.path}: is a run of a sweep, whose other files hold the same words, and which would do it again",
            "copy the folder out of the sweep and purge the copy; then delete the sweep",
        )
    return _planned(run.path, tuple(_notes(run, data)))


def purge(path: Path | str, *, shown: Shown = "scores", key: bytes | None = None) -> Purge:
    """Delete a run's questions, answers, targets, samples, transcripts and checkpoints, and whatever else lies in its
    folder, but for the student and the proof. The concept's name goes too, unless `shown` says otherwise.

    Files outside the folder are not touched, and nothing is overwritten before it is deleted.

    Raises:
        UserError: as ``plan_purge``; disk full, or not allowed to write.
    """
    assert shown != "everything"
    planned = plan_purge(path)
    folder = planned.path
    if not (folder / PURGING).exists():
        _prepare(Run(folder), planned, shown, key)
    with disk_errors(folder):
        if not (folder / PURGED).exists():  # else all is done, and what it was done with may be gone in part
            redacted_files = set(_files(folder / PURGING))
            for path in sorted(redacted_files - {Path(PURGED)}):
                source = folder / PURGING / path
                atomic(folder / path, lambda temporary, source=source: shutil.copyfile(source, temporary))
            for path in _files(folder):
                if not _stays(path) and path not in redacted_files:
                    (folder / path).unlink()
            for place, _, _ in os.walk(folder, topdown=False):  # folders that are empty now
                if Path(place) != folder and not os.listdir(place):
                    Path(place).rmdir()
            atomic_write_text(folder / PURGED, read_text(folder / PURGING / PURGED))
        # Last: while it is there, every verb says that a purge is under way, and the same call goes on.
        shutil.rmtree(folder / PURGING)
    return planned


def _planned(folder: Path, notes: tuple[str, ...]) -> Purge:
    gone = [path for path in _files(folder) if not _stays(path)]
    sizes = sum((folder / path).lstat().st_size for path in gone)
    return Purge(folder, tuple(path.as_posix() for path in gone), sizes, notes)


def _notes(run: Run, data: RunData) -> Iterator[str]:
    if (run.model / "adapter_config.json").exists():
        yield f"the student is an adapter, and a purged run cannot be exported: duet export {run.path} merges it first"
    if not any("student" in found for found in data.attacks.values()):
        yield f"nobody attacked this run, and nobody can afterwards: duet attack {run.path}"
    sources = data.recipe.get("data") or {}
    files = [str(value) for value in sources.values() if isinstance(value, str) and Path(value).exists()]
    files += [str(value) for value in ((data.recipe.get("evaluate") or {}).get("sets") or {}).values()]
    if there := [path for path in dict.fromkeys(files) if Path(path).exists()]:
        yield f"not deleted, for they lie outside the run: {', '.join(there)}"


def _prepare(run: Run, planned: Purge, shown: Shown, key: bytes | None) -> None:
    """Write what the folder will hold, whole or not at all."""
    data = read_run(run.path)
    try:
        job = load_job(load_recipe(run.recipe))
        queries = (*job.train.forget, *job.validation.forget)
    except UserError:
        queries = ()  # their file is not there any more
    # The forget queries are secrets too: some may never have been asked.
    texts = [text for query in queries for text in (query.id, query.text, query.answer, query.value) if text]
    by = redactor_of(data, shown, texts=texts, key=key)
    shown_data = redacted(data, by)
    with atomic_folder(run.path / PURGING) as folder:
        record = record_of(run, shown_data, base=str(data.recipe["model"]["path"]))
        write_record(record, folder, "audit-redacted")
        atomic_write_text(folder / REDACTED, render_run(shown_data))
        atomic_write_text(folder / "recipe.yaml", shown_data.recipe_text)
        atomic_write_json(folder / "env.json", redacted_env(data.env, by))
        if data.probe:
            atomic_write_json(folder / "probe.json", shown_data.probe)
        for name, found in _scores(run, by):
            atomic_write_json(folder / name, found)
        mark = {
            "format": "duet-unlearn/purged/1",
            "purged": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "deleted": [by.swept(path) for path in planned.deleted],
            "bytes": planned.size,
        }
        atomic_write_json(folder / PURGED, mark)


def _scores(run: Run, by: Redactor) -> Iterator[tuple[str, Any]]:
    """File -> its redacted content, of all that holds scores."""
    for path in sorted([*run.evals.glob("*.json"), *(run.path / "attacks").rglob("*.json")]):
        name = path.relative_to(run.path).as_posix()
        stored = json.loads(read_text(path))
        if name == "evals/first_tokens.json":
            continue
        if path.name.startswith("lm_eval-"):
            yield name, by.swept_all({part: stored[part] for part in OF_LM_EVAL if part in stored})
        elif path.parent == run.evals:
            yield name, redacted_scores(stored, by)
        else:
            yield name, redacted_attack(stored, by)


def redacted_scores(stored: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    """The object of ``evals/<subject>.json`` without the secrets in names and titles."""

    def named(found: Mapping[str, Any]) -> dict[str, Any]:
        return {by.swept(name): value for name, value in found.items()}

    found = by.swept_all({key: value for key, value in stored.items() if key not in ("scores", "sets", "requests")})
    found["scores"] = named(stored["scores"])
    found["sets"] = named(by.swept_all(stored.get("sets", {})))
    if "requests" in stored:
        found["requests"] = named({request: named(sets) for request, sets in stored["requests"].items()})
    return found


def _files(folder: Path) -> list[Path]:
    """All files and links in a run folder, relative to it; links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder) for name in (*files, *links)]
    return sorted(found)


def _stays(path: Path) -> bool:
    return path.parts[0] in (*KEPT, PURGING, PURGED)
