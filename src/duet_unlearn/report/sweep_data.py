"""The results.json of a sweep as frozen data: every subject's numbers run by run, their means, and who is best.

A sweep tests methods on several targets (stories to be forgotten) with several seeds. A target counts once, however
many seeds it has: means are means over targets of the mean over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from duet_unlearn.errors import UserError
from duet_unlearn.report.run_data import GROUPS

SCHEMA = 1
FILE = "results.json"
BASELINES = {"base": "base", "prefix": "base + prefix", "oracle": "oracle"}
KEPT_GROUPS = ("neighbour", "retain", "choice")
"""Groups of sets whose worst counts as what a method keeps."""
ATTACK_GROUPS = ("robustness",)
FORGET = ("forget_held_out", "forget_unseen")
"""Sets of the pictures' forgetting: wordings that no training saw, of facts that were trained on and of others."""
ANSWERS = frozenset({"answers", "texts"})
"""Needs that hold the answers to be forgotten: a text tells what its questions would ask."""
MEASURING = ("total", "probe", "evaluate", "relearn")
"""Seconds of a run that are no part of making the model."""
KEEPS = 0.10
"""How far the worst of what is to be kept may lie below the base's worst for a method to count as keeping."""
SHORT_TITLES = {
    "forget": "forget, trained wordings",
    "forget_held_out": "forget, held-out wordings",
    "forget_unseen": "forget, unseen facts",
    "near": "near",
    "far": "far",
    "retain": "retain",
    "general": "general",
    "choice": "choice",
    "reverse_prompt": "reverse prompt",
    "prefill": "prefill",
    "continuation": "format shift",
    "deployer_forget": "forget, deployer's system turn",
    "deployer_near": "near, deployer's system turn",
    "relearned": "relearning",
}
"""What a set is called above a narrow column; the lab's ``continuation`` is the shift from chat to raw text."""
Better = Literal["low", "high"]


class RunValue(NamedTuple):
    """One number of one run."""

    target: str
    seed: int
    value: float
    n: int = 0


Values = Mapping[str, Sequence[RunValue]]
"""Set, or ``shift``, ``relearned``, a cost, or a derived number (``_derive``) -> its value in every run that has it."""


@dataclass(frozen=True)
class MeanOverRuns:
    """A number over targets and seeds; NaN where it was not measured or cannot be told."""

    value: float = math.nan
    """Mean of the targets' means."""
    over_targets: float = math.nan
    """Standard deviation (n - 1) of the targets' means."""
    over_seeds: float = math.nan
    """Mean over targets of the standard deviation (n - 1) over seeds."""
    n: int = 0
    """Questions in all."""
    runs: int = 0


@dataclass(frozen=True)
class Difference:
    """One subject less another, run by run."""

    mean: float
    """Mean of the targets' means."""
    spread: float
    """Standard deviation (n - 1) over the targets' means; over runs where there is one target; NaN of one run."""
    targets: int
    runs: int

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN where there is no spread."""
        return self.spread / math.sqrt(self.targets if self.targets > 1 else self.runs)


@dataclass(frozen=True)
class SweepColumn:
    """A column of a sweep's tables: an evaluation set, or a number that is derived, or words."""

    key: str
    title: str
    better: Better
    unit: Literal["share", "points", "count", "seconds", "memory", "text"] = "share"
    about: str = ""
    group: str = ""
    """Of an evaluation set."""


@dataclass(frozen=True)
class SweepRow:
    """A baseline or a method of the sweep, with its numbers."""

    name: str
    label: str
    kind: Literal["baseline", "trained", "inference", "failed"]
    values: Values
    num_runs: int = 0
    """Test runs that were begun, failed ones included."""
    failures: Sequence[str] = ()
    """What failed, a sentence each."""

    def mean(self, key: str) -> MeanOverRuns:
        """The number of `key` over all runs that have it."""
        return mean_of(self.values.get(key, ()))


@dataclass(frozen=True, kw_only=True)
class MethodRow(SweepRow):
    """A method, and what the sweep tells of it besides its numbers."""

    method: str
    recipe: str
    about: str
    needs: frozenset[str]
    """Its own, and those of the recipes that come first."""
    after: Sequence[str]
    untuned: str | None
    trials: Sequence[Mapping[str, Any]]
    chosen: int | None
    settings: Mapping[str, Any]
    """The chosen trial's; empty where there was none."""
    options: Mapping[str, Any]
    """The method section of a test run's recipe, where the folder has one."""
    queries: Mapping[str, Any]
    """``forget`` and ``retain`` of the recipe's data section, likewise."""
    not_relearned: str | None
    """Why nothing was relearned."""

    @property
    def sees_answers(self) -> bool:
        """Whether any stage reads what is to be forgotten."""
        return bool(self.needs & ANSWERS)


@dataclass(frozen=True)
class SweepData:
    name: str
    complete: bool
    facts: Mapping[str, Any]
    """date, commits, packages, python, platform, device, threads, model, seconds."""
    protocol: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]
    sets: Sequence[SweepColumn]
    """The tests' evaluation sets, in the order of the groups."""
    baselines: Sequence[SweepRow]
    methods: Sequence[MethodRow]
    """In the suite's order."""

    def group(self, *names: str) -> list[SweepColumn]:
        """The sets of some groups."""
        return [one for one in self.sets if one.group in names]

    def method(self, name: str) -> MethodRow | None:
        return next((row for row in self.methods if row.name == name), None)

    def baseline(self, name: str) -> SweepRow | None:
        return next((row for row in self.baselines if row.name == name), None)

    def finished(self) -> list[MethodRow]:
        """The methods with at least one test run."""
        return [row for row in self.methods if row.kind != "failed"]

    def ranked(self, key: str, better: Better) -> list[MethodRow]:
        """The finished methods by a number, best first, and then those that change no weights likewise; those without
        the number last, equals in the suite's order."""
        sign = 1 if better == "low" else -1

        def place(row: MethodRow) -> tuple[bool, bool, float]:
            value = row.mean(key).value
            return row.kind == "inference", math.isnan(value), 0.0 if math.isnan(value) else sign * value

        return sorted(self.finished(), key=place)


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's: it has results and no recipe of its own."""
    return (path / FILE).is_file() and not (path / "recipe.yaml").exists()


def read_sweep(path: Path) -> SweepData:
    """The results of a sweep folder; of a method's run folders, the recipe's method section.

    Raises:
        UserError: the folder has no results, or they cannot be read.
    """
    return parse_sweep(read_results(path))


def read_results(path: Path) -> dict[str, Any]:
    """results.json, each method with what its first test run's recipe says of it, where the folder has that:
    `options`, the method section, and `queries`, what it was trained on.

    Raises:
        UserError: as ``read_sweep``.
    """
    import yaml

    file = Path(path) / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not a sweep folder: it has no {FILE}", "give what `duet sweep` wrote") from None
    except ValueError:
        raise UserError(f"{file} is not JSON", "delete the file and run the same command again") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f"{file} is of another version", "run the sweep again with this version of duet-unlearn")
    methods = []
    for method in found["methods"]:
        runs = [run for run in found["runs"] if run["kind"] == "test" and run["method"] == method["name"]]
        recipes = [recipe for run in runs if (recipe := Path(path) / run["folder"] / "recipe.yaml").is_file()]
        recipe = yaml.safe_load(recipes[0].read_text(encoding="utf-8")) if recipes else {}
        data = recipe.get("data") or {}
        queries = {key: data[key] for key in ("forget", "retain") if key in data}
        methods.append({"options": recipe.get("method") or {}, "queries": queries} | method)
    return {**found, "methods": methods}


def parse_sweep(found: Mapping[str, Any]) -> SweepData:
    """What ``results.json`` holds, with derived numbers of every run besides the measured ones."""
    order = {group: place for place, group in enumerate(GROUPS)}
    sets = [
        SweepColumn(
            key=name,
            title=SHORT_TITLES.get(name, info.get("title", name)),
            better=info["better"],
            about=info.get("about", ""),
            group=info.get("group", "other"),
        )
        for name, info in found["sets"].items()
    ]
    sets.sort(key=lambda one: order.get(one.group, len(order)))
    baselines = []
    for name, label in BASELINES.items():
        # A baseline is one model: a value a target, and no seeds.
        runs = [
            {**subjects[name], "target": target, "seed": 0}
            for target, subjects in found["baselines"].items()
            if name in subjects
        ]
        if values := _values(runs, found["sets"]):
            baselines.append(SweepRow(name, label, "baseline", values, num_runs=len(runs)))
    oracle = next((row.values for row in baselines if row.name == "oracle"), {})
    # Target -> the sets that its base was asked: a run that lacks one of them is in no derived number.
    asked = {target: frozenset(one["base"]["scores"]) for target, one in found["baselines"].items() if "base" in one}

    def derive(row: SweepRow) -> SweepRow:
        return replace(row, values=_derive(row.values, sets, oracle, asked))

    keys = ("date", "commits", "packages", "python", "platform", "device", "threads", "model", "seconds")
    return SweepData(
        name=found["name"],
        complete=found["finished"],
        facts={key: found[key] for key in keys if found.get(key) is not None},
        protocol=found["protocol"],
        counts=found["counts"],
        sets=sets,
        baselines=[derive(row) for row in baselines],
        methods=[derive(_method(method, found)) for method in found["methods"]],  # type: ignore[misc]
    )


def mean_of(values: Sequence[RunValue]) -> MeanOverRuns:
    """Mean and spreads; nothing measured is NaN with n = 0."""
    if not values:
        return MeanOverRuns()
    by_target = [[v.value for v in values if v.target == target] for target in dict.fromkeys(v.target for v in values)]
    means = [fmean(own) for own in by_target]
    several = min(map(len, by_target)) > 1
    return MeanOverRuns(
        value=fmean(means),
        over_targets=stdev(means) if len(means) > 1 else math.nan,
        over_seeds=fmean(map(stdev, by_target)) if several else math.nan,
        n=sum(v.n for v in values),
        runs=len(values),
    )


def difference(
    one: Sequence[RunValue], other: Sequence[RunValue], *, match: Literal["run", "target"] = "run"
) -> Difference | None:
    """One less other at the same target and seed, or, of a baseline, at the same target; None without a common run."""

    def key(value: RunValue) -> tuple[str, int]:
        return (value.target, value.seed if match == "run" else 0)

    others = {key(value): value.value for value in other}
    less = [value._replace(value=value.value - others[key(value)]) for value in one if key(value) in others]
    if not less:
        return None
    found, targets = mean_of(less), len({value.target for value in less})
    of_runs = stdev([value.value for value in less]) if len(less) > 1 else math.nan
    return Difference(found.value, found.over_targets if targets > 1 else of_runs, targets, len(less))


def best_of(rows: Sequence[SweepRow], key: str, better: Better) -> set[str]:
    """The best in a number and its ties, as ``TIE_RULE`` says; over seeds where there is one target. If that is all of
    several, none."""
    whole = [row for row in rows if not row.failures and row.values.get(key)]
    if not whole:
        return set()
    sign = 1 if better == "low" else -1
    first = min(whole, key=lambda row: sign * row.mean(key).value)
    found = {first.name}
    for row in whole:
        gap = difference(row.values[key], first.values[key])
        if gap and sign * gap.mean <= (0.0 if math.isnan(gap.spread) else gap.spread) + 1e-12:
            found.add(row.name)
    return found if len(found) < len(whole) or len(whole) == 1 else set()


def worst_attack(sweep: SweepData, row: SweepRow) -> str | None:
    """The name of what brings most back, above the oracle, on average."""
    keys = [one.key for one in sweep.group(*ATTACK_GROUPS) if one.better == "low"] + ["relearned"]
    oracle = sweep.baseline("oracle")
    found = {
        key: row.mean(key).value - (oracle.mean(key).value if oracle and oracle.values.get(key) else 0.0)
        for key in keys
        if row.values.get(key)
    }
    return SHORT_TITLES.get(best := max(found, key=found.__getitem__), best) if found else None


def keeps(sweep: SweepData, row: SweepRow) -> bool:
    """Whether nothing that is to be kept has fallen by more than ``KEEPS`` below the base's lowest."""
    base = sweep.baseline("base")
    known = base.mean("kept").value if base else 1.0
    return known - row.mean("kept").value <= KEEPS + 1e-9


def is_stage(recipe: str, name: str, after: Sequence[str]) -> bool:
    """Whether a row is of a recipe that comes first: it is its recipe, or bears its name."""
    return recipe in after or name in [other.rsplit("/", 1)[-1] for other in after]


def _method(found: Mapping[str, Any], results: Mapping[str, Any]) -> MethodRow:
    runs = [run for run in results["runs"] if run["kind"] == "test" and run["method"] == found["name"]]
    done = [run for run in runs if not run["failed"]]
    failures = [f"{run['target']}, seed {run['seed']}: {run['failed']}" for run in runs if run["failed"]]
    relearned = [run["relearned"] for run in done if run.get("relearned")]
    why_not = [one["not_applicable"] for one in relearned if "not_applicable" in one]
    kind: Literal["trained", "inference", "failed"] = "failed"
    if done:
        # Without weights of its own a method cannot be relearned; where nothing was, its steps tell.
        trained = "not_applicable" not in relearned[0] if relearned else any(run.get("steps") for run in done)
        kind = "trained" if trained else "inference"
    needs: set[str] = set()
    for one in results["methods"]:
        if one is found or is_stage(one["recipe"], one["name"], found["after"]):
            # As the method declares; and retain queries, where a setting brings in a term on them.
            term = (one.get("options") or {}).get("retain") or "none"
            needs |= {*one["needs"], *(["retain"] if term != "none" else [])}
    return MethodRow(
        name=found["name"],
        label=found["name"],
        kind=kind,
        values=_values(done, results["sets"]),
        num_runs=len(runs),
        failures=failures + ([found["failed"]] if found.get("failed") else []),
        method=found["method"],
        recipe=found["recipe"],
        about=found["about"],
        needs=frozenset(needs),
        after=found["after"],
        untuned=found.get("untuned"),
        trials=found["trials"],
        chosen=found.get("chosen"),
        settings=found.get("settings") or {},
        options=found.get("options") or {},
        queries=found.get("queries") or {},
        not_relearned=why_not[0] if why_not else None,
    )


def _values(runs: Sequence[Mapping[str, Any]], sets: Mapping[str, Any]) -> dict[str, list[RunValue]]:
    """What was measured: of each set the score that stands for it, what came back by relearning, and the costs."""
    values: dict[str, list[RunValue]] = {}
    for run in runs:
        scores: dict[str, Mapping[str, Any] | None] = {}
        for name, metrics in run["scores"].items():
            usual = (sets.get(name, {}).get("metric"), "right", "points", "refused")
            scores[name] = next((metrics[m] for m in usual if m in metrics and metrics[m]["n"]), None)
        scores["relearned"] = (run.get("relearned") or {}).get("worst")
        if run.get("kind") == "test":  # and not a baseline, which nobody made
            seconds = run.get("seconds") or {}
            costs = {key: run.get(key) for key in ("tokens", "steps", "peak_memory")}
            costs["making"] = sum(value for phase, value in seconds.items() if phase not in MEASURING)
            scores |= {key: {"value": value, "n": 0} for key, value in costs.items()}
        for key, score in scores.items():
            if score is not None and score["value"] is not None:
                value = RunValue(run["target"], run["seed"], float(score["value"]), score["n"])
                values.setdefault(key, []).append(value)
    return values


def _derive(
    values: Values, sets: Sequence[SweepColumn], oracle: Values, asked: Mapping[str, frozenset[str]]
) -> dict[str, Sequence[RunValue]]:
    """The values, and of every run: ``forgotten``, ``kept``, ``prompted`` and ``worst``.

    forgotten: mean share right over ``FORGET``. kept: the lowest share right over the sets to keep. prompted:
    the highest share right over the attacks by prompts, each less the oracle's there (where there is an oracle): what
    an attacker gets beyond guessing. worst: the same with relearning, where there was any. A run that lacks a set has
    none of these: fewer sets are an easier test.
    """

    def join(
        found: Values, keys: Sequence[str], how: Callable[[list[float]], float], required: Mapping[str, frozenset[str]]
    ) -> list[RunValue]:
        runs: dict[tuple[str, int], dict[str, RunValue]] = {}
        for key in keys:
            for one in found.get(key, ()):
                runs.setdefault((one.target, one.seed), {})[key] = one
        return [
            RunValue(*run, how([one.value for one in own.values()]), sum(one.n for one in own.values()))
            for run, own in runs.items()
            if required.get(run[0], frozenset()) & set(keys) <= set(own)
        ]

    attacks = [one.key for one in sets if one.group in ATTACK_GROUPS and one.better == "low"]
    keep = [one.key for one in sets if one.group in KEPT_GROUPS and one.better == "high"]
    above: dict[str, list[RunValue]] = {}
    for key in [*attacks, "relearned"]:
        floor = {one.target: one.value for one in oracle.get(key, ())}
        above[key] = [one._replace(value=one.value - floor.get(one.target, 0.0)) for one in values.get(key, ())]
    prompted = join(above, attacks, max, asked)
    tested = {(one.target, one.seed) for one in prompted}
    relearned = [one for one in above["relearned"] if (one.target, one.seed) in tested]
    derived = {
        "forgotten": join(values, [one.key for one in sets if one.key in FORGET], fmean, asked),
        "kept": join(values, keep, min, asked),
        "prompted": prompted,
        "worst": join({"prompted": prompted, "relearned": relearned}, ["prompted", "relearned"], max, {}),
    }
    return {**values, **{key: found for key, found in derived.items() if found}}
