"""What a sweep found: of each run ``row.json``, of all together ``results.json`` and a plain table.

``results.json`` is gathered from the run folders and written whole after every run.

A *score* is ``{"value", "n", "low", "high"}`` as in ``evals/*.json``: a share 0..1, or points; null where n is 0.

| key | |
|---|---|
| `schema` | 1 |
| `name`, `finished` | the suite's name; whether every run is done or failed |
| `date`, `commits`, `packages`, `python`, `platform`, `device`, `threads`, `model` | as in ``env.json`` |
| `protocol` | `trials`; `tune`: `name`, `seed`, `forget`, `keep`; `test`: `targets`, `seeds`; `relearn`: settings |
| `counts` | kind -> `done`, `failed`, `total` |
| `seconds` | of all runs together |
| `sets`, `tune_sets` | set -> `title`, `group`, `better`, `about`, maybe `metric`; of the tests, of validation |
| `baselines` | target -> `base`, `prefix`, `oracle` -> `scores`: set -> metric -> score; `relearned` or null |
| `methods` | in the suite's order: `name`, `recipe`, `method` (the recipe's `method.name`), `about`, `needs`, \
`after`, `untuned`, `trials` (each `trial`, `settings`, `score`, `forget`, `keep`, `failed`), `chosen`, `settings`, \
`failed` |
| `runs` | a row a run, trials before tests: `kind` (`tune`, `test`), `method`, `target`, `seed`, `trial`, \
`settings`, `folder`, `worker` (host and process), `failed`; where that is null also `needs`, `scores`, `shift`, \
`score`, `forget`, `keep`, `relearned`, `steps`, `tokens`, `seconds` (`total` and phases), `peak_memory` (bytes) |
| `summary` | method -> `runs`, `failed`, `sets`: set (and `shift`, `relearned`) -> `mean`, `over_targets`, \
`over_seeds`, `runs`, `n`; means of `seconds` (whole runs), `training` (seconds of targets and training) and `tokens`; \
the highest `peak_memory` |

`score`, `forget` and `keep` are tuning's marks (``Selection``), null in tests. `relearned` is
``{"steps", "worst", "rate", "before", "rates", "shown", "asked"}`` (``sweep.workers.relearned``), or
``{"not_applicable": why}``.
"""

from __future__ import annotations

import datetime
import inspect
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from statistics import fmean, stdev
from typing import Any, NamedTuple

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.errors import UserError
from duet_unlearn.report.text_tables import ARROWS, WIDTH, blocks
from duet_unlearn.runs import Run, read_metrics
from duet_unlearn.sweep.tasks import JsonObject, SweepFolder, SweepTask, read_json

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Set -> metric -> score, as in ``evals/<subject>.json``."""
SHOWN_METRICS = ("right", "refused", "rouge_l", "points")
"""Metrics of a set that ``row.json`` keeps, besides the one that stands for the set."""
SUBJECTS = ("base", "prefix", "oracle")
RELEARNED = {"relearned": {"title": "Relearned", "better": "low"}}


# One run --------------------------------------------------------------------------------------------------------------


def finished(sweep: SweepFolder, task: SweepTask, recipe: Recipe, *, wall: float) -> JsonObject:
    """What a run that reached its end came to; `wall`: seconds since this worker began or took it up.

    Raises:
        UserError: tuning reads a set that is not there, or that the base knows nothing of.
    """
    run, tune = sweep.run(task), sweep.suite.tune
    student = json.loads((run.evals / "student.json").read_text(encoding="utf-8"))
    marks: JsonObject = dict.fromkeys(Selection._fields)
    if task.kind == "tune":
        base = json.loads((run.evals / "base.json").read_text(encoding="utf-8"))
        found = selection(student["scores"], base["scores"], student["sets"], forget=tune.forget, keep=tune.keep)
        marks = found._asdict()
    # Time, steps and tokens of the runs before count too.
    timings = [entry for one in stages(run) for entry in (read_json(one.timings) or {}).items()]
    seconds = {name: sum(e["seconds"] for phase, e in timings if phase == name) for name, _ in timings}
    steps = [step for one in stages(run) for step in read_metrics(one) if "tokens" in step]
    return {
        **head(sweep, task),
        "failed": None,
        "needs": sorted(recipe.method.needs),
        "scores": _shown_scores(student),
        "shift": student["scores"].get("shift", {}).get("points"),
        **marks,
        "relearned": read_json(run.path / "attacks" / "relearn.json"),
        "steps": len(steps),
        "tokens": sum(step["tokens"] for step in steps),
        "seconds": {"total": max(wall, sum(seconds.values())), **seconds},
        "peak_memory": max((entry["peak_memory"] for _, entry in timings), default=None),
    }


def head(sweep: SweepFolder, task: SweepTask) -> JsonObject:
    """Which run it was, and who did it."""
    about = {"settings": sweep.settings(task), "folder": task.folder, "worker": f"{socket.gethostname()}:{os.getpid()}"}
    return asdict(task) | about


def stages(run: Run) -> list[Run]:
    """A run, and those before it in which its start was made."""
    before = run.path / "before"
    return [run, *(stages(Run(before)) if before.exists() else [])]


def _shown_scores(subject: JsonObject) -> dict[str, JsonObject]:
    """The scores of a subject, without the metrics that no table shows."""
    own = {name: about.get("metric") for name, about in subject["sets"].items()}
    return {
        name: {metric: score for metric, score in metrics.items() if metric in (*SHOWN_METRICS, own.get(name))}
        for name, metrics in subject["scores"].items()
    }


class Selection(NamedTuple):
    """A trial's mark: how settings are chosen, by shares of what the base knows."""

    score: float
    """Harmonic mean of 1 - `forget` and `keep`, 0..1."""
    forget: float
    """What is left of what should fall, as a share of the base's; 0 is best."""
    keep: float
    """What is left of the set that suffered most, as a share of the base's; 1 is best, and more counts as 1."""


def selection(
    scores: Scores, base: Scores, sets: Mapping[str, Any], *, forget: Sequence[str], keep: Sequence[str]
) -> Selection:
    """Harmonic mean of ``1 - forget / base`` and ``min(keep / base)``; all sets on validation questions.

    `sets` describes the sets, as in ``evals/<subject>.json``.

    Raises:
        UserError: no such set was asked; the base answers nothing right there.
    """

    def share(name: str, key: str) -> float:
        if name not in scores:
            raise UserError(f"{key} names the set {name!r}, which is not asked", f"asked are {', '.join(sets)}")
        known = knowledge(base[name], sets[name])
        if known <= 0:
            raise UserError(
                f"{key}: the base knows nothing of the set {name!r}, so no share of it can fall or stay",
                "ask what the model knows",
            )
        return knowledge(scores[name], sets[name]) / known

    left = fmean(share(name, "tune.forget") for name in forget)
    kept = min(share(name, "tune.keep") for name in keep)
    one, other = 1 - min(left, 1.0), min(kept, 1.0)
    return Selection(2 * one * other / (one + other) if one > 0 and other > 0 else 0.0, left, kept)


def knowledge(metrics: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> float:
    """What is known of a set: the metric that stands for it, else the share right, or the share not refused where no
    right answer is known.

    Raises:
        UserError: nothing was measured.
    """
    if metric := about.get("metric"):
        value = metrics[metric]["value"]
    elif metrics["right"]["n"]:
        value = metrics["right"]["value"]
    else:
        refused = metrics["refused"]["value"] if "refused" in metrics else None
        value = None if refused is None else 1 - refused
    if value is None:
        raise UserError("a set that tuning reads has no score", "give its questions an `answer` and a `value`")
    return float(value)


# All runs -------------------------------------------------------------------------------------------------------------


def write_results(sweep: SweepFolder) -> JsonObject:
    """Gather and write ``results.json``: keys one a line, and so are runs and methods."""

    def as_json(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    found, lines = gather(sweep), []
    for key, value in found.items():
        listed = "[\n" + ",\n".join(map(as_json, value)) + "\n]" if key in ("runs", "methods") else as_json(value)
        lines.append(f"{json.dumps(key)}: {listed}")
    atomic_write_text(sweep.out / "results.json", "{\n" + ",\n".join(lines) + "\n}\n")
    return found


def gather(sweep: SweepFolder) -> JsonObject:
    """The object of ``results.json``."""
    suite, open_kinds = sweep.suite, [kind for kind, _ in sweep.open()]
    done = {task: found for task in sweep.tasks() if (found := sweep.result(task))}
    runs = [found for kind in ("tune", "test") for task, found in done.items() if task.kind == kind]
    counts: JsonObject = {}
    for kind in ("tune", "test", "reference"):
        failed = [found["failed"] is not None for task, found in done.items() if task.kind == kind]
        total = len(failed) + open_kinds.count(kind)
        counts[kind] = {"done": len(failed) - sum(failed), "failed": sum(failed), "total": total}
    # Workers may have run on different commits; of all else the last run's environment stands for all.
    envs = [env for task in done if (env := sweep.read(sweep.run(task).env))]
    last = envs[-1] if envs else {}
    relearn = asdict(suite.after_tests)["relearn"]
    tune = {key: getattr(suite.tune, key) for key in ("name", "seed", "forget", "keep")}
    test = {"targets": [target.name for target in suite.test.targets], "seeds": suite.test.seeds}
    tests = {
        method.name: [one for one in runs if one["kind"] == "test" and one["method"] == method.name]
        for method in suite.methods
    }
    return {
        "schema": 1,
        "name": suite.name,
        "finished": not open_kinds,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commits": sorted({env["commit"] or "unknown" for env in envs}),
        **{key: last.get(key) for key in ("packages", "python", "platform", "device", "threads")},
        "model": last.get("hashes", {}).get("model"),
        "protocol": {"trials": sweep.file.num_trials, "tune": tune, "test": test, "relearn": relearn},
        "counts": counts,
        "seconds": sum(found["seconds"]["total"] for found in done.values() if not found["failed"]),
        "sets": _about_sets(sweep, done, "test"),
        "tune_sets": _about_sets(sweep, done, "tune"),
        "baselines": {target.name: _baselines(sweep, done, target.name) for target in suite.test.targets},
        "methods": _methods(sweep),
        "runs": runs,
        "summary": {name: summary(found) for name, found in tests.items() if found},
    }


def _about_sets(sweep: SweepFolder, done: Mapping[SweepTask, JsonObject], kind: str) -> JsonObject:
    """What the sets are, from a run of each target."""
    runs = {task.target: sweep.run(task) for task, one in done.items() if task.kind == kind and not one["failed"]}
    found: JsonObject = {}
    for run in runs.values():
        found |= (sweep.read(run.evals / "student.json") or {}).get("sets", {})
    return found


def _baselines(sweep: SweepFolder, done: Mapping[SweepTask, JsonObject], target: str) -> JsonObject:
    """Base, base + prefix and oracle, each from the first run that has it, and what relearning brings back of each."""
    folders = [sweep.run(t) for t, one in done.items() if (t.kind, t.target) == ("test", target) and not one["failed"]]
    again = {t.method: one.get("relearned") for t, one in done.items() if (t.kind, t.target) == ("reference", target)}
    found = {}
    for subject in SUBJECTS:
        stored = next((s for run in folders if (s := sweep.read(run.evals / f"{subject}.json"))), None)
        if stored or subject in again:
            found[subject] = {"scores": _shown_scores(stored) if stored else {}, "relearned": again.get(subject)}
    return found


def _methods(sweep: SweepFolder) -> list[JsonObject]:
    """What each method is, how it was tuned, and the recipes that come before its own, the nearest first."""
    found = []
    for method in sweep.suite.methods:
        recipe, chosen = sweep.recipes[method.name], sweep.chosen(method.name) or {}
        after, before = [], recipe.after
        while before:
            after.append(before)
            before = load_recipe(before).after
        trials = []
        for task in sweep.trials[method.name]:
            result = sweep.result(task) or {}
            marks = {key: result.get(key) for key in ("score", "forget", "keep", "failed")}
            trials.append({"trial": task.trial, "settings": sweep.settings(task), **marks})
        found.append(
            {
                "name": method.name,
                "recipe": method.recipe,
                "method": recipe.method.name,
                "about": (inspect.getdoc(type(recipe.method)) or "").split("\n")[0],
                "needs": sorted(recipe.method.needs),
                "after": after,
                "untuned": method.untuned,
                "trials": trials,
                "chosen": chosen.get("trial"),
                "settings": chosen.get("settings"),
                "failed": chosen.get("failed"),
            }
        )
    return found


def summary(tests: Sequence[JsonObject]) -> JsonObject:
    """One method's tests: means over targets and seeds with their spread."""
    done = [one for one in tests if not one["failed"]]
    names = list(dict.fromkeys(name for one in done for name in one["scores"]))
    names += ["relearned"] if any("worst" in (one["relearned"] or {}) for one in done) else []
    # Phases in which the student is made: what is measured before and after does not count as training.
    training = [
        sum(value for phase, value in one["seconds"].items() if phase not in ("total", "probe", "evaluate"))
        for one in done
    ]
    return {
        "runs": len(done),
        "failed": len(tests) - len(done),
        "sets": {name: _spread(done, name) for name in names},
        "seconds": fmean(one["seconds"]["total"] for one in done) if done else None,
        "training": fmean(training) if done else None,
        "tokens": fmean(one["tokens"] for one in done) if done else None,
        "peak_memory": max((one["peak_memory"] for one in done if one["peak_memory"]), default=None),
    }


def _spread(tests: Sequence[JsonObject], name: str) -> JsonObject:
    """The mean of the targets' means; the standard deviation (n - 1) over those; the mean of that over seeds."""
    by_target: dict[str, list[Mapping[str, Any]]] = {}
    for one in tests:
        if (score := _headline(one, name)) is not None and score["value"] is not None:
            by_target.setdefault(one["target"], []).append(score)
    groups = [[score["value"] for score in scores] for scores in by_target.values()]
    means = [fmean(group) for group in groups]
    return {
        "mean": fmean(means) if means else None,
        "over_targets": stdev(means) if len(means) > 1 else None,
        "over_seeds": fmean(map(stdev, groups)) if groups and min(map(len, groups)) > 1 else None,
        "runs": sum(map(len, groups)),
        "n": sum(score["n"] for scores in by_target.values() for score in scores),
    }


def _headline(one: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The score that stands for a set, of a run or a baseline: its own metric where it has one, else points, else
    right, else refused; under the name `relearned`, the worst share that came back."""
    if name == "relearned":
        return (one["relearned"] or {}).get("worst")
    metrics = one["scores"].get(name)
    if metrics is None:
        return None
    own = [metric for metric in metrics if metric not in SHOWN_METRICS]  # at most one is kept, see _shown_scores
    if own or "points" in metrics:
        return metrics[own[0] if own else "points"]
    return metrics["right"] if metrics["right"]["n"] else metrics.get("refused", metrics["right"])


# The table ------------------------------------------------------------------------------------------------------------


def table_text(results: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """The comparison as a plain table, baselines and methods as lines and evaluation sets as columns: means over
    targets and seeds, per cent right but for the Performance Shift, which is in points."""
    protocol = results["protocol"]
    relearn, sets = protocol["relearn"], results["sets"]
    about = sets | (RELEARNED if relearn else {})
    if not about:
        return "no test has been made yet"
    means: list[tuple[str, dict[str, float | None]]] = []
    for subject in SUBJECTS:
        asked = [target[subject] for target in results["baselines"].values() if subject in target]
        found = {}
        for name in about:
            scores = [score for one in asked if (score := _headline(one, name))]
            values = [score["value"] for score in scores if score["value"] is not None]
            found[name] = sum(values) / len(values) if values else None
        if asked:
            means.append(("base + prefix" if subject == "prefix" else subject, found))
    for method, found in results["summary"].items():
        means.append((method, {name: one["mean"] for name, one in found["sets"].items()}))
    lines = []
    for label, mean_of in means:
        cells = [label]
        for name in about:
            mean = mean_of.get(name)
            cells.append("-" if mean is None else f"{mean:+.1f}" if name == "shift" else f"{100 * mean:.1f}")
        lines.append(cells)
    head = ["", *(f"{name} {ARROWS[one['better']]}" for name, one in about.items())]
    targets, seeds = (len(protocol["test"][key]) for key in ("targets", "seeds"))
    notes = [f"Means over {targets} target{'s' * (targets != 1)} and {seeds} seed{'s' * (seeds != 1)}, per cent right"]
    if "shift" in sets:
        notes.append("shift in points")
    if relearn:
        notes.append(f"relearned: after {relearn['steps']} steps on half of the facts, the other half, worst rate")
    return "\n".join(
        [*blocks(head, lines, num_fixed=1, width=width), "; ".join([*notes, "↓ lower is better, ↑ higher"]) + "."]
    )


def problems_text(results: Mapping[str, Any]) -> str:
    """What failed, a line each; empty where nothing did."""
    names = [field.name for field in fields(SweepTask)]
    lines = [
        f"{SweepTask(**{name: one[name] for name in names}).title}: {one['failed']}"
        for one in results["runs"]
        if one["failed"]
    ]
    if results["counts"]["reference"]["failed"]:
        lines.append("relearning of base or oracle: see reference/*/*/failed.json")
    lines += [
        f"{method['name']}: {method['failed']}, so it has no tests" for method in results["methods"] if method["failed"]
    ]
    return "\n".join(lines)
