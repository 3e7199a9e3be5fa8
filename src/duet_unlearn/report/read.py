"""A run folder's files as typed, frozen data.

Every file but ``recipe.yaml`` may be missing: a run is shown as far as it got.
A null in a score file is NaN here, and n says how many questions stand behind a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from duet_unlearn.errors import UserError
from duet_unlearn.redact import require_not_purged

SUBJECTS = ("base", "prefix", "oracle", "student")
"""The rows of every table, in this order."""
GROUPS = ("forget", "neighbour", "retain", "choice", "robustness", "deployer", "privacy", "summary")
"""The groups of evaluation sets, in the order of the table's columns."""


@dataclass(frozen=True)
class Score:
    value: float
    """A share in 0..1, or points for Performance Shift; NaN if nothing was asked."""
    n: int
    low: float = math.nan
    high: float = math.nan


NO_SCORE = Score(value=math.nan, n=0)
METRIC_WORDS = {
    "rouge_l": "ROUGE-L",
    "right_per_character": "right per character",
    "choice_probability": "probability among options",
    "truth_ratio_paper": "truth ratio (paper)",
    "truth_ratio_prob": "truth ratio (probability)",
    "auc_gap": "AUC less the ideal",
    "auc_min_k": "AUC of min-k",
    "auc_min_k_plus_plus": "AUC of min-k++",
    "auc_loss": "AUC of the loss",
    "auc_zlib": "AUC of loss over zlib",
    "forget_quality": "p-value",
}
"""What a metric is called where its name is not enough."""
NUM_NAMED = 3
"""Concepts of requests that are named in a sentence."""


def cell_text(score: Score, metric: str) -> str:
    """Per cent with one decimal, points with a sign, or ``n/a``."""
    if math.isnan(score.value):
        return "n/a"
    return f"{score.value:+.1f}" if metric == "points" else f"{100 * score.value:.1f}"


@dataclass(frozen=True)
class Column:
    """One evaluation set and the metric that stands for it in a table."""

    name: str
    title: str
    group: str
    goal: Literal["forget", "keep"]
    """What unlearning should do to the knowledge that this set asks for."""
    about: str
    metric: str
    """``right``, or ``refused`` where the questions have no known answers, or ``points``, or a benchmark's own."""
    ideal: Literal["end", "zero"] = "end"
    """Where the best value lies: at an end of the scale, or at 0 (PrivLeak)."""

    @property
    def better(self) -> Literal["low", "high", "zero"]:
        """The better direction of the metric: a refusal is good exactly where forgetting is."""
        if self.ideal == "zero":
            return "zero"
        return "low" if (self.goal == "forget") != (self.metric == "refused") else "high"


@dataclass(frozen=True)
class SubjectResult:
    name: str
    label: str
    seconds: float
    scores: Mapping[str, Mapping[str, Score]]
    """Set -> metric -> score."""

    def score(self, set_name: str, metric: str) -> Score:
        return self.scores.get(set_name, {}).get(metric, NO_SCORE)


@dataclass(frozen=True)
class RunData:
    path: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    env: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    """StepLogs in order of step, one a step; those that validated have a ``validation`` loss."""
    probe: Mapping[str, Any]
    shifts: Sequence[Mapping[str, Any]]
    """First-token distributions of a few queries, with the student's where it was measured."""
    subjects: Mapping[str, SubjectResult]
    columns: tuple[Column, ...]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    timings: Mapping[str, Mapping[str, float]]
    requests: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Score]]]]
    """Subject -> deletion request -> set -> metric -> score; empty where no query has a request."""
    attacks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Attack -> subject -> what `duet attack` stored."""
    redacted: bool = False
    """Whether hashes stand in place of words, and samples are left out."""


def read_run(path: Path) -> RunData:
    """Everything a report shows; a folder without ``recipe.yaml`` is a UserError, and so is a purged run."""
    path = Path(path)
    require_not_purged(path)
    recipe_text = _recipe_text(path)
    evals = {name: _json(path / "evals" / f"{name}.json", default=None) for name in SUBJECTS}
    evals = {name: found for name, found in evals.items() if found is not None}
    subjects = {name: _subject(name, found) for name, found in evals.items()}
    probe = _json(path / "probe.json", default={})
    return RunData(
        path=path,
        recipe=_parse_yaml(path / "recipe.yaml", recipe_text),
        recipe_text=recipe_text,
        env=_json(path / "env.json", default={}),
        steps=_metrics(path / "metrics.jsonl"),
        probe=probe,
        shifts=_json(path / "evals" / "first_tokens.json", default=probe.get("shift", [])),
        subjects=subjects,
        columns=_columns(evals, subjects),
        samples={name: _jsonl(path / "samples" / f"{name}.jsonl") for name in SUBJECTS},
        timings=_json(path / "timings.json", default={}),
        requests={
            name: {request: _scores(sets) for request, sets in found["requests"].items()}
            for name, found in evals.items()
            if found.get("requests")
        },
        attacks=_attacks(path / "attacks"),
    )


def metric_words(metric: str) -> str:
    """A metric as a reader calls it."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def what_was_forgotten(run: RunData) -> str:
    """The recipe's concept, and those that requests brought themselves: how many, and the first few."""
    concept = run.recipe.get("concept") or "the concept"
    own = run.env.get("concepts", [])
    if own:
        rest = f" and {len(own) - NUM_NAMED} more" if len(own) > NUM_NAMED else ""
        noun = "concept of a request" if len(own) == 1 else "concepts of requests"
        return f"{concept} ({len(own)} {noun}: {', '.join(own[:NUM_NAMED])}{rest})"
    num = len({request for by_request in run.requests.values() for request in by_request})
    return f"{concept} ({num} deletion request{'s' if num > 1 else ''})" if num else concept


def method_name(recipe: Mapping[str, Any]) -> str:
    """The method of a recipe, as ``duet``."""
    method = recipe.get("method") or {}
    return method.get("name", "?") if isinstance(method, Mapping) else str(method)


def _recipe_text(path: Path) -> str:
    try:
        return (path / "recipe.yaml").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        hint = "give the folder that `duet run` or `duet demo` wrote"
        raise UserError(f"{path} is not a run folder: it has no recipe.yaml", hint) from None


def _parse_yaml(path: Path, text: str) -> Mapping[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        raise UserError(f"{path} is not a recipe", "the run folder was changed by hand; run the recipe again")
    return recipe


def _json(path: Path, *, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON", "delete the file and run the same command again") from None


def _jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a torn last line, left by a killed run, is dropped."""
    if not path.exists():
        return []
    lines, rows = path.read_text(encoding="utf-8").split("\n"), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            hint = "delete the line and run the same command again"
            raise UserError(f"{path}:{number} is not JSON", hint) from None
    return rows


def _attacks(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for subject in SUBJECTS:
        for path in sorted((folder / subject).glob("*.json")):
            found.setdefault(path.stem, {})[subject] = _json(path, default={})
    return found


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Step rows in order; a resumed run repeats steps, and the later row counts."""
    steps = {row["step"]: row for row in _jsonl(path)}
    return [steps[step] for step in sorted(steps)]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _subject(name: str, found: Mapping[str, Any]) -> SubjectResult:
    return SubjectResult(name, found.get("label", name), _number(found.get("seconds")), _scores(found["scores"]))


def _scores(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Score]]:
    """Set -> metric -> score."""
    return {
        set_name: {
            metric: Score(
                value=_number(score["value"]),
                n=score["n"],
                low=_number(score.get("low")),
                high=_number(score.get("high")),
            )
            for metric, score in metrics.items()
        }
        for set_name, metrics in found.items()
    }


def _columns(evals: Mapping[str, Mapping[str, Any]], subjects: Mapping[str, SubjectResult]) -> tuple[Column, ...]:
    """The union of all subjects' sets, ordered by group."""
    infos: dict[str, Mapping[str, Any]] = {}
    for found in evals.values():
        for set_name in found["scores"]:
            infos.setdefault(set_name, found.get("sets", {}).get(set_name, {}))
    columns = [
        Column(
            name=name,
            title=info.get("title", name),
            group=info.get("group", "other"),
            goal="forget" if info.get("better") == "low" else "keep",
            about=info.get("about", ""),
            metric=info.get("metric") or _metric(name, subjects),
            ideal="zero" if info.get("better") == "zero" else "end",
        )
        for name, info in infos.items()
    ]
    order = {group: place for place, group in enumerate(GROUPS)}
    return tuple(sorted(columns, key=lambda column: order.get(column.group, len(order))))


def _metric(set_name: str, subjects: Mapping[str, SubjectResult]) -> str:
    """``right`` if any subject could be marked; questions without answers can only be refused."""
    found = {
        metric: max(subject.score(set_name, metric).n for subject in subjects.values())
        for metric in ("right", "refused", "points")
    }
    return max(found, key=lambda metric: found[metric] > 0)
