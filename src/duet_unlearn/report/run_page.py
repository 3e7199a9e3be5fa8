"""A run's page: what each of its sections shows, and the file with everything in it.

One self-contained HTML page without scripts, network or model text that is not escaped. What a section shows is made
here as plain values; how it looks is the template's.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from duet_unlearn.errors import UserError
from duet_unlearn.redact import Shown
from duet_unlearn.report import figures
from duet_unlearn.report.run_data import (
    SUBJECTS,
    Column,
    RunData,
    SubjectScores,
    cell_text,
    duration,
    method_name,
    metric_words,
    papers_tables,
    read_run,
    redacted,
    redactor_of,
    what_was_forgotten,
)
from duet_unlearn.report.sweep_data import is_sweep
from duet_unlearn.report.sweep_page import sweep_context
from duet_unlearn.report.verdict import (
    OUTCOME_WORDS,
    RECOVERY_RULE,
    VERDICT_RULE,
    AttackSummary,
    Outcome,
    attack_summaries,
    verdict,
)
from duet_unlearn.stats import NOTHING, Score

if TYPE_CHECKING:
    import jinja2

ENV_FACTS = ("started", "platform", "python", "commit", "device", "threads", "seed")
"""Fields of ``env.json`` shown under Settings, where they are known."""
REDACTED = "report-redacted.html"
"""The page without words."""
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
VISIBLE = str.maketrans({" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5"})
"""Spaces and line breaks in a token are shown: they are part of it."""
PROBE_SHARES = {
    "refused": "Refused on forget queries with the prefix:",
    "refused_without": "Without it:",
    "agreement": "First-token top-K shared on retain queries:",
}
ANSWER_TONES = {
    "forget": {"right": "bad", "refused": "good", "wrong": "good"},
    "keep": {"right": "good", "refused": "mixed", "wrong": "bad"},
}
"""Goal of a set -> outcome of an answer -> its colour."""
MAX_COLUMNS = 12
"""Columns of one table at most, which are about as wide as the page; further groups go into a table below."""
MAX_ANSWER = 600
"""Characters of an answer that are shown."""
NUM_SAMPLES = 20
SAMPLE_SUBJECTS = ("base", "prefix", "student")
SAMPLE_RULE = (
    "Every k-th question of each set in order of its id hash (SHA-256). "
    f"The {NUM_SAMPLES} questions are shared out over the sets as evenly as they go, and k is a set's size divided by "
    "its share. No answer was looked at to choose them."
)
ACCESS_TITLES = {
    "chat": "By asking",
    "opening": "By opening the answer too",
    "decoding": "By choosing how tokens are drawn too, or reading their probabilities",
    "weights": "With the weights",
}
"""What an attacker needs, in words."""
OUTCOME_TONES: Mapping[Outcome, str] = {
    "back": "bad",
    "part": "mixed",
    "nothing": "good",
    "trace": "mixed",
    "no trace": "good",
}
MEASURES = {"right": ("% of facts", 100, 1), "auc": ("AUC", 1, 2), "bits": ("bits", 1, 1)}
"""Metric of an attack -> its unit, and how its numbers are written: times what, with how many digits."""
NUM_WORST = 3
"""Attacks whose answers are shown."""
NUM_ANSWERS = 5
"""Answers shown of each."""


def write_report(path: Path, *, shown: Shown = "everything") -> Path:
    """Writes ``report.html`` into a run's or a sweep's folder, whole or not at all, and returns its path; of a run that
    is not to show everything ``report-redacted.html``.

    Raises:
        UserError: no such folder; a sweep that is not to show everything.
    """
    page = render_report(path, shown=shown)
    target = Path(path) / ("report.html" if shown == "everything" else REDACTED)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        # A model can emit half a surrogate pair, which UTF-8 cannot hold: it becomes a question mark.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        hint = "free some space or check the folder's rights"
        raise UserError(f"cannot write {target}: {error.strerror}", hint) from None
    return target


def render_report(path: Path, *, shown: Shown = "everything") -> str:
    """The page of a run folder, or of a sweep's; any other folder is a UserError."""
    if is_sweep(Path(path)):
        if shown != "everything":
            raise UserError(f"{path}: is a sweep, whose report has no answers to redact", "redact a run of it")
        return page_template(Path(__file__).with_name("sweep.html.j2")).render(sweep_context(Path(path))) + "\n"
    run = read_run(path)
    return render_run(run if shown == "everything" else redacted(run, redactor_of(run, shown)))


def render_run(run: RunData) -> str:
    """The page of a run that was read."""
    subjects = [run.subjects[name] for name in SUBJECTS if name in run.subjects]
    # A column needs a number of some subject; each has the number of its note.
    empty = [c for c in run.columns if all(math.isnan(s.score(c.name, c.metric).value) for s in subjects)]
    columns = list(enumerate([column for column in run.columns if column not in empty], start=1))
    context = {
        "run": run,
        "name": run.recipe.get("name") or run.path.name,
        "concept": what_was_forgotten(run) if run.recipe.get("concept") else "",
        "method": method_name(run.recipe),
        "verdict": verdict(run),
        "verdict_rule": VERDICT_RULE,
        "tables": _score_tables(subjects, columns),
        "empty": [column.title for column in empty],
        "limit": (run.recipe.get("evaluate") or {}).get("limit"),
        "missing": [name for name in SUBJECTS if name not in run.subjects],
        "requests": _requests(run),
        "paper": _paper(run, subjects),
        "picture": _forget_keep(run, subjects),
        "bars": [
            {"column": column, "svg": figures.bars_chart(column.name, column.title, scores)}
            for column in run.columns
            if column.group in ("robustness", "deployer")
            for scores in [{one.name: one.score(column.name, column.metric) for one in subjects}]
        ],
        "attacks": _attacks(attack_summaries(run)),
        "recovery_rule": RECOVERY_RULE,
        "probe_shares": PROBE_SHARES,
        # The first two forget and the first two retain queries.
        "shifts": [row for role in ("forget", "retain") for row in [r for r in run.shifts if r["role"] == role][:2]],
        "visible": lambda token: token.translate(VISIBLE) or "\u2205",
        "curves": [
            (title, svg)
            for name, title, colour in (
                ("loss", "Training loss", "student"),
                ("validation", "Validation loss", "prefix"),
            )
            if (svg := figures.curve_chart(name, f"{title} over steps", _steps(run, name), colour=colour))
        ],
        "samples": _samples(run),
        "sample_rule": SAMPLE_RULE,
        "clip": _clip,
        "measured": _measured,
        "interval": _interval,
        "amount": _amount,
        "measures": MEASURES,
        "outcomes": OUTCOME_WORDS,
        "tones": OUTCOME_TONES,
        "metric_words": metric_words,
        "duration": duration,
        "order": SUBJECTS,
        "warnings": run.env.get("warnings", []),
        "facts": {key: run.env[key] for key in ENV_FACTS if run.env.get(key) is not None},
    }
    return page_template(Path(__file__).with_name("report.html.j2")).render(context) + "\n"


@cache
def page_template(path: Path) -> jinja2.Template:
    """The template of a page or a text; in HTML every value is escaped, and one that is not there is an error.

    Compiled once a process: that takes a tenth of a second, as long as all the rest of a small page.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=path.name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)


def _score_tables(subjects: Sequence[SubjectScores], columns: Sequence[tuple[int, Column]]) -> list[dict[str, Any]]:
    """The columns of each table, as many whole groups as fit the page, and its rows, a subject each."""
    tables: list[list[tuple[str, list[tuple[int, Column]]]]] = []
    width = MAX_COLUMNS
    for key, found in groupby(columns, key=lambda pair: pair[1].group):
        members = list(found)
        if width + len(members) > MAX_COLUMNS:
            tables.append([])
            width = 0
        width += len(members)
        tables[-1].append((key, members))
    return [
        {
            "groups": [{"title": GROUP_TITLES.get(key, key), "columns": members} for key, members in groups],
            "rows": [
                {
                    "subject": subject,
                    "cells": [
                        _score_cell(subject, column, first=place == 0)
                        for _, members in groups
                        for place, (_, column) in enumerate(members)
                    ],
                }
                for subject in subjects
            ],
        }
        for groups in tables
    ]


def _score_cell(subject: SubjectScores, column: Column, *, first: bool) -> dict[str, Any]:
    """A number, and what is shown when somebody points at it: interval, other metrics, n."""
    score = subject.score(column.name, column.metric)
    text = cell_text(score.value, column.metric)
    unit, scale = (" points", 1) if column.metric == "points" else (" %", 100)
    words = [f"{subject.label}, {column.title}: {text}{unit} {metric_words(column.metric)}"]
    if not math.isnan(score.low + score.high):
        words.append(f"interval {scale * score.low:.1f} to {scale * score.high:.1f}")
    for metric, sign in (("refused", " %"), ("wrong", " %"), ("rouge_l", "")):
        other = subject.score(column.name, metric)
        if (metric != column.metric or metric == "rouge_l") and not math.isnan(other.value):
            words.append(f"{metric_words(metric)} {100 * other.value:.1f}{sign}")
    return {
        "text": text,
        "score": score,
        "line": column.metric != "points",
        "first": first,
        "title": "; ".join([*words, f"n = {score.n}"]),
    }


def _requests(run: RunData) -> list[dict[str, Any]]:
    """A row a deletion request and set, with each subject's score in the metric that stands for the set."""
    names = [name for name in SUBJECTS if name in run.requests]
    rows = []
    for column in run.columns:
        asked = {request for by_request in run.requests.values() for request in by_request}
        for request in sorted(asked):
            found = {name: run.requests[name].get(request, {}).get(column.name) for name in names}
            if any(metrics is not None for metrics in found.values()):
                scores = {name: (metrics or {}).get(column.metric, NOTHING) for name, metrics in found.items()}
                cells = [(name, cell_text(score.value, column.metric), score.n) for name, score in scores.items()]
                rows.append({"request": request, "column": column, "cells": cells})
    return rows


def _paper(run: RunData, subjects: Sequence[SubjectScores]) -> dict[str, Any] | None:
    """The paper's tables on the run's benchmarks, each with this run's rows below the paper's; None where there are
    none."""
    asked = set((run.recipe.get("evaluate") or {}).get("benchmarks") or ())
    found, tables = papers_tables(), []
    for table in found["tables"]:
        if not asked & set(table["benchmarks"]):
            continue
        # MMLU's set is named after its shots.
        patterns = [re.compile(rf"{re.escape(name)}(_\d+shot)?") if name else None for _, name in table["columns"]]
        columns = [next((c for c in run.columns if one and one.fullmatch(c.name)), None) for one in patterns]
        ours = [
            (one.label, [cell_text(one.score(c.name, c.metric).value, c.metric) if c else "n/a" for c in columns])
            for one in subjects
        ]
        theirs = [
            (name, ["n/a" if number is None else f"{number:.2f}" for number in row]) for name, *row in table["rows"]
        ]
        head = [title for title, _ in table["columns"]]
        tables.append({"title": table["title"], "head": head, "theirs": theirs, "ours": ours})
    return {"source": found["source"], "caution": found["caution"], "tables": tables} if tables else None


def _forget_keep(run: RunData, subjects: Sequence[SubjectScores]) -> dict[str, Any] | None:
    """Held-out forget questions against near neighbours and retain, or the nearest that a run has to them."""
    marked = [column for column in run.columns if column.metric == "right"]
    forget = [c for c in marked if c.goal == "forget" and c.group == "forget"]
    keep = [c for c in marked if c.goal == "keep" and c.group in ("neighbour", "retain")]
    across = next((c for c in forget if c.name == "forget_held_out"), forget[0] if forget else None)
    up = [c for c in keep if c.name in ("near", "retain")] or keep
    if across is None or not up:
        return None
    marks = {}
    for subject in subjects:
        x = subject.score(across.name, "right")
        known = [score for c in up if not math.isnan((score := subject.score(c.name, "right")).value)]
        if known and not math.isnan(x.value):
            y = fmean(score.value for score in known)
            marks[subject.name] = (x, Score(y, sum(score.n for score in known), math.nan, math.nan))
    if not marks:
        return None
    x_label, y_label = f"right on {across.title}, %", "right on questions to keep, %"
    svg = figures.subjects_chart(marks, x_label=x_label, y_label=y_label)
    return {"svg": svg, "x": across.title, "y": [column.title for column in up]}


def _attacks(attacks: Sequence[AttackSummary]) -> dict[str, Any] | None:
    """What the section of attacks shows: by what they need, a chart, and the worst with their answers; None without
    any."""
    if not attacks:
        return None
    worst = []
    for one in sorted(attacks, key=lambda one: -one.above.value):
        strongest = one.results["student"].strongest if one.outcome in ("back", "part") else None
        if strongest and strongest.answers and len(worst) < NUM_WORST:
            # Answers that give the fact away come first.
            worst.append((one, strongest, sorted(strongest.answers, key=lambda answer: not answer.right)[:NUM_ANSWERS]))
    return {
        "subjects": [name for name in SUBJECTS if any(name in one.results for one in attacks)],
        "groups": [
            (ACCESS_TITLES.get(access, access or "Needs unknown"), list(members))
            for access, members in groupby(attacks, key=lambda one: one.access)
        ],
        "svg": figures.attack_chart(attacks),
        "worst": worst,
        "notes": [(one.title, note) for one in attacks for note in one.notes],
        "oracle": any("oracle" in one.results for one in attacks),
    }


def _measured(value: float, metric: str, sign: str = "") -> str:
    """A number of an attack: per cent, AUC with two decimals, or bits with one."""
    _, scale, digits = MEASURES[metric]
    return "n/a" if math.isnan(value) else f"{scale * value:{sign}.{digits}f}"


def _interval(score: Score, metric: str, sign: str = "") -> str:
    """``3.1 to 8.0``; empty where there is none."""
    ends = (_measured(end, metric, sign) for end in (score.low, score.high))
    return "" if math.isnan(score.low + score.high) else " to ".join(ends)


def _amount(tokens: float) -> str:
    """``840``, ``8.4 k``, ``84 k``, ``8.4 M``."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.{1 if tokens < 10 * size else 0}f} {unit}"
    return f"{tokens:.0f}"


def _steps(run: RunData, name: str) -> list[tuple[float, float]]:
    return [(row["step"], math.nan if row.get(name) is None else float(row[name])) for row in run.steps]


def _samples(run: RunData) -> list[dict[str, Any]]:
    """The questions that ``SAMPLE_RULE`` chooses, in the order of the table's columns, each with the answers of
    ``SAMPLE_SUBJECTS`` and the colour of their outcome: whether right is good depends on the set."""
    rows = {name: {(row["set"], row["id"]): row for row in run.samples.get(name, ())} for name in SAMPLE_SUBJECTS}
    asked = rows["student"] or rows["base"]
    ids: dict[str, set[str]] = {column.name: set() for column in run.columns}
    for (set_name, query_id), row in asked.items():
        if "output" in row:
            ids.setdefault(set_name, set()).add(query_id)
    # One question a set in turn, until enough are shared out or there are no more.
    share = dict.fromkeys(ids, 0)
    for _ in range(NUM_SAMPLES):
        for name in ids:
            if sum(share.values()) < NUM_SAMPLES and share[name] < len(ids[name]):
                share[name] += 1
    columns, samples = {column.name: column for column in run.columns}, []
    for name, members in ids.items():
        ordered = sorted(members, key=lambda query_id: hashlib.sha256(query_id.encode()).hexdigest())
        chosen = ordered[:: len(ordered) // share[name]][: share[name]] if share[name] else []
        column = columns.get(name)
        tones = ANSWER_TONES[column.goal if column else "keep"]
        for key in [(name, query_id) for query_id in chosen]:
            answers = []
            for subject in SAMPLE_SUBJECTS:
                row = rows[subject].get(key)
                # The base has not been asked to forget: its answers are neither good nor bad.
                tone = "" if subject == "base" or row is None else tones.get(row["outcome"], "")
                answers.append((subject, None if row is None else {**row, "tone": tone}))
            samples.append(
                {
                    "set": column.title if column else name,
                    "prompt": asked[key].get("prompt", ""),
                    "right": asked[key].get("value") or asked[key].get("answer"),
                    "answers": answers,
                }
            )
    return samples


def _clip(text: str) -> str:
    """The beginning of a long answer, and how much is left out."""
    if len(text) <= MAX_ANSWER:
        return text
    return f"{text[:MAX_ANSWER]} … ({len(text) - MAX_ANSWER} more characters)"
