"""A sweep's page as plain values for its template: the headline, the tables, the paper's numbers, and how it was done.

``benchmarks/comparison.py`` writes the same tables and sentences as Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duet_unlearn.report import figures
from duet_unlearn.report.run_data import duration
from duet_unlearn.report.sweep_data import (
    ATTACK_GROUPS,
    KEEPS,
    KEPT_GROUPS,
    MeanOverRuns,
    MethodRow,
    SweepColumn,
    SweepData,
    SweepRow,
    best_of,
    keeps,
    read_sweep,
    worst_attack,
)

MISSING = "\N{EN DASH}"
FACTS = ("date", "platform", "python", "commits", "device", "threads", "model")
NEEDS = {
    "teacher": "prefix",
    "retain": "retain",
    "neighbours": "neighbours",
    "answers": "answers",
    "refusals": "refusals",
    "alternatives": "other answers",
    "texts": "text",
}
"""What a user has to give besides the forget queries (Table 3 of DUET), as a column each."""
MADE = {"reference": "base's outputs", "reinforced": "a reinforced model", "openings": "response prefixes"}
"""What a method makes for itself from these, in words."""
THEN = "; then, in italics, those that change no weights"
TIE_RULE = (
    "Bold: the best of the methods that change weights, and every other whose difference from it, target by target, is "
    "on average no larger than its standard deviation over the targets. Where that holds of all, none is marked, nor "
    "is a method with a failed run."
)
UNITS: dict[str, tuple[Callable[[float, str], str], str]] = {
    "share": (lambda value, sign: f"{round(100 * value, 1) + 0.0:{sign}.1f}", " %"),  # + 0.0: no -0.0
    "points": (lambda value, sign: f"{value:{sign}.1f}", " points"),
    "count": (lambda value, sign: f"{value:{sign},.0f}", ""),
    "seconds": (lambda value, sign: f"{value:{sign}.1f}", " s"),
    "memory": (lambda value, sign: f"{value / 2**20:{sign},.0f}", " MiB"),
}
"""Unit of a column -> how a number is written, and what stands behind it in a sentence."""


@dataclass(frozen=True)
class SweepCell:
    """A mean as text, with its spreads."""

    text: str
    over_targets: str = ""
    over_seeds: str = ""
    best: bool = False
    partial: bool = False
    """Some finished runs have no number here, which is left out of the mean."""
    title: str = ""


@dataclass(frozen=True)
class SweepLine:
    name: str
    kind: str
    cells: Sequence[SweepCell]
    about: str = ""
    failed: int = 0
    """Runs that failed, and are not in the means."""


@dataclass(frozen=True)
class SweepTable:
    key: str
    title: str
    note: str
    columns: Sequence[SweepColumn]
    lines: Sequence[SweepLine]


def sweep_context(path: Path) -> dict[str, Any]:
    """Everything that ``sweep.html.j2`` names.

    Raises:
        UserError: the folder's results cannot be read.
    """
    sweep = read_sweep(path)
    robust_cost = figures.robust_cost_chart(sweep)
    drawn = (
        ("Forgetting against keeping", figures.forget_keep_charts(sweep), figures.FORGET_KEEP),
        ("Robustness against cost", [robust_cost] if robust_cost else [], figures.ROBUST_COST),
    )
    return {
        "sweep": sweep,
        "headline": headline(sweep),
        "progress": progress(sweep),
        "tables": [main_table(sweep), robustness_table(sweep), cost_table(sweep), tuning_table(sweep)],
        "pictures": [(title, svgs, f"{caption} {figures.PARETO}") for title, svgs, caption in drawn if svgs],
        "failures": failures(sweep),
        "not_relearned": not_relearned(sweep),
        "facts": facts(sweep),
        "packages": sweep.facts.get("packages") or {},
        "protocol": protocol(sweep),
    }


def main_table(sweep: SweepData) -> SweepTable:
    """Forgetting and keeping."""
    columns = [*sweep.group("forget"), *sweep.group(*KEPT_GROUPS)]
    columns.append(SweepColumn("shift", "Shift", "high", "points", "Performance Shift against the base, in points"))
    lines = _lines(sweep.baselines, columns) + _lines(sweep.ranked("shift", "high"), columns)
    note = f"Sorted by Performance Shift, the highest first{THEN}."
    return SweepTable("main", "Forgetting and keeping", f"{note} {TIE_RULE}", columns, lines)


def robustness_table(sweep: SweepData) -> SweepTable:
    """What brings it back, next to what was plainly forgotten."""
    columns = [one for one in sweep.group(*ATTACK_GROUPS, "deployer") if one.better == "low"]
    if any(one.key == "forget_held_out" for one in sweep.sets):
        columns.insert(0, SweepColumn("forget_held_out", "plainly asked", "low", about="held-out wordings"))
    # The worst prompt, relearning, and the worst of all, as far as they were measured.
    above, relearn = " above oracle" if sweep.baseline("oracle") else "", sweep.protocol.get("relearn")
    steps = relearn["steps"] if relearn else 0
    again = f"the other half of the forget facts after {steps} steps on one half, at the worst of the rates"
    worst = [
        SweepColumn("prompted", f"worst prompt{above}", "low", about="of reverse prompt, prefilling and format shift"),
        SweepColumn("relearned", f"relearned, {steps} steps", "low", about=again),
        SweepColumn("worst", f"worst case{above}", "low", about="of these prompts and relearning"),
    ]
    worst = [column for column in worst if any(column.key in row.values for row in sweep.methods)]
    columns += worst
    rows = sweep.ranked("worst", "low")
    baselines, lines = _lines(sweep.baselines, columns), _lines(rows, columns)
    if any(column.key == "worst" for column in worst):
        columns.append(SweepColumn("by", "by", "low", "text"))
        baselines = [replace(line, cells=[*line.cells, SweepCell(MISSING)]) for line in baselines]
        for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
            by = worst_attack(sweep, row) or MISSING
            only = " (prompts only)" if by != MISSING and "relearned" not in row.values else ""
            lines[i] = replace(line, cells=[*line.cells, SweepCell(by + only)])
    note = (
        f"Sorted by the worst case, the lowest first{THEN}, which prompts alone can attack. A model that answers "
        f"nothing any more is robust, too: see above what was kept. {TIE_RULE}"
    )
    return SweepTable("robustness", "What brings it back", note, columns, [*baselines, *lines])


def cost_table(sweep: SweepData) -> SweepTable:
    """What a method has to be given, and what it takes to run."""
    costs = [
        SweepColumn("tokens", "training tokens", "low", "count", "tokens trained on, in all"),
        SweepColumn(
            "making", "seconds", "low", "seconds", "what makes the model: everything but probing and measuring"
        ),
        SweepColumn("peak_memory", "peak MiB", "low", "memory", "highest of the run's phases"),
    ]
    rows = sweep.ranked("making", "low")
    needs = [key for key in NEEDS if any(key in row.needs for row in rows)]
    lines = []
    for row, line in zip(rows, _lines(rows, costs), strict=True):
        given = [SweepCell("yes" if need in row.needs else "") for need in needs]
        made = SweepCell(", ".join(MADE.get(need, need) for need in sorted(row.needs - set(NEEDS))))
        lines.append(replace(line, cells=[*given, made, *line.cells]))
    heads = [SweepColumn(key, NEEDS[key], "low", "text") for key in needs]
    heads.append(SweepColumn("made", "makes itself", "low", "text"))
    note = (
        "Every method is given the forget queries; marked is what it reads besides them, first stages included. Sorted "
        f"by the seconds that make the model, the fewest first{THEN}. Bold as above."
    )
    return SweepTable("cost", "What it needs and costs", note, [*heads, *costs], lines)


def tuning_table(sweep: SweepData) -> SweepTable:
    """What was tried, and what was chosen."""

    def shown(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    def share(value: float | None) -> str:
        return MISSING if value is None else f"{value:.3f}"

    lines = []
    for row in sweep.methods:
        # Every setting with the values that it had: ``train.rate 0.001, 0.003; method.beta 0.1``.
        values: dict[str, dict[str, None]] = {}
        for trial in row.trials:
            for key, value in trial["settings"].items():
                values.setdefault(key, {})[shown(value)] = None
        tried = "; ".join(f"{key} {', '.join(found)}" for key, found in values.items())
        chosen = "; ".join(f"{key} {shown(value)}" for key, value in row.settings.items())
        best = next((trial for trial in row.trials if trial["trial"] == row.chosen), None)
        failed = sum(trial["failed"] is not None for trial in row.trials)
        cells = [
            tried if row.trials else row.untuned or MISSING,
            chosen or MISSING,
            *(share(best[key]) if best else MISSING for key in ("score", "forget", "keep")),
            str(len(row.trials)) if row.trials else MISSING,
            str(failed) if failed else "",
        ]
        lines.append(SweepLine(row.name, row.kind, [SweepCell(cell) for cell in cells], row.about))
    titles = ["tried", "chosen", "score", "forgotten share left", "kept share", "trials", "failed"]
    columns = [SweepColumn(title, title, "high", "text") for title in titles]
    tune = sweep.protocol["tune"]
    note = (
        f"One run a trial, on validation questions (seed {tune['seed']}). Score: harmonic mean of what was forgotten "
        f"({', '.join(tune['forget'])}, mean share of the base's) and what was kept ({', '.join(tune['keep'])}, lowest "
        "share of the base's). In the suite's order."
    )
    return SweepTable("tuning", "What was tuned", note, columns, lines)


def headline(sweep: SweepData) -> list[str]:
    """A few sentences on the methods that change weights, by rule: the best Shift, the best without forgotten answers,
    and who is hardest to bring back while keeping the rest."""

    def named(row: MethodRow, key: str) -> str:
        cell = sweep_cell(row, SweepColumn(key, key, "low", "points" if key == "shift" else "share"))
        spread = f" ± {cell.over_targets}" if cell.over_targets else ""
        return f"{row.name} {cell.text}{spread}{' points' if key == 'worst' else ''}"

    rows = [row for row in sweep.ranked("shift", "high") if row.kind == "trained" and row.values.get("shift")]
    if not rows:
        return ["No method has been tested yet."]
    found = f"Best Performance Shift of the methods that change weights: {named(rows[0], 'shift')}"
    free = [row for row in rows if not row.sees_answers]
    if free and free[0] is not rows[0]:
        found += f"; of those that see no forgotten answer: {named(free[0], 'shift')}"
    sentences = [f"{found}."]
    hardest = [row for row in sweep.ranked("worst", "low") if row.kind == "trained" and keeps(sweep, row)]
    if hardest and hardest[0].values.get("worst"):
        above = " above the oracle" if sweep.baseline("oracle") else ""
        sentences.append(
            f"Hardest to bring back, of those that keep within {100 * KEEPS:.0f} points of the base: "
            f"{named(hardest[0], 'worst')}{above} in the worst case, mostly {worst_attack(sweep, hardest[0])}."
        )
    return sentences


def failures(sweep: SweepData) -> list[tuple[str, str]]:
    """(method, what failed) of every test run and trial that failed; trials of one reason are one line."""
    found = [(row.name, what) for row in sweep.methods for what in row.failures]
    for row in sweep.methods:
        by_reason: dict[str, list[str]] = {}
        for trial in row.trials:
            if trial["failed"] is not None:
                by_reason.setdefault(trial["failed"], []).append(str(trial["trial"]))
        for reason, trials in by_reason.items():
            found.append((row.name, f"trial{'s' if len(trials) > 1 else ''} {', '.join(trials)}: {reason}"))
    return found


def not_relearned(sweep: SweepData) -> list[tuple[str, str]]:
    """(method, why) of what cannot be relearned."""
    return [(row.name, row.not_relearned) for row in sweep.methods if row.not_relearned]


def progress(sweep: SweepData) -> str:
    """How many runs there were, and whether any are to come."""
    parts = [f"{len(sweep.methods)} methods"]
    for kind, noun in (("tune", "tuning runs"), ("test", "test runs")):
        counts: Mapping[str, int] = sweep.counts.get(kind, {})
        if counts.get("total"):
            failed = f" ({counts['failed']} failed)" if counts.get("failed") else ""
            parts.append(f"{counts['done'] + counts['failed']} of {counts['total']} {noun}{failed}")
    parts.append(f"{duration(sweep.facts.get('seconds') or 0.0)} in all, one run after the other")
    return ", ".join(parts) + ("" if sweep.complete else "; not finished: what follows is of the runs done so far")


def protocol(sweep: SweepData) -> list[tuple[str, str]]:
    """What decided the comparison, as terms and their values."""
    settings = sweep.protocol
    tune, test, relearn = settings["tune"], settings["test"], settings.get("relearn")
    rates = ", ".join(f"{rate:g}" for rate in (relearn or {}).get("rates", ()))
    return [
        ("trials of each method", str(settings["trials"])),
        ("tuning", f"seed {tune['seed']}; should fall: {', '.join(tune['forget'])}; stay: {', '.join(tune['keep'])}"),
        ("tests", f"{', '.join(test['targets'])}; seeds {', '.join(map(str, test['seeds']))}"),
        ("relearning", f"{relearn['steps']} steps at {rates}, the worst counts" if relearn else "none"),
    ]


def facts(sweep: SweepData) -> dict[str, str]:
    """Machine and versions."""
    found = {key: sweep.facts[key] for key in FACTS if sweep.facts.get(key) is not None}
    return {key: ", ".join(value) if isinstance(value, list) else str(value) for key, value in found.items()}


def _lines(rows: Iterable[SweepRow], columns: Sequence[SweepColumn]) -> list[SweepLine]:
    """A line a row; the best of those that change weights are marked."""
    rows = list(rows)
    rivals = [row for row in rows if row.kind == "trained"]
    best = {column.key: best_of(rivals, column.key, column.better) for column in columns}
    lines = []
    for row in rows:
        cells = [replace(sweep_cell(row, column), best=row.name in best[column.key]) for column in columns]
        method = isinstance(row, MethodRow)
        about, failed = (row.about, len(row.failures)) if method else ("", 0)
        lines.append(SweepLine(row.label, row.kind, cells, about, failed))
    return lines


def sweep_cell(row: SweepRow, column: SweepColumn) -> SweepCell:
    """A mean in the unit of its column."""
    mean: MeanOverRuns = row.mean(column.key)
    if math.isnan(mean.value):
        return SweepCell(MISSING, title=f"{row.label}, {column.title}: not measured")
    (show, unit), sign = UNITS[column.unit], "+" if column.unit == "points" else ""
    targets, seeds = ("" if math.isnan(s) else show(s, "") for s in (mean.over_targets, mean.over_seeds))
    words = [f"{row.label}, {column.title}: {show(mean.value, sign)}{unit}"]
    words += [f"± {targets} over targets"] if targets else []
    words += [f"± {seeds} over seeds"] if seeds else []
    words += [f"{mean.runs} run{'s' if mean.runs > 1 else ''}"] + ([f"n = {mean.n}"] if mean.n else [])
    done = row.num_runs - (len(row.failures) if row.kind != "baseline" else 0)
    return SweepCell(show(mean.value, sign), targets, seeds, partial=mean.runs < done, title="; ".join(words))
