"""The runs of a sweep, each a folder: what there is to do, what is done, and which may be done now."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic_write_json
from duet_unlearn.errors import UserError
from duet_unlearn.runs import SUITE, Run
from duet_unlearn.sweep.choose import chosen_trial
from duet_unlearn.sweep.suite import Loaded, Method, Settings, Target

TUNE = "tune"
"""Stands for the target where settings are tuned."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One run; of the kind `reference`, the relearning of base or oracle, for the tests' to stand beside."""

    kind: Literal["tune", "test", "reference"]
    method: str
    """Of a reference: `base` or `oracle`."""
    target: str
    seed: int
    trial: int | None
    """The settings' place among the method's trials; None where it has none."""

    @property
    def folder(self) -> str:
        """Where it lies in the sweep's folder."""
        if self.kind == "tune":
            return f"tune/{self.method}/{self.trial}"
        if self.kind == "reference":
            return f"reference/{self.method}/{self.target}"
        return f"test/{self.method}/{self.target}-{self.seed}"

    @property
    def id(self) -> str:
        """Its name among the claims."""
        return self.folder.replace("/", "--")

    @property
    def about(self) -> str:
        """Its name for a reader."""
        if self.kind == "tune":
            return f"{self.method}, trial {self.trial}"
        return f"{self.method}, {self.target}" + (f", seed {self.seed}" if self.kind == "test" else "")


@dataclass(frozen=True)
class Sweep:
    """A suite and the folder in which it is done."""

    loaded: Loaded
    out: Path

    @property
    def claims(self) -> Path:
        """Who is doing which run."""
        return self.out / "claims"

    @property
    def locks(self) -> Path:
        """Who is writing what all workers write."""
        return self.out / "locks"

    @cached_property
    def trials(self) -> dict[str, list[Task]]:
        """Method -> its tuning runs."""
        seed = self.loaded.suite.tune.seed
        return {
            m.name: [Task("tune", m.name, TUNE, seed, n) for n in range(len(m.trials))] for m in self.loaded.methods
        }

    @cached_property
    def references(self) -> list[Task]:
        """What is relearned beside the tests: the base, and the oracle where there is one, of each target."""
        if self.loaded.suite.after_tests.relearn is None:
            return []
        oracles = {t.name: self.loaded.recipe(self.loaded.methods[0], t, {}, seed=0).model.oracle for t in self.targets}
        return [
            Task("reference", subject, target, 0, None)
            for target, oracle in oracles.items()
            for subject in ("base", *(("oracle",) if oracle else ()))
        ]

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.loaded.suite.test.targets

    @property
    def num_tests(self) -> int:
        """Test runs of each method."""
        return len(self.targets) * len(self.loaded.suite.test.seeds)

    @property
    def num_runs(self) -> int:
        """Everything that there is to do; a method of which every trial failed has no tests."""
        methods = self.loaded.methods
        failed = sum(bool((self.chosen(m.name) or {}).get("failed")) for m in methods)
        trials = sum(len(tasks) for tasks in self.trials.values())
        return len(self.references) + trials + (len(methods) - failed) * self.num_tests

    def tasks(self) -> list[Task]:
        """All runs that are known by now, in the order in which they are done: a method's trials, then its tests."""
        own = [task for m in self.loaded.methods for task in (*self.trials[m.name], *self.tests(m.name))]
        return [*self.references, *own]

    def open(self) -> list[tuple[str, str]]:
        """(kind, method) of every run that is not done; tests that no settings are chosen for yet included."""
        found = [(task.kind, task.method) for task in self.tasks() if not self.done(task)]
        later = [m.name for m in self.loaded.methods if self.chosen(m.name) is None]
        return found + [("test", name) for name in later for _ in range(self.num_tests)]

    def tests(self, method: str) -> list[Task]:
        """A method's test runs; none before its settings are chosen, nor where every trial failed."""
        chosen = self.chosen(method)
        if chosen is None or chosen["failed"]:
            return []
        seeds = self.loaded.suite.test.seeds
        return [Task("test", method, t.name, seed, chosen["trial"]) for t in self.targets for seed in seeds]

    def chosen(self, method: str) -> Row | None:
        """What tuning chose for a method, as ``chosen/<method>.json`` says; None before."""
        return self.read(self.chosen_file(method))

    def chosen_file(self, method: str) -> Path:
        return self.out / "chosen" / f"{method}.json"

    def run(self, task: Task) -> Run:
        """The run's folder."""
        return Run(self.out / task.folder)

    def row(self, task: Task) -> Row | None:
        """What a run came to, failed or not; None while it is not done."""
        folder = self.run(task).path
        return self.read(folder / "row.json") or self.read(folder / "failed.json")

    def done(self, task: Task) -> bool:
        return self.row(task) is not None

    def read(self, path: Path) -> Row | None:
        """A file that is written once: it is read once, too."""
        if path not in self._known and (found := read_json(path)) is not None:
            self._known[path] = found
        return self._known.get(path)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Method -> its recipe as tuning begins."""
        seed = self.loaded.suite.tune.seed
        return {method.name: self.loaded.recipe(method, None, {}, seed=seed) for method in self.loaded.methods}

    @cached_property
    def _known(self) -> dict[Path, Row]:
        return {}

    def settings(self, task: Task) -> Settings:
        """The trial's settings."""
        return {} if task.trial is None else self.loaded.method(task.method).trials[task.trial]

    def target(self, task: Task) -> Target | None:
        if task.kind == "tune":
            return None
        return next((target for target in self.targets if target.name == task.target), None)

    def recipe(self, task: Task) -> Recipe:
        """The recipe of a run; for a reference, that of the first method, whose model and questions are the same."""
        method = self.loaded.methods[0] if task.kind == "reference" else self.loaded.method(task.method)
        return self.loaded.recipe(method, self.target(task), self.settings(task), seed=task.seed)


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def open_sweep(loaded: Loaded, out: Path) -> Sweep:
    """The sweep's folder, new or begun with the same protocol; methods may have come or gone since, or changed before
    their first run.

    Raises:
        UserError: it is another sweep's, or something else; or the settings of a method that has runs have changed.
    """
    sweep, path = Sweep(loaded, out), out / SUITE
    if _foreign(out):
        raise UserError(f"{out}: is there already and is no sweep's folder", "choose another folder with --out")
    mine, theirs = protocol(loaded), read_json(path)
    if theirs is None:
        atomic_write_json(path, mine)
        return sweep
    begun = {name: value for name, value in theirs["methods"].items() if _has_runs(out, name)}
    methods = {name: value for name, value in mine["methods"].items() if name in begun}
    for key, one, other in (
        *((key, mine[key], theirs[key]) for key in mine if key != "methods"),
        *((f"methods: {name}", value, begun[name]) for name, value in methods.items()),
    ):
        if one != other:
            raise UserError(f"{out}: was begun with another suite: {key} differs", "choose another folder with --out")
    merged = begun | mine["methods"]
    if merged != theirs["methods"]:
        atomic_write_json(path, mine | {"methods": merged})
    return sweep


def _has_runs(out: Path, method: str) -> bool:
    return any((out / kind / method).exists() for kind in ("tune", "test"))


def _foreign(out: Path) -> bool:
    """Whether something else lies there. Another worker may be beginning this very moment."""
    try:
        others = [path for path in out.iterdir() if not path.name.startswith(f".{SUITE}.")]
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return bool(others) and not (out / SUITE).exists()


def protocol(loaded: Loaded) -> dict[str, Any]:
    """What must not change while a sweep is under way, as JSON."""
    suite = loaded.suite
    return json.loads(
        json.dumps(
            {
                "name": suite.name,
                "settings": suite.settings,
                "tune": asdict(suite.tune),
                "test": asdict(suite.test),
                "after_tests": asdict(suite.after_tests),
                "methods": {m.name: _method_protocol(m) for m in loaded.methods},
            }
        )
    )


def _method_protocol(method: Method) -> dict[str, Any]:
    return {"recipe": method.entry.recipe, "settings": method.entry.settings, "trials": method.trials}


def choose_all(sweep: Sweep) -> None:
    """Choose the settings of every method whose trials are all done; whoever does it comes to the same.

    Raises:
        UserError: a trial was done again, and another one would be chosen than tests were made with.
    """
    for method in sweep.loaded.methods:
        rows = [sweep.row(task) for task in sweep.trials[method.name]]
        if any(row is None for row in rows):
            continue
        found = chosen_trial([row for row in rows if row], method.trials)
        before = sweep.chosen(method.name)
        if before is None:
            atomic_write_json(sweep.chosen_file(method.name), {"method": method.name} | found)
        elif before["trial"] != found["trial"]:
            raise UserError(
                f"{sweep.chosen_file(method.name)}: says trial {before['trial']}, but the trials say {found['trial']}",
                f"remove the file and {sweep.out / 'test' / method.name}, if a trial was done again on purpose",
            )
