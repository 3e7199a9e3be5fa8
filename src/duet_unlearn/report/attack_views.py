"""What the page shows of attacks: a table, a picture, and what was said under the worst of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from duet_unlearn.report import figures
from duet_unlearn.report.cost_figure import cost_figure
from duet_unlearn.report.read import SUBJECTS, Score
from duet_unlearn.report.recovered import WORDS, Outcome, Tried, Way

ACCESS = {
    "chat": "By asking",
    "opening": "By opening the answer too",
    "decoding": "By choosing how tokens are drawn too, or reading their probabilities",
    "weights": "With the weights",
}
"""What an attacker needs, in words."""
TONES: Mapping[Outcome, str] = {"back": "bad", "part": "mixed", "nothing": "good", "trace": "mixed", "no trace": "good"}
MEASURES = {"right": "% of facts", "auc": "AUC", "bits": "bits"}
NUM_WORST = 3
"""Attacks whose answers are shown."""
NUM_SAID = 5
"""Answers shown of each."""


def section(ways: Sequence[Way]) -> dict[str, Any] | None:
    """All that the section of attacks shows; None where there were none."""
    if not ways:
        return None
    drawn = cost_figure(ways)
    return {
        "subjects": [name for name in SUBJECTS if any(name in way.tried for way in ways)],
        "groups": [
            {"title": ACCESS.get(access, access or "Needs unknown"), "rows": [row(way) for way in members]}
            for access, members in groupby(ways, key=lambda way: way.access)
        ],
        "svg": figures.safe(drawn) if drawn else "",
        "worst": [transcript(way) for way in worst(ways)],
        "notes": [(way.title, note) for way in ways for note in way.notes],
        "oracle": any("oracle" in way.tried for way in ways),
    }


def row(way: Way) -> dict[str, Any]:
    """One attack: a cell a subject, and what it comes to."""
    student = way.tried.get("student")
    return {
        "title": way.title,
        "name": way.name,
        "measure": MEASURES[way.metric],
        "cells": {name: _cell(way, name, tried) for name, tried in way.tried.items()},
        "above": _above(way),
        "outcome": WORDS[way.outcome],
        "tone": TONES.get(way.outcome, ""),
        "instance": way.instance,
        "num_instances": student.num_instances if student else 0,
        "cost": amount(student.tokens) if student and student.status == "done" else "",
        "seconds": f"{student.seconds:.1f} s in all" if student else "",
    }


def worst(ways: Sequence[Way]) -> list[Way]:
    """The attacks that brought back most, whose answers are known."""
    found = [way for way in ways if way.outcome in ("back", "part") and way.tried["student"].transcript]
    return sorted(found, key=lambda way: -way.above.value)[:NUM_WORST]


def transcript(way: Way) -> dict[str, Any]:
    """What the strongest instance was told: answers that give the fact away come first."""
    student = way.tried["student"]
    rows = sorted(student.transcript, key=lambda said: not said["right"])
    return {
        "title": way.title,
        "instance": student.instance,
        "right": sum(said["right"] for said in rows),
        "num": len(rows),
        "rows": rows[:NUM_SAID],
    }


def number(score: Score, metric: str, *, sign: str = "") -> str:
    """A measured value: per cent, AUC with two decimals, or bits with one."""
    if math.isnan(score.value):
        return "n/a"
    scale, digits = {"right": (100, 1), "auc": (1, 2), "bits": (1, 1)}[metric]
    return f"{scale * score.value:{sign}.{digits}f}"


def between(score: Score, metric: str, *, sign: str = "") -> str:
    """The interval: ``3.1 to 8.0``; empty where there is none."""
    if math.isnan(score.low + score.high):
        return ""
    ends = (number(Score(end, score.n), metric, sign=sign) for end in (score.low, score.high))
    return " to ".join(ends)


def amount(tokens: float) -> str:
    """``840``, ``8.4 k``, ``84 k``, ``8.4 M``."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.{1 if tokens < 10 * size else 0}f} {unit}"
    return f"{tokens:.0f}"


def _cell(way: Way, subject: str, tried: Tried) -> dict[str, Any]:
    if tried.status != "done":
        return {"status": tried.status, "title": tried.reason}
    measured, best = number(tried.rate, way.metric), number(tried.best, "right")
    inside = between(tried.rate, way.metric)
    words = [f"{subject}, {way.title}: {measured} {MEASURES[way.metric]}"]
    words += [f"interval {inside}"] if inside else []
    words += [f"strongest of {tried.num_instances}: {tried.instance}"] if tried.instance else []
    return {
        "status": "done",
        "text": measured,
        "between": inside,
        "best": best if best != "n/a" and tried.num_instances > 1 else "",
        "n": tried.rate.n,
        "mini": figures.safe(figures.interval(tried.rate, subject)) if way.metric != "bits" else "",
        "title": "; ".join(words),
    }


def _above(way: Way) -> dict[str, str]:
    return {"text": number(way.above, way.metric, sign="+"), "between": between(way.above, way.metric, sign="+")}
