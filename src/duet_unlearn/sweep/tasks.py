"""The runs of a sweep, each a folder: what there is to do, what is done, which settings are tested, and the time left.

Nothing is kept in memory that the folder does not say, so any number of workers see the same sweep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.errors import UserError
from duet_unlearn.events import duration_text
from duet_unlearn.runs import SUITE, Run
from duet_unlearn.sweep.protocol import Settings, Suite, SuiteFile, Target

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class SweepTask:
    """One run; of the kind `reference`, the relearning of base or oracle, with which the tests' is compared."""

    kind: Literal["tune", "test", "reference"]
    method: str
    """Of a reference: `base` or `oracle`."""
    target: str
    """`tune` where settings are tuned."""
    seed: int
    trial: int | None
    """The settings' place among the method's trials; None where it has none."""

    @property
    def folder(self) -> str:
        """Where it lies in the sweep's folder."""
        last = {"tune": f"{self.trial}", "test": f"{self.target}-{self.seed}", "reference": self.target}
        return f"{self.kind}/{self.method}/{last[self.kind]}"

    @property
    def title(self) -> str:
        """Its name for a reader."""
        if self.kind == "tune":
            return f"{self.method}, trial {self.trial}"
        return f"{self.method}, {self.target}" + (f", seed {self.seed}" if self.kind == "test" else "")


@dataclass(frozen=True)
class SweepFolder:
    """A suite and the folder in which it is done."""

    file: SuiteFile
    out: Path

    @property
    def suite(self) -> Suite:
        return self.file.suite

    @property
    def claims(self) -> Path:
        """Who is doing which run."""
        return self.out / "claims"

    @property
    def locks(self) -> Path:
        """Who is writing what all workers write."""
        return self.out / "locks"

    @cached_property
    def trials(self) -> dict[str, list[SweepTask]]:
        """Method -> its tuning runs."""
        seed = self.suite.tune.seed
        return {
            method.name: [SweepTask("tune", method.name, "tune", seed, n) for n in range(len(method.trials))]
            for method in self.suite.methods
        }

    @cached_property
    def references(self) -> list[SweepTask]:
        """What is relearned for comparison: the base, and the oracle where there is one, of each target."""
        found, first = [], self.suite.methods[0]
        for target in self.suite.test.targets if self.suite.after_tests.relearn else ():
            oracle = self.file.recipe(first, target, {}, seed=0).model.oracle
            subjects = ("base", "oracle") if oracle else ("base",)
            found += [SweepTask("reference", subject, target.name, 0, None) for subject in subjects]
        return found

    def tests(self, method: str) -> list[SweepTask]:
        """A method's test runs; none before its settings are chosen, nor where every trial failed."""
        chosen, test = self.chosen(method), self.suite.test
        if chosen is None or chosen["failed"]:
            return []
        return [
            SweepTask("test", method, target.name, seed, chosen["trial"])
            for target in test.targets
            for seed in test.seeds
        ]

    def tasks(self) -> list[SweepTask]:
        """All runs that are known by now, in the order in which they are done: a method's trials, then its tests."""
        own = [task for name, trials in self.trials.items() for task in (*trials, *self.tests(name))]
        return [*self.references, *own]

    @property
    def num_tests(self) -> int:
        """Test runs of each method."""
        return len(self.suite.test.targets) * len(self.suite.test.seeds)

    def open(self) -> list[tuple[str, str]]:
        """(kind, method) of every run that is not done; tests that no settings are chosen for yet included."""
        found = [(task.kind, task.method) for task in self.tasks() if not self.result(task)]
        later = [name for name in self.trials if self.chosen(name) is None]
        return found + [("test", name) for name in later for _ in range(self.num_tests)]

    @property
    def num_runs(self) -> int:
        """Everything that there is to do; a method of which every trial failed has no tests."""
        return len(self.open()) + sum(self.result(task) is not None for task in self.tasks())

    def run(self, task: SweepTask) -> Run:
        """The run's folder."""
        return Run(self.out / task.folder)

    def result(self, task: SweepTask) -> JsonObject | None:
        """What a run came to, failed or not; None while it is not done."""
        folder = self.out / task.folder
        return self.read(folder / "row.json") or self.read(folder / "failed.json")

    def chosen_file(self, method: str) -> Path:
        return self.out / "chosen" / f"{method}.json"

    def chosen(self, method: str) -> JsonObject | None:
        """What tuning chose for a method; None before."""
        return self.read(self.chosen_file(method))

    def read(self, path: Path) -> JsonObject | None:
        """A file that is written once: it is read once, too."""
        # A sweep of thousands of runs looks at all of them after every run, often over a network's disk.
        if path not in self._known and (found := read_json(path)) is not None:
            self._known[path] = found
        return self._known.get(path)

    @cached_property
    def _known(self) -> dict[Path, JsonObject]:
        return {}

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Method -> its recipe as tuning begins."""
        seed = self.suite.tune.seed
        return {method.name: self.file.recipe(method, None, {}, seed=seed) for method in self.suite.methods}

    def settings(self, task: SweepTask) -> Settings:
        """The trial's settings."""
        return {} if task.trial is None else self.file.method(task.method).trials[task.trial]

    def recipe(self, task: SweepTask) -> Recipe:
        """The recipe of a run; for a reference, that of the first method, whose model and questions are the same."""
        method = self.suite.methods[0] if task.kind == "reference" else self.file.method(task.method)
        target: Target | None = None
        if task.kind != "tune":
            target = next(target for target in self.suite.test.targets if target.name == task.target)
        return self.file.recipe(method, target, self.settings(task), seed=task.seed)


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


# The folder -----------------------------------------------------------------------------------------------------------


def open_sweep(file: SuiteFile, out: Path) -> SweepFolder:
    """The sweep's folder, new or begun with the same protocol; methods may have come or gone since, or changed before
    their first run.

    Raises:
        UserError: it is another sweep's, or something else; or the settings of a method that has runs have changed.
    """
    sweep, path = SweepFolder(file, out), out / SUITE
    # Another worker may be beginning this very moment: its half-written protocol is no foreign file.
    foreign = out.exists() and (not out.is_dir() or any(not p.name.startswith(f".{SUITE}.") for p in out.iterdir()))
    if foreign and not path.exists():
        raise UserError(f"{out}: is there already and is no sweep's folder", "choose another folder with --out")
    mine, stored = _protocol(file.suite), read_json(path)
    if stored is None:
        atomic_write_json(path, mine)
        return sweep
    begun = {
        f"methods: {name}": value
        for name, value in stored["methods"].items()
        if any((out / kind / name).exists() for kind in ("tune", "test"))
    }
    now = mine | {f"methods: {name}": value for name, value in mine["methods"].items()}
    for key, value in (stored | begun).items():
        if key in now and key != "methods" and now[key] != value:
            raise UserError(f"{out}: was begun with another suite: {key} differs", "choose another folder with --out")
    merged = {key.removeprefix("methods: "): value for key, value in begun.items()} | mine["methods"]
    if merged != stored["methods"]:
        atomic_write_json(path, mine | {"methods": merged})
    return sweep


def _protocol(suite: Suite) -> JsonObject:
    """What must not change while a sweep is under way, as JSON."""
    parts = {key: value for key, value in asdict(suite).items() if key in ("name", "settings", "tune", "test")}
    methods = {m.name: {"recipe": m.recipe, "settings": m.settings, "trials": m.trials} for m in suite.methods}
    return json.loads(json.dumps(parts | {"after_tests": asdict(suite.after_tests), "methods": methods}))


# The choice -----------------------------------------------------------------------------------------------------------


def choose_all(sweep: SweepFolder) -> None:
    """Choose the settings of every method whose trials are all done; whoever does it comes to the same.

    Raises:
        UserError: a trial was done again, and another one would be chosen than tests were made with.
    """
    for method in sweep.suite.methods:
        results = [found for task in sweep.trials[method.name] if (found := sweep.result(task))]
        # An untuned method has no trials: nothing is missing, and "nothing was chosen" is written down.
        if len(results) < len(method.trials):
            continue
        found, before = chosen_trial(results, method.trials), sweep.chosen(method.name)
        path = sweep.chosen_file(method.name)
        if before is None:
            atomic_write_json(path, {"method": method.name} | found)
        elif before["trial"] != found["trial"]:
            raise UserError(
                f"{path}: says trial {before['trial']}, but the trials say {found['trial']}",
                f"remove the file and {sweep.out / 'test' / method.name}, if a trial was done again on purpose",
            )


def chosen_trial(results: Sequence[Mapping[str, Any]], trials: Sequence[Settings]) -> JsonObject:
    """The trial with the highest score, the first of equals; a failed one is the worst. No trials: nothing to choose.

    Returns what ``chosen/<method>.json`` holds: trial, settings, scores, and why none was chosen, if so.
    """
    scores = [None if found["failed"] else found["score"] for found in results]
    done = [number for number, score in enumerate(scores) if score is not None]
    best = max(done, key=lambda number: (scores[number], -number), default=None)
    return {
        "trial": best,
        "settings": dict(trials[best]) if best is not None else {},
        "scores": scores,
        "failed": "every trial failed" if results and best is None else None,
    }


# The time -------------------------------------------------------------------------------------------------------------


def seconds_left(sweep: SweepFolder, *, workers: int) -> float:
    """Wall seconds until everything is done: what is open, over the workers; but no less than the longest single run.

    A run takes as long as the method's own took, else as all of its kind, else what the suite expects.
    """
    measured: dict[tuple[str, str], list[float]] = {}
    for task in sweep.tasks():
        if (found := sweep.result(task)) and not found["failed"]:
            measured.setdefault((task.kind, task.method), []).append(found["seconds"]["total"])
    expect, times = sweep.suite.expect, []
    for kind, method in sweep.open():
        alike = [seconds for (other, _), found in measured.items() if other == kind for seconds in found]
        expected = expect.tune if kind == "tune" else expect.test
        times.append(fmean(measured.get((kind, method)) or alike or [expected]))
    return max(sum(times) / max(workers, 1), max(times, default=0.0))


def announcement(sweep: SweepFolder, *, workers: int) -> str:
    """What there is to do and how long it will take, before it begins."""
    suite, total, num_done = sweep.suite, sweep.num_runs, sweep.num_runs - len(sweep.open())
    one, other = f"{suite.expect.tune:g}", f"{suite.expect.test:g}"
    expected = f"{one} s" if one == other else f"{one} s (trials) and {other} s (tests)"
    basis = "by the runs that are done" if num_done else f"at {expected} a run, none being measured yet"
    done = f"{num_done} of them done; " if num_done else ""
    return (
        f"sweep {suite.name}: {len(suite.methods)} methods, {sweep.file.num_trials} trials each, {sweep.num_tests}"
        f" tests each: {total} runs, {done}about {duration_text(seconds_left(sweep, workers=workers))}"
        f" with {workers} worker{'s' if workers > 1 else ''}, {basis}"
    )
