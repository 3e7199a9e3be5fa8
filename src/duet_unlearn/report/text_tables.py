"""Runs as plain text tables: one run for a terminal, several runs compared, and the comparison as JSON.

Subjects are rows and evaluation sets columns, in per cent. Runs that differ in nothing but the seed are one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from duet_unlearn.errors import UserError
from duet_unlearn.report.run_data import SUBJECTS, Column, cell_text, method_name, metric_words, read_run
from duet_unlearn.report.verdict import verdict
from duet_unlearn.stats import Score

WIDTH = 100
"""Characters a plain table may be wide; more columns go into a further block below."""
NOT_SETTINGS = ("seed", "out")
"""Fields in which runs of one recipe may differ."""
ARROWS = {"low": "↓", "high": "↑", "zero": "→0"}


@dataclass(frozen=True)
class ComparedSubject:
    """One subject of one run."""

    recipe: str
    """The recipe's name, with the settings that tell it from another recipe of that name."""
    method: str
    seed: int | None
    subject: str
    path: str
    scores: Mapping[str, Score]
    """Set -> score of the column's metric."""


@dataclass(frozen=True)
class Comparison:
    columns: tuple[Column, ...]
    rows: tuple[ComparedSubject, ...]

    def to_text(self, width: int = WIDTH) -> str:
        """Aligned columns, in blocks of at most ``width`` characters where one column fits.

        A line is a subject over all seeds of a recipe; a base, prefix or oracle equal to one above it is left out.
        """
        body: list[list[str]] = []
        shown: set[tuple[str, ...]] = set()
        keys = dict.fromkeys((row.recipe, row.subject) for row in self.rows)
        for recipe, subject in sorted(keys, key=lambda key: SUBJECTS.index(key[1])):
            rows = [row for row in self.rows if (row.recipe, row.subject) == (recipe, subject)]
            cells = [_spread([row.scores[c.name] for row in rows], c.metric) for c in self.columns]
            if subject == "student" or (subject, *cells) not in shown:
                body.append([subject, recipe, rows[0].method, str(len(rows)), *cells])
            shown.add((subject, *cells))
        head = ["subject", "recipe", "method", "runs", *_titles(self.columns)]
        several = any(line[3] != "1" for line in body)
        note = _note(self.columns) + (" ± is the standard deviation over seeds (n - 1)." if several else "")
        return "\n".join([*blocks(head, body, num_fixed=4, width=width), note])

    def to_json(self) -> str:
        """The columns, and every run's rows; NaN is null."""
        columns = [asdict(column) | {"better": column.better} for column in self.columns]
        rows = [
            asdict(row) | {"scores": {name: score.to_json() for name, score in row.scores.items()}} for row in self.rows
        ]
        return json.dumps({"columns": columns, "rows": rows}, indent=2, ensure_ascii=False, allow_nan=False)


def compare(paths: Sequence[Path]) -> Comparison:
    """All subjects of several runs; runs that differ in nothing but the seed share a recipe name.

    Raises:
        UserError: no path, the same run twice, or a run without scores.
    """
    if not paths:
        raise UserError("no run to compare", "give one or more run folders")
    folders = [Path(path).resolve() for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{path}: is given twice", "name each run once: two of the same are no two seeds")
    runs = [read_run(Path(path)) for path in paths]
    found: dict[str, Column] = {}
    for run in runs:
        _require_scores(run.path, run.subjects)
        for column in run.columns:
            found.setdefault(column.name, column)
    rows = [
        ComparedSubject(
            recipe=name,
            method=method_name(run.recipe),
            seed=run.recipe.get("seed"),
            subject=subject.name,
            path=str(run.path),
            scores={column.name: subject.score(column.name, column.metric) for column in found.values()},
        )
        for run, name in zip(runs, _recipe_names([run.recipe for run in runs]), strict=True)
        for subject in run.subjects.values()
    ]
    return Comparison(tuple(found.values()), tuple(rows))


def summary_text(path: Path, width: int = WIDTH) -> str:
    """One run for a terminal: the verdict's two sentences, and the table with its subjects as rows."""
    run = read_run(Path(path))
    _require_scores(run.path, run.subjects)
    found = verdict(run)
    body = [
        [one.label, *(cell_text(one.score(c.name, c.metric).value, c.metric) for c in run.columns)]
        for name in SUBJECTS
        if (one := run.subjects.get(name))
    ]
    table = blocks(["", *_titles(run.columns)], body, num_fixed=1, width=width)
    return "\n".join([found.forgotten, found.cost, "", *table, _note(run.columns)])


def blocks(head: Sequence[str], body: Sequence[Sequence[str]], *, num_fixed: int, width: int) -> list[str]:
    """Tables of aligned lines, each with the first ``num_fixed`` columns, followed by an empty line."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    room = width - sum(widths[i] + 2 for i in range(num_fixed))
    parts: list[list[int]] = [[]]
    for column in range(num_fixed, len(head)):
        if parts[-1] and sum(widths[i] + 2 for i in [*parts[-1], column]) > room:
            parts.append([])
        parts[-1].append(column)
    lines = []
    for part in parts:
        for row in [head, *body]:
            left = [row[i].ljust(widths[i]) for i in range(num_fixed)]
            lines.append("  ".join([*left, *[row[i].rjust(widths[i]) for i in part]]).rstrip())
        lines.append("")
    return lines


def _require_scores(path: Path, subjects: Mapping[str, Any]) -> None:
    if not subjects:
        raise UserError(f"{path} has no scores yet", "finish the run, or evaluate it: duet evaluate RUN")


def _titles(columns: Sequence[Column]) -> list[str]:
    return [f"{column.name} {ARROWS[column.better]}" for column in columns]


def _note(columns: Sequence[Column]) -> str:
    """What the numbers are, metric by metric, and which direction is the better one."""
    usual = {"points": "{} in points", "refused": "{} per cent refused, having no known answers"}
    names: dict[str, str] = {}
    for column in columns:
        if column.metric != "right":
            names[column.metric] = ", ".join(filter(None, [names.get(column.metric), column.name]))
    words = ["Per cent right", *(usual[metric].format(names[metric]) for metric in usual if metric in names)]
    words += [f"{sets}: {metric_words(metric)}, times 100" for metric, sets in names.items() if metric not in usual]
    zero = ", →0 nearer to 0" if any(c.better == "zero" for c in columns) else ""
    return "; ".join([*words, f"↓ lower is better, ↑ higher{zero}."])


def _recipe_names(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each recipe's name; where settings differ under one name, those settings are added."""

    def leaves(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found |= leaves(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
        return found

    flat = [leaves({k: v for k, v in recipe.items() if k not in NOT_SETTINGS}) for recipe in recipes]
    names = []
    for own in flat:
        same = [other for other in flat if other.get("name") == own.get("name")]
        keys = [key for key in own if any(other.get(key) != own[key] for other in same)]
        names.append(" ".join([str(own.get("name", "?")), *[f"{key}={own[key]}" for key in keys]]))
    return names


def _spread(scores: Sequence[Score], metric: str) -> str:
    """One score, or the mean of several ± their sample standard deviation; a missing one makes ``n/a``."""
    values = [score.value for score in scores]
    if len(values) == 1 or any(map(math.isnan, values)):
        return cell_text(values[0] if len(values) == 1 else math.nan, metric)
    scale = 1 if metric == "points" else 100
    return f"{cell_text(mean(values), metric)} ± {scale * stdev(values):.1f}"
