"""docs/comparison.md: every method of a finished sweep, in the tables and pictures of its report, as Markdown.

python benchmarks/comparison.py SWEEP_DIR       keep what the page shows in results/comparison.json, then render
python benchmarks/comparison.py --render-only   the page again, from results/comparison.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expectations import RULE, expectations, paper_table
from pages import between, marks

from duet_unlearn.errors import UserError
from duet_unlearn.report import figures
from duet_unlearn.report.sweep_data import SweepData, parse_sweep, read_results
from duet_unlearn.report.sweep_page import (
    SweepCell,
    SweepLine,
    SweepTable,
    cost_table,
    facts,
    failures,
    headline,
    main_table,
    not_relearned,
    progress,
    protocol,
    robustness_table,
    tuning_table,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = Path("docs") / "comparison.md"
KEEP = ("comparison-forget-keep.svg", "comparison-forget-keep-corner.svg")
ROBUST = "comparison-robust-cost.svg"
MARKED = "comparison"
BEGIN, END = marks(MARKED)
COMMAND = "python benchmarks/comparison.py"
NEW = f"""# Every method under one protocol

{BEGIN}
{END}

## Where the lab contradicts a paper
"""
"""A page that does not exist yet; what stands outside the markers is written by hand and kept."""
RUN_KEYS = ("kind", "method", "target", "seed", "failed", "steps", "tokens", "seconds", "peak_memory")
HALO = "text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }"
"""As on the report's page: a label is read over a line."""


def compact(found: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's results without what no table shows: other metrics than the one that stands for a set, intervals, the
    scores of tuning runs, folders."""
    sets = found["sets"]
    kept = {key: value for key, value in found.items() if key not in ("runs", "baselines", "summary", "tune_sets")}
    baselines = {
        target: {
            name: {"scores": _scores(one["scores"], sets), "relearned": _again(one)} for name, one in subjects.items()
        }
        for target, subjects in found["baselines"].items()
    }
    return kept | {"baselines": baselines, "runs": [_run(run, sets) for run in found["runs"] if run["kind"] == "test"]}


def _run(run: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any]:
    short = {key: run[key] for key in RUN_KEYS if key in run}
    if run["failed"]:
        return short
    short["seconds"] = {phase: round(value, 2) for phase, value in run["seconds"].items()}
    return short | {"scores": _scores(run["scores"], sets), "relearned": _again(run)}


def _scores(scores: Mapping[str, Any], sets: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: (sets.get(name, {}).get("metric"), "right", "points", "refused") for name in scores}
    return {
        name: {metric: _score(score) for metric, score in metrics.items() if metric in shown[name]}
        for name, metrics in scores.items()
    }


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    value = score["value"]
    return {"value": None if value is None else round(value, 6), "n": score["n"]}


def _again(one: Mapping[str, Any]) -> dict[str, Any] | None:
    found = one.get("relearned")
    if not found or "worst" not in found:
        return found
    return {"worst": _score(found["worst"]), "rate": found["rate"], "before": _score(found["before"])}


def stored(found: Mapping[str, Any]) -> str:
    """The JSON text: a line a key, a method and a run."""
    lines = []
    for key, value in found.items():
        several = isinstance(value, list) and key in ("methods", "runs")
        text = "[\n" + ",\n".join(map(_json, value)) + "\n]" if several else _json(value)
        lines.append(f"{_json(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write(found: Mapping[str, Any], root: Path) -> None:
    """Put the page and its pictures below `root`.

    Raises:
        ValueError: the page has not exactly one pair of markers.
    """
    sweep, page = parse_sweep(found), root / PAGE
    page.parent.mkdir(exist_ok=True)
    text = page.read_text(encoding="utf-8") if page.exists() else NEW
    page.write_text(between(text, render(sweep), MARKED), encoding="utf-8")
    for name, svg in pictures(sweep).items():
        (page.parent / name).write_text(standalone(svg), encoding="utf-8")


def pictures(sweep: SweepData) -> dict[str, str]:
    """File name -> figure."""
    found = dict(zip(KEEP, figures.forget_keep_charts(sweep), strict=False))
    robust_cost = figures.robust_cost_chart(sweep)
    return found | ({ROBUST: robust_cost} if robust_cost else {})


def standalone(svg: str) -> str:
    """A figure of the report as a file of its own: with its size, its colours and a ground."""
    size = svg.split('viewBox="0 0 ')[1].split('"')[0].split()
    opened = str(svg).replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" ', 1
    )
    rectangle = f'<rect width="{size[0]}" height="{size[1]}" fill="var(--paper)"/>'
    ground = f"<style>{figures.palette_css()}\n{HALO}</style>{rectangle}"
    return opened.replace("</title>", f"</title>{ground}", 1) + "\n"


def render(sweep: SweepData) -> str:
    """Everything between the markers."""
    drawn = pictures(sweep)
    tables = [main_table(sweep), robustness_table(sweep), cost_table(sweep), tuning_table(sweep), paper_table(sweep)]
    parts = [
        _environment(sweep),
        " ".join(headline(sweep)),
        "## What was expected",
        f"Written down before the sweep. {RULE}",
        markdown(
            ["", "expected", "check"], [[one.decision, one.claim, one.check] for one in expectations(sweep)], "lll"
        ),
        "## Forgetting against keeping",
        *(f"![Forgetting against keeping]({name})" for name in drawn if name != ROBUST),
        f"{figures.FORGET_KEEP} {figures.PARETO}",
        "## Robustness against cost",
        *(f"![Worst attack against seconds]({name})" for name in drawn if name == ROBUST),
        figures.ROBUST_COST,
        *(f"## {table.title}\n\n{table.note}\n\n{table_text(table)}" for table in tables if table),
        "± is the standard deviation over targets, in brackets that over seeds. * some runs have no number here.",
        "## What failed, and what cannot be relearned",
        _list([*failures(sweep), *((name, f"not relearned: {why}") for name, why in not_relearned(sweep))]),
        "## Protocol",
        _list(protocol(sweep)),
    ]
    return "\n\n".join(parts)


def table_text(table: SweepTable) -> str:
    """A table in Markdown."""
    arrows = {"low": " ↓", "high": " ↑"}
    head = ["method", *(c.title + ("" if c.unit == "text" else arrows[c.better]) for c in table.columns)]
    align = "l" + "".join("l" if column.unit == "text" else "r" for column in table.columns)
    return markdown(head, [[_name(line), *map(_cell, line.cells)] for line in table.lines], align)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Lines of a table; `align` has l or r for each column."""
    rules = [{"l": ":---", "r": "---:"}[side] for side in align]
    lines = [head, rules, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(line: SweepLine) -> str:
    name = f"*{line.name}*" if line.kind == "inference" else line.name
    return f"{name} ({line.failed} failed)" if line.failed else name


def _cell(cell: SweepCell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    spread = f" ± {cell.over_targets}" if cell.over_targets else ""
    return text + ("*" if cell.partial else "") + spread + (f" ({cell.over_seeds})" if cell.over_seeds else "")


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in rows) or "Nothing."


def _environment(sweep: SweepData) -> str:
    found, packages = facts(sweep), sweep.facts.get("packages") or {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    commits = ", ".join(f"`{commit[:10]}`" for commit in sweep.facts.get("commits") or ())
    return (
        f"By `duet sweep {sweep.name}` and `{COMMAND}`, {found.get('date')}: {progress(sweep)}. Commit {commits}, "
        f"model `{str(found.get('model'))[:16]}`, {found.get('device')} ({found.get('platform')}, threads a run: "
        f"{found.get('threads')}), Python {found.get('python')}, {versions}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, nargs="?", help="the folder that `duet sweep` wrote")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "comparison.json", help="what is kept of it")
    parser.add_argument("--root", type=Path, default=ROOT, help="where docs/ lies")
    parser.add_argument("--render-only", action="store_true", help="read no sweep")
    args = parser.parse_args(arguments)
    if args.render_only == bool(args.sweep):
        parser.error("give the sweep's folder, or --render-only")
    if args.sweep:
        try:
            args.results.write_text(stored(compact(read_results(args.sweep))), encoding="utf-8")
        except UserError as error:
            sys.exit(f"error: {error}")
    write(json.loads(args.results.read_text(encoding="utf-8")), args.root)


if __name__ == "__main__":
    main()
