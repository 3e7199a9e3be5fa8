"""``results.json``: everything that a sweep found, gathered from its run folders and written whole after every run.

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

`score`, `forget` and `keep` are tuning's marks (``sweep.choose.Selection``), null in tests. `relearned` is
``{"steps", "worst", "rate", "before", "rates", "shown", "asked"}`` (``sweep.relearning``), or
``{"not_applicable": why}``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.sweep.choose import Scores
from duet_unlearn.sweep.rows import about_method, kept_scores
from duet_unlearn.sweep.suite import Method
from duet_unlearn.sweep.tasks import Row, Sweep, Task

SUBJECTS = ("base", "prefix", "oracle")


def write_results(sweep: Sweep) -> dict[str, Any]:
    """Gather and write ``results.json``: keys one a line, and so are rows."""
    found = gather(sweep)
    lines = [f"{json.dumps(key)}: {_value(key, value)}" for key, value in found.items()]
    atomic_write_text(sweep.out / "results.json", "{\n" + ",\n".join(lines) + "\n}\n")
    return found


def _value(key: str, value: Any) -> str:
    if key in ("runs", "methods"):
        return "[\n" + ",\n".join(_json(one) for one in value) + "\n]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def gather(sweep: Sweep) -> dict[str, Any]:
    """The object of ``results.json``."""
    tasks = sweep.tasks()
    rows = {task: row for task in tasks if (row := sweep.row(task))}
    runs = [row for kind in ("tune", "test") for task, row in rows.items() if task.kind == kind]
    tests = [row for row in runs if row["kind"] == "test"]
    return {
        "schema": 1,
        "name": sweep.loaded.suite.name,
        "finished": not sweep.open(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **_environment(sweep, rows),
        "protocol": _protocol(sweep),
        "counts": {kind: _counts(sweep, rows, kind) for kind in ("tune", "test", "reference")},
        "seconds": sum(row["seconds"]["total"] for row in rows.values() if not row["failed"]),
        "sets": _about_sets(sweep, rows, "test"),
        "tune_sets": _about_sets(sweep, rows, "tune"),
        "baselines": {target.name: _baselines(sweep, rows, target.name) for target in sweep.targets},
        "methods": [_method(sweep, method) for method in sweep.loaded.methods],
        "runs": runs,
        "summary": {
            method.name: summary([row for row in tests if row["method"] == method.name])
            for method in sweep.loaded.methods
            if any(row["method"] == method.name for row in tests)
        },
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """One method's tests: means over targets and seeds with their spread."""
    done = [row for row in rows if not row["failed"]]
    return {
        "runs": len(done),
        "failed": len(rows) - len(done),
        "sets": {name: _spread(done, name) for name in _columns(done)},
        "seconds": fmean(row["seconds"]["total"] for row in done) if done else None,
        "training": fmean(_training(row["seconds"]) for row in done) if done else None,
        "tokens": fmean(row["tokens"] for row in done) if done else None,
        "peak_memory": max((row["peak_memory"] for row in done if row["peak_memory"]), default=None),
    }


def _training(seconds: Mapping[str, float]) -> float:
    """Seconds of all phases in which the student is made: what is measured before and after does not count."""
    return sum(value for phase, value in seconds.items() if phase not in ("total", "probe", "evaluate"))


def _columns(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    return names + (["relearned"] if any(row["relearned"] and "worst" in row["relearned"] for row in rows) else [])


def headline(scores: Scores, name: str) -> Mapping[str, Any] | None:
    """The score that stands for a set: its own metric where it has one, else right, else refused, else points."""
    metrics = scores.get(name)
    if metrics is None:
        return None
    own = [metric for metric in metrics if metric not in ("right", "refused", "rouge_l", "points")]
    if own:
        return metrics[own[0]]
    if "points" in metrics:
        return metrics["points"]
    return metrics["right"] if metrics["right"]["n"] else metrics.get("refused", metrics["right"])


def _spread(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The mean of the targets' means; the standard deviation (n - 1) over those; the mean of that over seeds."""
    by_target: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        relearned = (row["relearned"] or {}).get("worst")
        score = relearned if name == "relearned" else headline(row["scores"], name)
        if score is not None and score["value"] is not None:
            by_target.setdefault(row["target"], []).append(score)
    groups = [[score["value"] for score in scores] for scores in by_target.values()]
    means = [fmean(group) for group in groups]
    return {
        "mean": fmean(means) if means else None,
        "over_targets": stdev(means) if len(means) > 1 else None,
        "over_seeds": fmean(map(stdev, groups)) if groups and min(map(len, groups)) > 1 else None,
        "runs": sum(map(len, groups)),
        "n": sum(score["n"] for scores in by_target.values() for score in scores),
    }


def _environment(sweep: Sweep, rows: Iterable[Task]) -> dict[str, Any]:
    envs = [env for task in rows if (env := sweep.read(sweep.run(task).env))]
    last = envs[-1] if envs else {}
    keys = ("packages", "python", "platform", "device", "threads")
    found = {"commits": sorted({env["commit"] or "unknown" for env in envs})} | {key: last.get(key) for key in keys}
    return found | {"model": last.get("hashes", {}).get("model")}


def _protocol(sweep: Sweep) -> dict[str, Any]:
    suite = sweep.loaded.suite
    relearn = suite.after_tests.relearn
    return {
        "trials": sweep.loaded.num_trials,
        "tune": {
            "name": suite.tune.name,
            "seed": suite.tune.seed,
            "forget": suite.tune.forget,
            "keep": suite.tune.keep,
        },
        "test": {"targets": [target.name for target in sweep.targets], "seeds": suite.test.seeds},
        "relearn": asdict(relearn) if relearn else None,
    }


def _counts(sweep: Sweep, rows: Mapping[Task, Row], kind: str) -> dict[str, int]:
    mine = [row for task, row in rows.items() if task.kind == kind]
    failed = sum(row["failed"] is not None for row in mine)
    open_ = sum(other == kind for other, _ in sweep.open())
    return {"done": len(mine) - failed, "failed": failed, "total": len(mine) + open_}


def _about_sets(sweep: Sweep, rows: Mapping[Task, Row], kind: str) -> dict[str, Any]:
    """What the sets are, from a run of each target."""
    runs = {task.target: sweep.run(task) for task, row in rows.items() if task.kind == kind and not row["failed"]}
    found: dict[str, Any] = {}
    for run in runs.values():
        found |= (sweep.read(run.evals / "student.json") or {}).get("sets", {})
    return found


def _baselines(sweep: Sweep, rows: Mapping[Task, Row], target: str) -> dict[str, Any]:
    """Base, base + prefix and oracle, each from the first run that has it, and what relearning brings back of each."""
    folders = [sweep.run(t) for t, row in rows.items() if (t.kind, t.target) == ("test", target) and not row["failed"]]
    again = {t.method: row.get("relearned") for t, row in rows.items() if (t.kind, t.target) == ("reference", target)}
    found = {}
    for subject in SUBJECTS:
        stored = next((s for run in folders if (s := sweep.read(run.evals / f"{subject}.json"))), None)
        if stored or subject in again:
            scores = kept_scores(stored) if stored else {}
            found[subject] = {"scores": scores, "relearned": again.get(subject)}
    return found


def _method(sweep: Sweep, method: Method) -> dict[str, Any]:
    recipe = sweep.recipes[method.name]
    chosen = sweep.chosen(method.name) or {"trial": None, "settings": None, "failed": None}
    return {
        "name": method.name,
        "recipe": method.entry.recipe,
        "method": recipe.method.name,
        "about": about_method(recipe),
        "needs": sorted(recipe.method.needs),
        "after": _after(recipe),
        "untuned": method.entry.untuned,
        "trials": [_trial(sweep, task) for task in sweep.trials[method.name]],
        "chosen": chosen["trial"],
        "settings": chosen["settings"],
        "failed": chosen["failed"],
    }


def _after(recipe: Recipe) -> list[str]:
    """The recipes that come first, the nearest first."""
    return [recipe.after, *_after(load_recipe(recipe.after))] if recipe.after else []


def _trial(sweep: Sweep, task: Task) -> dict[str, Any]:
    row = sweep.row(task) or {}
    marks = {key: row.get(key) for key in ("score", "forget", "keep", "failed")}
    return {"trial": task.trial, "settings": sweep.settings(task), **marks}
