"""What each section of the page shows, as plain values for the template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from duet_unlearn.report import figures, samples
from duet_unlearn.report.read import (
    NO_SCORE,
    SUBJECTS,
    Column,
    RunData,
    Score,
    SubjectResult,
    cell_text,
    metric_words,
)

GROUP_TITLES = {
    "forget": "To forget",
    "neighbour": "Neighbours",
    "retain": "To keep",
    "choice": "Multiple choice",
    "robustness": "Brought back?",
    "deployer": "With a deployer's system turn",
    "privacy": "Membership",
    "summary": "Summary",
    "other": "Other sets",
}
CURVE_CSS = {"loss": "s-student", "validation": "s-prefix"}
VISIBLE = str.maketrans({" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5"})
"""Spaces and line breaks in a token are shown: they are part of it."""
PROBE_SHARES = {
    "refused": "Refused on forget queries with the prefix:",
    "refused_without": "without it:",
    "agreement": "first-token top-K shared on retain queries:",
}
TONES = {
    "forget": {"right": "bad", "refused": "good", "wrong": "good"},
    "keep": {"right": "good", "refused": "mixed", "wrong": "bad"},
}
MAX_COLUMNS = 12
"""Columns of one table at most, which are about as wide as the page; further groups go into a table below."""
MAX_ANSWER = 600
"""Characters of an answer that are shown."""


def clip(text: str) -> str:
    """The beginning of a long answer, and how much is left out."""
    if len(text) <= MAX_ANSWER:
        return text
    return f"{text[:MAX_ANSWER]} … ({len(text) - MAX_ANSWER} more characters)"


def sample_answers(run: RunData) -> list[dict[str, Any]]:
    """The chosen answers, each with the colour of its outcome: whether right is good depends on the set."""
    shown, goals = samples.pick(run), {column.title: column.goal for column in run.columns}
    for sample in shown:
        goal = goals.get(sample["set"], "keep")
        sample["answers"] = [
            (subject, row and row | {"tone": _tone(subject, goal, row["outcome"])})
            for subject, row in sample["answers"]
        ]
    return shown


def _tone(subject: str, goal: str, outcome: str) -> str:
    """The base has not been asked to forget: its answers are neither good nor bad."""
    return "" if subject == "base" else TONES[goal].get(outcome, "")


def with_values(run: RunData) -> list[Column]:
    """The columns in which some subject has a number."""
    subjects = run.subjects.values()
    return [c for c in run.columns if any(not math.isnan(s.score(c.name, c.metric).value) for s in subjects)]


def numbered(run: RunData) -> list[tuple[int, Column]]:
    """The columns with values, each with the number of its note."""
    return list(enumerate(with_values(run), start=1))


def parts(columns: Sequence[tuple[int, Column]]) -> list[list[tuple[int, Column]]]:
    """The columns of each table: as many whole groups as fit the page."""
    found: list[list[tuple[int, Column]]] = []
    for _, members in groupby(columns, key=lambda pair: pair[1].group):
        group = list(members)
        if not found or len(found[-1]) + len(group) > MAX_COLUMNS:
            found.append([])
        found[-1] += group
    return found


def table(subjects: Sequence[SubjectResult], columns: Sequence[tuple[int, Column]]) -> dict[str, Any]:
    """One table: its column groups and its rows, a subject each."""
    groups = [
        {"key": key, "title": GROUP_TITLES.get(key, key), "columns": list(members)}
        for key, members in groupby(columns, key=lambda pair: pair[1].group)
    ]
    return {"groups": groups, "rows": [row(subject, [column for _, column in columns]) for subject in subjects]}


def row(subject: SubjectResult, columns: Sequence[Column]) -> dict[str, Any]:
    firsts = {next(members).name for _, members in groupby(columns, key=lambda column: column.group)}
    return {"subject": subject, "cells": [_cell(subject, c) | {"first": c.name in firsts} for c in columns]}


def _cell(subject: SubjectResult, column: Column) -> dict[str, Any]:
    score = subject.score(column.name, column.metric)
    points = column.metric == "points"
    mini = "" if points else figures.interval(score, subject.name)
    return {
        "text": cell_text(score, column.metric),
        "n": score.n,
        "title": _cell_title(subject, column, score),
        "mini": figures.safe(mini),
    }


def _cell_title(subject: SubjectResult, column: Column, score: Score) -> str:
    unit, scale = (" points", 1) if column.metric == "points" else (" %", 100)
    words = [f"{subject.label}, {column.title}: {cell_text(score, column.metric)}{unit} {metric_words(column.metric)}"]
    if not math.isnan(score.low + score.high):
        words.append(f"interval {scale * score.low:.1f} to {scale * score.high:.1f}")
    for metric in ("refused", "wrong"):
        other = subject.score(column.name, metric)
        if metric != column.metric and not math.isnan(other.value):
            words.append(f"{metric} {100 * other.value:.1f} %")
    rouge = subject.score(column.name, "rouge_l")
    if not math.isnan(rouge.value):
        words.append(f"ROUGE-L {100 * rouge.value:.1f}")
    return "; ".join([*words, f"n = {score.n}"])


def requests(run: RunData) -> list[dict[str, Any]]:
    """A row a deletion request and set, with each subject's score in the metric that stands for the set."""
    found = run.requests
    pairs = {(request, name) for by_request in found.values() for request, sets in by_request.items() for name in sets}
    return [
        {"request": request, "column": column, "cells": _request_cells(run, request, column)}
        for column in run.columns
        for request in sorted(request for request, name in pairs if name == column.name)
    ]


def _request_cells(run: RunData, request: str, column: Column) -> list[tuple[str, str, int]]:
    """(subject, text, n) of every subject that was asked about requests."""
    scores = {
        name: run.requests[name].get(request, {}).get(column.name, {}) for name in SUBJECTS if name in run.requests
    }
    shown = {name: metrics.get(column.metric, NO_SCORE) for name, metrics in scores.items()}
    return [(name, cell_text(score, column.metric), score.n) for name, score in shown.items()]


def picture(run: RunData, subjects: Sequence[SubjectResult]) -> dict[str, Any] | None:
    """Held-out forget questions against near neighbours and retain, or the nearest that a run has to them."""
    marked = [column for column in run.columns if column.metric == "right"]
    forget = [c for c in marked if c.goal == "forget" and c.group == "forget"]
    keep = [c for c in marked if c.goal == "keep" and c.group in ("neighbour", "retain")]
    across = next((c for c in forget if c.name == "forget_held_out"), forget[0] if forget else None)
    up = [c for c in keep if c.name in ("near", "retain")] or keep
    if across is None or not up:
        return None
    kept = {s.name: _mean([s.score(column.name, "right") for column in up]) for s in subjects}
    marks = [figures.Mark(s.name, s.score(across.name, "right"), kept[s.name]) for s in subjects]
    if all(math.isnan(mark.x.value + mark.y.value) for mark in marks):
        return None
    x_label, y_label = f"right on {across.title}, %", "right on questions to keep, %"
    svg = figures.scatter(marks, x_label=x_label, y_label=y_label)
    return {"svg": figures.safe(svg), "x": across.title, "y": [column.title for column in up]}


def _mean(scores: Sequence[Score]) -> Score:
    known = [score for score in scores if not math.isnan(score.value)]
    if not known:
        return Score(math.nan, 0)
    return Score(sum(score.value for score in known) / len(known), sum(score.n for score in known))


def bars(run: RunData, subjects: Sequence[SubjectResult]) -> list[dict[str, Any]]:
    shown = []
    for column in run.columns:
        if column.group in ("robustness", "deployer"):
            scores = {s.name: s.score(column.name, column.metric) for s in subjects}
            shown.append({"column": column, "svg": figures.safe(figures.bars(column.title, scores))})
    return shown


def probe(probe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The probe's verdict and its numbers in words."""
    if not probe:
        return None
    numbers = [
        f"{label} {100 * probe[key]['value']:.1f} % (n = {probe[key]['n']})"
        for key, label in PROBE_SHARES.items()
        if probe.get(key) and probe[key]["value"] is not None
    ]
    if probe.get("kl") and probe["kl"]["value"] is not None:
        numbers.append(f"first-token KL there {probe['kl']['value']:.3f} nats (n = {probe['kl']['n']})")
    return {"verdict": probe.get("verdict", ""), "numbers": "; ".join(numbers)}


def shifts(shifts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first two forget and the first two retain queries, each with the top tokens of who was measured."""
    chosen = [row for role in ("forget", "retain") for row in [r for r in shifts if r["role"] == role][:2]]
    return [
        {
            "query": row["query"],
            "role": row["role"],
            "subjects": [
                (name, [(token.translate(VISIBLE) or "\u2205", prob) for token, prob in row[name][:10]])
                for name in SUBJECTS
                if row.get(name)
            ],
        }
        for row in chosen
    ]


def curves(run: RunData) -> list[Any]:
    loss = {"loss": [(row["step"], _finite(row.get("loss"))) for row in run.steps]}
    held_out = {"validation": [(row["step"], _finite(row.get("validation"))) for row in run.steps]}
    drawn = (
        ("Training loss", figures.curves("Training loss over steps", loss, css=CURVE_CSS)),
        ("Validation loss", figures.curves("Validation loss over steps", held_out, css=CURVE_CSS)),
    )
    return [(title, figures.safe(svg)) for title, svg in drawn if svg]


def _finite(value: float | None) -> float:
    return math.nan if value is None else float(value)


def timing(name: str, found: Mapping[str, float]) -> dict[str, str]:
    seconds, peak = found.get("seconds"), found.get("peak_memory")
    return {
        "phase": name,
        "time": "n/a" if seconds is None else duration(seconds),
        "memory": "n/a" if peak is None else f"{peak / 2**20:,.0f} MiB",
    }


def duration(seconds: float) -> str:
    """``8.4 s`` or ``3 min 20 s`` or ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
