"""Runs beside each other as plain tables: subjects as rows, evaluation sets as columns, per cent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from duet_unlearn.errors import UserError
from duet_unlearn.report.read import SUBJECTS, Column, RunData, Score, cell_text, method_name, metric_words, read_run
from duet_unlearn.report.verdict import verdict

WIDTH = 100
"""Characters a plain table may be wide; more columns go into a further block below."""
NOT_SETTINGS = ("seed", "out")
"""Fields in which runs of one recipe may differ."""
ARROWS = {"low": "↓", "high": "↑", "zero": "→0"}
Cells = list[str]


@dataclass(frozen=True)
class Row:
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
class Line:
    """One line of the table: a subject, over all seeds of a recipe."""

    recipe: str
    method: str
    subject: str
    num_seeds: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def lines(self) -> list[Line]:
        """A line a recipe and subject; a base, prefix or oracle equal to one above it is left out."""
        lines: list[Line] = []
        keys = list(dict.fromkeys((row.recipe, row.subject) for row in self.rows))
        for key in sorted(keys, key=lambda key: SUBJECTS.index(key[1])):
            line = self._line([row for row in self.rows if (row.recipe, row.subject) == key])
            known = {above.cells for above in lines if above.subject == line.subject}
            if line.subject == "student" or line.cells not in known:
                lines.append(line)
        return lines

    def _line(self, rows: Sequence[Row]) -> Line:
        cells = tuple(spread([row.scores[c.name] for row in rows], c.metric) for c in self.columns)
        return Line(rows[0].recipe, rows[0].method, rows[0].subject, len(rows), cells)

    def _head(self) -> Cells:
        return ["subject", "recipe", "method", "runs", *_titles(self.columns)]

    def _body(self) -> list[Cells]:
        return [[a.subject, a.recipe, a.method, str(a.num_seeds), *a.cells] for a in self.lines()]

    def to_text(self, width: int = WIDTH) -> str:
        """Aligned columns, in blocks of at most ``width`` characters where one column fits."""
        return "\n".join([*blocks(self._head(), self._body(), num_fixed=4, width=width), self._note()])

    def to_markdown(self) -> str:
        """One pipe table, with numbers to the right."""
        head, body = self._head(), self._body()
        rule = [":---"] * 3 + ["---:"] * (len(head) - 3)
        lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in [head, rule, *body]]
        return "\n".join([*[f"| {line} |" for line in lines], "", self._note()])

    def to_json(self) -> str:
        """The columns, and every run's rows; NaN is null."""
        columns = [asdict(column) | {"better": column.better} for column in self.columns]
        found = {"columns": columns, "rows": [asdict(row) for row in self.rows]}
        return json.dumps(_without_nan(found), indent=2, ensure_ascii=False, allow_nan=False)

    def _note(self) -> str:
        seeds = any(line.num_seeds > 1 for line in self.lines())
        return _note(self.columns) + (" ± is the standard deviation over seeds (n - 1)." if seeds else "")


def _titles(columns: Sequence[Column]) -> Cells:
    return [f"{column.name} {ARROWS[column.better]}" for column in columns]


def _note(columns: Sequence[Column]) -> str:
    others = {"points": "{} in points", "refused": "{} per cent refused, having no known answers"}
    metrics = dict.fromkeys(c.metric for c in columns if c.metric != "right")
    found = {metric: ", ".join(c.name for c in columns if c.metric == metric) for metric in metrics}
    own = [f"{names}: {metric_words(metric)}, times 100" for metric, names in found.items() if metric not in others]
    words = ["Per cent right", *[others[metric].format(found[metric]) for metric in others if metric in found], *own]
    nought = ", →0 nearer to 0" if any(c.better == "zero" for c in columns) else ""
    return "; ".join([*words, f"↓ lower is better, ↑ higher{nought}."])


def compare(paths: Sequence[Path]) -> Comparison:
    """All subjects of several runs; runs that differ in nothing but the seed share a recipe name."""
    if not paths:
        raise UserError("no run to compare", "give one or more run folders")
    folders = [Path(path).resolve() for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{path}: is given twice", "name each run once: two of the same are no two seeds")
    runs = [read_run(Path(path)) for path in paths]
    for run in runs:
        _must_have_scores(run)
    found: dict[str, Column] = {}
    for column in [column for run in runs for column in run.columns]:
        found.setdefault(column.name, column)
    columns = tuple(found.values())
    named = zip(runs, _names([run.recipe for run in runs]), strict=True)
    return Comparison(columns, tuple(row for run, name in named for row in _rows(run, name, columns)))


def _must_have_scores(run: RunData) -> None:
    if not run.subjects:
        raise UserError(f"{run.path} has no scores yet", "finish the run, or evaluate it: duet evaluate RUN")


def _rows(run: RunData, name: str, columns: Sequence[Column]) -> list[Row]:
    return [
        Row(
            recipe=name,
            method=method_name(run.recipe),
            seed=run.recipe.get("seed"),
            subject=subject.name,
            path=str(run.path),
            scores={column.name: subject.score(column.name, column.metric) for column in columns},
        )
        for subject in run.subjects.values()
    ]


def _names(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each recipe's name; where settings differ under one name, those settings are added."""
    leaves = [_leaves({k: v for k, v in recipe.items() if k not in NOT_SETTINGS}) for recipe in recipes]
    names = []
    for own in leaves:
        same = [other for other in leaves if other.get("name") == own.get("name")]
        keys = [key for key in own if any(other.get(key) != own[key] for other in same)]
        names.append(" ".join([str(own.get("name", "?")), *[f"{key}={own[key]}" for key in keys]]))
    return names


def _leaves(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def spread(scores: Sequence[Score], metric: str) -> str:
    """One score, or the mean of several ± their sample standard deviation; a missing one makes ``n/a``."""
    if len(scores) == 1 or any(math.isnan(score.value) for score in scores):
        return cell_text(scores[0] if len(scores) == 1 else Score(math.nan, 0), metric)
    values = [score.value for score in scores]
    scale = 1 if metric == "points" else 100
    return f"{cell_text(Score(mean(values), 0), metric)} ± {scale * stdev(values):.1f}"


def summary_text(path: Path, width: int = WIDTH) -> str:
    """One run for a terminal: the verdict's two sentences, and the table with its subjects as rows."""
    run = read_run(Path(path))
    _must_have_scores(run)
    found = verdict(run)
    return f"{found.forgotten}\n{found.cost}\n\n{_table_text(run, width)}"


def _table_text(run: RunData, width: int) -> str:
    subjects = [run.subjects[name] for name in SUBJECTS if name in run.subjects]
    body = [[s.label, *[spread([s.score(c.name, c.metric)], c.metric) for c in run.columns]] for s in subjects]
    head = ["", *_titles(run.columns)]
    return "\n".join([*blocks(head, body, num_fixed=1, width=width), _note(run.columns)])


def blocks(head: Cells, body: Sequence[Cells], *, num_fixed: int, width: int) -> list[str]:
    """Tables of aligned lines, each with the first ``num_fixed`` columns, followed by an empty line."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    fixed, columns = range(num_fixed), range(num_fixed, len(head))
    room = width - sum(widths[i] + 2 for i in fixed)
    lines = []
    for part in _fill(columns, widths, room) or [[]]:
        for row in [head, *body]:
            left = [row[i].ljust(widths[i]) for i in fixed]
            lines.append("  ".join([*left, *[row[i].rjust(widths[i]) for i in part]]).rstrip())
        lines.append("")
    return lines


def _fill(columns: Sequence[int], widths: Sequence[int], room: int) -> list[list[int]]:
    parts: list[list[int]] = []
    used = room
    for column in columns:
        if used + widths[column] + 2 > room:
            parts.append([])
            used = 0
        parts[-1].append(column)
        used += widths[column] + 2
    return parts


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
