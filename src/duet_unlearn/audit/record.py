"""What an audit says and the page that says it.

``audit.json`` is the record: everything as plain values, first what was asked, done, forgotten and kept, then whether
it can be brought back, by the evaluation's sets and by attacks, and what was not tried. The page is made of the record
and of nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from duet_unlearn import __version__
from duet_unlearn.attacks import known_attacks
from duet_unlearn.attacks.result import difference
from duet_unlearn.config.recipe import METHODS
from duet_unlearn.data.files import atomic_write_json, atomic_write_text
from duet_unlearn.errors import UserError
from duet_unlearn.redact import Redactor, Shown
from duet_unlearn.report.run_data import (
    SUBJECTS,
    Column,
    RunData,
    method_name,
    metric_words,
    read_run,
    redacted,
    redactor_of,
)
from duet_unlearn.report.run_page import page_template
from duet_unlearn.report.verdict import (
    OUTCOME_WORDS,
    RECOVERY_RULE,
    AttackSummary,
    Outcome,
    attack_summaries,
    outcome_of,
    verdict,
)
from duet_unlearn.runs import Run, find_run
from duet_unlearn.stats import NOTHING, Score
from duet_unlearn.subjects import model_folder
from duet_unlearn.teacher.targets import weights_id

SCHEMA = Path(__file__).with_name("audit.schema.json")
"""JSON Schema (2020-12) of ``audit.json``."""
FORMAT = "duet-unlearn/audit/1"
UNCHANGING = {kind().name for kind in METHODS if not kind.changes_weights}
"""Methods that change no weights."""
DERIVED = "report.html report-redacted.html audit.html audit.json audit-redacted.html audit-redacted.json".split()
"""Files that are made of the others."""
OF_MODELS = ("model", "start", "oracle", "tokenizer", "recipe", "settings")
"""Hashes in ``env.json`` that are not of data."""
NO_ORACLE = "Comparison with a model that never knew"
LIMITATIONS = (
    "Only what was asked was measured: questions that no set asks, attacks that were not run, may bring back more.",
    "An answer counts as right if it has the value as whole words and no other of the known choices, or, of a long"
    " answer without a value, half of its words. Hints and other wordings of the fact are not counted.",
    "Intervals are of 95 % and hold for each number by itself; among many one or the other misses.",
    "Costs are tokens through the model; what an attacker spends on finding the attack is not counted.",
    "Nothing is said of other copies: of the data, the base, caches, logs and backups.",
)
LISTS: Mapping[str, tuple[str, tuple[Outcome, ...]]] = {
    "recoverable_by": ("Recoverable by", ("back",)),
    "recoverable_in_part_by": ("Recoverable in part by", ("part",)),
    "not_recoverable_by": ("Not recoverable by", ("nothing",)),
    "inconclusive": ("Inconclusive", ("open", "weak")),
    "traces_under": ("Traces of it under", ("trace",)),
    "no_traces_under": ("No trace under", ("no trace",)),
}
"""The verdict's lists: how the sentence of each begins, and the outcomes that are in it."""
UNITS = {"auc": (1, 2, ""), "bits": (1, 1, " bits"), "points": (1, 1, "")}
"""Scale, decimals and unit of measures that are no shares."""


@dataclass(frozen=True)
class Audit:
    """What was written."""

    page: Path
    record_path: Path
    record: dict[str, Any]


def write_audit(path: Path | str, *, shown: Shown = "everything") -> Audit:
    """Write ``audit.html`` and ``audit.json`` into a finished run's folder; of one that is not to show everything
    ``audit-redacted.html`` and ``.json``.

    Raises:
        UserError: no such run, not finished, or purged; disk full.
    """
    run = finished_run(path)
    by = None if shown == "everything" else redactor_of(read_run(run.path), shown)
    return write_record(audit_record(path, by), run.path, "audit" if by is None else "audit-redacted")


def write_record(record: dict[str, Any], folder: Path, stem: str) -> Audit:
    """Write a record and its page."""
    page, record_path = folder / f"{stem}.html", folder / f"{stem}.json"
    atomic_write_json(record_path, record)
    atomic_write_text(page, audit_page(record))
    return Audit(page, record_path, record)


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
    found, kind = verdict(data), "beside the base" if inference else "adapter" if unmerged else "whole"
    recovery = _recovery(data, unmerged=unmerged, inference=inference, weights=weights)
    recipe, hashes = data.recipe, data.env.get("hashes", {})
    requests = sorted({request for found in data.requests.values() for request in found})
    concepts = dict.fromkeys([str(recipe.get("concept") or ""), *data.env.get("concepts", [])])
    sources = recipe.get("data") or {}
    # Another model may lie there today: the audit has the base of then and of now.
    try:
        folder = Path(model_folder(base))
    except UserError:
        folder = None  # the base is not on this machine
    return {
        "format": FORMAT,
        "written_by": f"duet-unlearn {__version__}",
        "redacted": data.redacted,
        "verdict": verdict_of(recovery) | {"forgotten": found.forgotten, "cost": found.cost, "rule": RECOVERY_RULE},
        "asked": {
            "concepts": [concept for concept in concepts if concept],
            "requests": requests,
            "data": {name: sources[name] for name in ("forget", "retain", "neighbours") if sources.get(name)},
        },
        "done": _done(data),
        # Identities when the run began: 16 digits of the SHA-256 of a model's safetensors files, with their names.
        "weights": {
            "base": hashes.get("model"),
            **{part: hashes.get(part) for part in ("start", "oracle", "tokenizer")},
            "base_now": weights_id(folder) if base and folder and folder.is_dir() else None,
            "student": weights,
            "student_is": kind,
        },
        "data": {name: value for name, value in hashes.items() if name not in OF_MODELS},
        "forgotten": [_row(data, column) for column in data.columns if column.goal == "forget"],
        "kept": [_row(data, column) for column in data.columns if column.goal == "keep" and column.group != "summary"],
        "requests": [row for request in requests for row in _request_rows(data, request)],
        "recovery": recovery,
        "not_tested": _not_tested(data, weights),
        "limitations": _limitations(data, recovery, unmerged=unmerged, inference=inference),
        "files": _files(run, model_only=data.redacted),
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
        **{name: env.get(name) for name in ("device", "platform", "python", "commit")},
        "packages": dict(env.get("packages", {})),
        "warnings": list(env.get("warnings", [])),
        **{f"{name}_hash": env.get("hashes", {}).get(name) for name in ("recipe", "settings")},
    }


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


def _request_rows(data: RunData, request: str) -> list[dict[str, Any]]:
    """A deletion request's row of each set that has questions of it."""
    rows = []
    for column in data.columns:
        found = {who: sets.get(request, {}).get(column.name, {}) for who, sets in data.requests.items()}
        scores = {who: scores[column.metric].to_json() for who, scores in found.items() if column.metric in scores}
        if scores:
            row = {"request": request, "set": column.name, "title": column.title}
            rows.append(row | {"metric": metric_words(column.metric), "better": column.better, "scores": scores})
    return rows


def _limitations(data: RunData, recovery: Sequence[Mapping[str, Any]], *, unmerged: bool, inference: bool) -> list[str]:
    found = list(LIMITATIONS)
    if unmerged:
        found.insert(0, "The student is an adapter: the base's weights are unchanged. `duet export` merges it.")
    if inference:
        found.insert(0, "The method changes no weights: who has the model has all that the base knows.")
    if "oracle" not in data.subjects:
        found.append("There was no oracle, a model that never knew: what guessing brings counts as recovered.")
    if not any(one["source"] == "attack" for one in recovery):
        found.append("The student was not attacked: that the evaluation's sets find nothing is no proof.")
    if (limit := (data.recipe.get("evaluate") or {}).get("limit")) is not None:
        found.append(f"Benchmarks were asked in part only: evaluate.limit is {limit}.")
    if sizes := [one["student"]["n"] for one in recovery if one["student"]["n"]]:
        found.append(f"The smallest set or attack has {min(sizes)} questions.")
    return found


def _files(run: Run, *, model_only: bool) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of the run's files; hidden ones and those that are made of the others are left out."""
    rows = []
    for path in sorted(path for path in (run.model if model_only else run.path).rglob("*") if path.is_file()):
        inner = path.relative_to(run.path)
        if inner.as_posix() not in DERIVED and not any(part.startswith(".") for part in inner.parts):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            rows.append({"path": inner.as_posix(), "bytes": path.stat().st_size, "sha256": digest})
    return rows


def _recovery(run: RunData, *, unmerged: bool, inference: bool, weights: str | None) -> list[dict[str, Any]]:
    """Each way to the knowledge, and what came of it: what the student is by itself, then the evaluation's forget sets,
    then attacks on the weights of today."""
    found = []
    if unmerged or inference:  # nothing was measured, for the base's weights are in the student
        why = "the method changes no weights" if inference else "the run's model is an adapter, saved without its base"
        name = "without" if inference else "adapter-off"
        title = "Using the model without what stands beside it" if inference else "Taking the adapter off"
        notes = [f"{why}: whoever has the weights has the base, and all that it knows"]
        found.append(recovery_row("by itself", name, title, "weights", "back", tokens_per_fact=0.0, notes=notes))
    for column in run.columns:
        if column.goal != "forget" or column.metric != "right" or column.group == "privacy":
            continue
        scores = {name: one.score(column.name, "right") for name, one in run.subjects.items()}
        oracle = scores.get("oracle", NOTHING)
        student, base = (scores.get(name, NOTHING) for name in ("student", "base"))
        above, base_above = (NOTHING if math.isnan(one.value) else difference(one, oracle) for one in (student, base))
        outcome = outcome_of("right", above, base_above, oracle=not math.isnan(oracle.value))
        access = "" if column.group in ("robustness", "deployer") else "chat"
        status = "not measured" if math.isnan(above.value) else "done"
        row = recovery_row("evaluation", column.name, column.title, access, outcome, scores, above, status=status)
        found.append(row)
    for way in attack_summaries(run):
        # An attack on other weights proves nothing about these; it is named among what was not tested.
        if _stale(run, way, weights):
            continue
        scores = {name: way.strongest(name) for name in way.results}
        more: dict[str, Any] = {"metric": way.metric, "instance": way.instance, "notes": list(way.notes)}
        if result := way.results.get("student"):
            best = result.best_of_all or NOTHING
            more |= {"best_of_all": best.to_json(), "instances": len(result.instances)}
            if result.status == "done":
                more["tokens_per_fact"] = round(way.tokens_per_fact("student"), 1)
        status = result.status if result else "not run"
        row = recovery_row("attack", way.name, way.title, way.access, way.outcome, scores, way.above, status=status)
        found.append(row | more)
    return found


def recovery_row(
    source: Literal["evaluation", "attack", "by itself"],
    name: str,
    title: str,
    access: str,
    outcome: Outcome,
    scores: Mapping[str, Score] = MappingProxyType({}),
    above: Score = NOTHING,
    **more: Any,
) -> dict[str, Any]:
    """One way to the knowledge, as in ``audit.json``.

    Args:
        source: ``by itself`` where nothing had to be measured.
        scores: Of every subject that was asked or attacked: of an attack its strongest instance's.
        above: The student's, less the oracle's.
        more: Other values than these in the row.
    """
    return {
        "source": source,
        "name": name,
        "title": title,
        "access": access,
        "metric": "right",
        "status": "done",
        "outcome": OUTCOME_WORDS[outcome],
        **{subject: scores.get(subject, NOTHING).to_json() for subject in SUBJECTS},
        "above": above.to_json(),
        "best_of_all": NOTHING.to_json(),
        "instance": "",
        "instances": 0,
        "tokens_per_fact": None,
        "notes": [],
    } | more


def _stale(run: RunData, way: AttackSummary, weights: str | None) -> bool:
    """Whether an attack was on other weights than the student's of today; None: they are not known by a hash."""
    stored = run.attacks[way.name].get("student", {})
    return weights is not None and stored.get("weights", weights) != weights


def _not_tested(run: RunData, weights: str | None) -> list[dict[str, str]]:
    """What nobody can say anything about, and why; `weights` are the student's identity."""
    found: list[tuple[str, str, str]] = []
    if not run.attacks:
        found.append(("attacks", "All attacks", "not attacked: run `duet attack RUN`"))
    for name, one in known_attacks().items():
        if run.attacks and "student" not in run.attacks.get(name, {}):
            found.append((name, one.title, "was not run"))
    for way in attack_summaries(run):
        reasons = []
        student = way.results.get("student")
        if student and student.status != "done":
            reasons.append(student.status + (f": {student.reason}" if student.reason else ""))
        if _stale(run, way, weights):
            reasons.append("was run on other weights than the student's of today; run it again")
        reasons += [note for note in way.notes if note.startswith(("base: att", "oracle: att"))]
        found += [(way.name, way.title, reason) for reason in reasons]
    if "oracle" not in run.subjects:
        found.append(("oracle", NO_ORACLE, "no model.oracle; what is right by chance counts too"))
    elif run.attacks and not any("oracle" in way.results for way in attack_summaries(run)):
        found.append(("oracle", NO_ORACLE, "the oracle was not attacked"))
    return [{"name": name, "what": what, "why": why} for name, what, why in found]


def verdict_of(recovery: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By what it is recoverable and by what not, in words and as lists of names; `recovery` are rows of the record."""
    members = {
        name: [one for one in recovery if one["outcome"] in [OUTCOME_WORDS[outcome] for outcome in outcomes]]
        for name, (_, outcomes) in LISTS.items()
    }
    # The level is that of the worst.
    if members["recoverable_by"]:
        level = "recoverable"
    elif members["recoverable_in_part_by"]:
        level = "recoverable in part"
    elif not any(one["source"] == "attack" and one["status"] == "done" for one in recovery):
        level = "not attacked"
    else:
        level = "inconclusive" if members["inconclusive"] or not members["not_recoverable_by"] else "not recovered"
    sentences = [
        f"{head}: {'; '.join(map(_with_size, members[name]))}." for name, (head, _) in LISTS.items() if members[name]
    ]
    return {
        "level": level,
        "sentences": sentences or ["Nothing that was measured tells whether it can be brought back."],
        **{name: [f"{one['source']}/{one['name']}" for one in own] for name, own in members.items()},
    }


def _with_size(one: Mapping[str, Any]) -> str:
    """``Few-shot (48 %)``: what came back above chance."""
    if one["source"] == "by itself":
        return f"{one['title']} (needs the weights)"
    above = math.nan if one["above"]["value"] is None else one["above"]["value"]
    size = {"right": f"{100 * above:.0f} %", "auc": f"AUC {above:+.2f}", "bits": f"{above:+.1f} bits"}
    return f"{one['title']} ({size[one['metric']]})"


def audit_page(record: Mapping[str, Any]) -> str:
    """The page of a record: loads nothing, runs nothing, prints on A4."""
    import yaml

    settings = yaml.safe_dump(dict(record["done"]["settings"]), sort_keys=False, allow_unicode=True, width=90)
    template = page_template(Path(__file__).with_name("audit.html.j2"))
    # A model can emit half a surrogate pair, which UTF-8 cannot hold.
    text = template.render(record=record, settings=settings, value=value_text, interval=interval_text)
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def value_text(score: Mapping[str, Any] | None, metric: str = "right", *, sign: str = "") -> str:
    """``45.0 %``, or ``n/a``."""
    if not score or score["value"] is None:
        return "n/a"
    scale, digits, unit = UNITS.get(metric, (100, 1, " %"))
    return f"{scale * score['value']:{sign}.{digits}f}{unit}"


def interval_text(score: Mapping[str, Any] | None, metric: str = "right", *, sign: str = "") -> str:
    """The interval, ``31.0 to 60.0``, and n; what there is of both."""
    if not score or score["value"] is None:
        return ""
    scale, digits, _ = UNITS.get(metric, (100, 1, ""))
    ends = [f"{scale * score[end]:{sign}.{digits}f}" for end in ("low", "high") if score[end] is not None]
    return ", ".join([*([" to ".join(ends)] if ends else []), *([f"n {score['n']}"] if not sign else [])])
