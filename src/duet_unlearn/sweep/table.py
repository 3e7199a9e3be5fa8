"""The comparison as a plain table: baselines and methods as rows, evaluation sets as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet_unlearn.report.text_tables import ARROWS, WIDTH, blocks
from duet_unlearn.sweep.results import SUBJECTS, headline

RELEARNED = {"relearned": {"title": "Relearned", "better": "low"}}


def table_text(results: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """Means over targets and seeds, per cent right but for the Performance Shift, which is in points."""
    about = results["sets"] | (RELEARNED if results["protocol"]["relearn"] else {})
    if not about:
        return "no test has been made yet"
    head = ["", *(f"{name} {ARROWS[one['better']]}" for name, one in about.items())]
    body = [
        ["base + prefix" if s == "prefix" else s, *cells] for s in SUBJECTS if any(cells := _base(results, s, about))
    ]
    body += [
        [name, *(_cell(found["sets"].get(one), one) for one in about)] for name, found in results["summary"].items()
    ]
    return "\n".join([*blocks(head, body, num_fixed=1, width=width), _note(results)])


def _base(results: Mapping[str, Any], subject: str, about: Mapping[str, Any]) -> list[str]:
    """A baseline's cells, the mean over targets; empty where it was never asked."""
    found = [target[subject] for target in results["baselines"].values() if subject in target]
    if not found:
        return []
    cells = []
    for name in about:
        if name == "relearned":
            scores = [(one["relearned"] or {}).get("worst") for one in found]
        else:
            scores = [headline(one["scores"], name) for one in found]
        values = [score["value"] for score in scores if score and score["value"] is not None]
        cells.append(_cell({"mean": sum(values) / len(values) if values else None}, name))
    return cells


def _cell(found: Mapping[str, Any] | None, name: str) -> str:
    if not found or found["mean"] is None:
        return "-"
    return f"{found['mean']:+.1f}" if name == "shift" else f"{100 * found['mean']:.1f}"


def _note(results: Mapping[str, Any]) -> str:
    protocol, test = results["protocol"], results["protocol"]["test"]
    relearn = protocol["relearn"]
    words = [
        f"Means over {_count(test['targets'], 'target')} and {_count(test['seeds'], 'seed')}, per cent right",
        "shift in points" if "shift" in results["sets"] else "",
        f"relearned: after {relearn['steps']} steps on half of the facts, the other half, worst rate"
        if relearn
        else "",
        "↓ lower is better, ↑ higher",
    ]
    return "; ".join(filter(None, words)) + "."


def _count(items: Sequence[Any], word: str) -> str:
    return f"{len(items)} {word}{'s' if len(items) != 1 else ''}"


def problems_text(results: Mapping[str, Any]) -> str:
    """What failed, a line each; empty where nothing did."""
    failed = [row for row in results["runs"] if row["failed"]]
    lines = [f"{_about(row)}: {row['failed']}" for row in failed]
    if results["counts"]["reference"]["failed"]:
        lines.append("relearning of base or oracle: see reference/*/*/failed.json")
    lines += [
        f"{method['name']}: {method['failed']}, so it has no tests" for method in results["methods"] if method["failed"]
    ]
    return "\n".join(lines)


def _about(row: Mapping[str, Any]) -> str:
    if row["kind"] == "tune":
        return f"{row['method']}, trial {row['trial']}"
    return f"{row['method']}, {row['target']}, seed {row['seed']}"
