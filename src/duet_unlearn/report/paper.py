"""The paper's own numbers beside a run's, where its recipe asks one of the paper's benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from duet_unlearn.report.read import SUBJECTS, Column, RunData, cell_text

FILE = Path(__file__).with_name("paper.json")


def paper(run: RunData) -> dict[str, Any] | None:
    """The tables on the run's benchmarks, each with this run's rows below the paper's; None where there are none."""
    asked = (run.recipe.get("evaluate") or {}).get("benchmarks") or ()
    found = json.loads(FILE.read_text(encoding="utf-8"))
    tables = [table for table in found["tables"] if set(table["benchmarks"]) & set(asked)]
    if not tables:
        return None
    return {"source": found["source"], "caution": found["caution"], "tables": [_table(run, t) for t in tables]}


def _table(run: RunData, table: dict[str, Any]) -> dict[str, Any]:
    theirs = [(name, ["n/a" if number is None else f"{number:.2f}" for number in row]) for name, *row in table["rows"]]
    columns = [_column(run, name) for _, name in table["columns"]]
    subjects = [run.subjects[name] for name in SUBJECTS if name in run.subjects]
    ours = [
        (subject.label, [cell_text(subject.score(c.name, c.metric), c.metric) if c else "n/a" for c in columns])
        for subject in subjects
    ]
    return {"title": table["title"], "head": [title for title, _ in table["columns"]], "theirs": theirs, "ours": ours}


def _column(run: RunData, name: str) -> Column | None:
    """The run's column of a set; MMLU's is named after its shots."""
    shots = re.compile(rf"{re.escape(name)}(_\d+shot)?")
    return next((column for column in run.columns if name and shots.fullmatch(column.name)), None)
