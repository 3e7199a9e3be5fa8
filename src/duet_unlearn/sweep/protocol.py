"""The suite: a YAML file that says which methods are compared, how they are tuned and what they are tested on.

It is read as a recipe is, with errors of the same wording. Everything that decides a comparison's result is here.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from duet_unlearn.config.reading import (
    Key,
    SettingsLayer,
    leaves,
    lines_of,
    load_recipe,
    read_yaml,
    recipe_names,
    settings_layer,
    validated,
)
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import Count, Positive
from duet_unlearn.errors import UserError, nearest

PACKAGED = Path(__file__).parent / "suites"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""What can be a folder's name on every machine."""
DESCRIBED = "docs/sweep.md describes every key of a suite"
Settings = dict[str, Any]
"""Settings of a recipe, as dotted keys (`train.rate: 1e-3`) or as its sections."""


@dataclass(frozen=True)
class SweepMethod:
    """One method of the comparison."""

    recipe: str
    """A recipe file, relative to the suite's folder, or a packaged name."""
    name: str = ""
    """Its name in folders and tables; empty: the last part of the recipe's."""
    settings: Settings = field(default_factory=dict)
    """Settings of all its runs."""
    trials: tuple[Settings, ...] = ()
    """The settings that are tried, one after the other."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The same as key -> values: every combination is tried, the last key's values turning fastest."""
    untuned: str | None = None
    """Why there is nothing to try: a method without a setting."""


@dataclass(frozen=True)
class Tuning:
    """How settings are chosen: every trial runs once, on questions that no test asks."""

    settings: Settings
    """What is forgotten and asked: `concept`, `data.*`, `evaluate.*`."""
    name: str = "tune"
    """What `{target}` in settings stands for here."""
    seed: int = 0
    forget: tuple[str, ...] = ("forget",)
    """Sets whose right answers should fall; the mean of their shares of the base's counts."""
    keep: tuple[str, ...] = ("retain",)
    """Sets whose right answers should stay; the smallest of their shares of the base's counts."""


@dataclass(frozen=True)
class Target:
    """Something to forget."""

    name: str
    """In folders and tables; and what `{target}` in settings stands for."""
    settings: Settings = field(default_factory=dict)
    """What is forgotten and asked: `concept`, `data.*`, `evaluate.*`."""


@dataclass(frozen=True)
class Testing:
    """What the chosen settings are measured on, once."""

    targets: tuple[Target, ...]
    seeds: tuple[int, ...] = (0,)
    """Every target with every seed."""


@dataclass(frozen=True)
class Relearning:
    """After each test: fine-tune on the answers of half of the forget facts, and ask for the other half."""

    steps: Count = 60
    rates: tuple[Positive, ...] = (3e-4, 1e-3, 3e-3)
    """The rate at which most comes back counts. Ours, for models of the lab's size."""
    measure: str | None = None
    """A set of the evaluation whose questions are asked, those about the other half; null: the forget queries of the
    other half themselves."""


@dataclass(frozen=True)
class After:
    """What follows each test."""

    relearn: Relearning | None = None
    """null: nothing is relearned."""


@dataclass(frozen=True)
class Expected:
    """Seconds that a run takes, until some have been measured."""

    tune: Positive = 30.0
    test: Positive = 30.0


@dataclass(frozen=True)
class Suite:
    """Everything that decides a comparison's result."""

    name: str
    """Name in tables; a file that gives none has its own."""
    tune: Tuning
    """How settings are chosen."""
    test: Testing
    """What they are measured on."""
    methods: tuple[SweepMethod, ...]
    """What is compared. Every method has as many trials as every other."""
    settings: Settings = field(default_factory=dict)
    """Settings of all runs."""
    after_tests: After = field(default_factory=After)
    """What follows each test."""
    expect: Expected = field(default_factory=Expected)
    """The first guess at the time."""


@dataclass(frozen=True)
class SuiteFile:
    """A suite and the file that it stands in."""

    suite: Suite
    """Each of its methods has a name, a recipe that can be found from anywhere, and its trials written out."""
    path: Path
    places: Mapping[Key, str]
    """Key -> `file:line`."""

    @property
    def num_trials(self) -> int:
        """Settings that are tried for each method that has any."""
        return max((len(method.trials) for method in self.suite.methods), default=0)

    def method(self, name: str) -> SweepMethod:
        return next(method for method in self.suite.methods if method.name == name)

    def recipe(self, method: SweepMethod, target: Target | None, chosen: Settings, *, seed: int) -> Recipe:
        """The recipe of one run: the method's, changed by the suite, the target (None: tuning's), the method's entry,
        the trial and the seed, the later over the earlier.

        Raises:
            UserError: as `load_recipe`, with the line of the suite.
        """
        part: Key = ("test",) if target else ("tune",)
        own: Key = ("methods", str(self.suite.methods.index(method)))
        about, layers = target or self.suite.tune, []
        for settings, key in (
            (self.suite.settings, ("settings",)),
            (about.settings, part),
            (method.settings, own),
            (chosen, own),
            ({"seed": seed, "out": None}, part),
        ):
            named = {tuple(name.split(".")): _named(value, about.name) for name, value in flat(settings).items()}
            place = self.places.get(key, str(self.path))
            layers.append(settings_layer(named, place=place, folder=self.path.parent.resolve()))
        return load_recipe(method.recipe, layers)


def suite_names() -> list[str]:
    """Names of the packaged suites."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def load_suite(path_or_name: str | Path) -> SuiteFile:
    """Read a suite file or a packaged suite.

    Raises:
        UserError: a missing, empty or malformed file; an unknown key; methods with unequal numbers of trials.
    """
    name, path = str(path_or_name), Path(path_or_name)
    if name in suite_names():
        path = PACKAGED / f"{name}.yaml"
    elif path.suffix not in (".yaml", ".yml") and not path.exists():
        close = nearest(name, suite_names())
        hint = f"did you mean {close}?" if close else f"packaged are {', '.join(suite_names())}; a file ends in .yaml"
        raise UserError(f"no suite is called {name!r}", hint)
    values, node = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no suite", DESCRIBED)
    values.setdefault("name", path.stem)
    places = {key: f"{path}:{line}" for key, line in lines_of(node)}
    written = validated(Suite, SettingsLayer(values, places), path, missing=DESCRIBED)
    # From here on a method has its name, and its recipe does not depend on the suite's folder.
    suite = replace(written, methods=tuple(_written_out(method, path.parent) for method in written.methods))
    loaded = SuiteFile(suite, path, places)
    for key, problem, hint in _problems(written, loaded):
        parts = tuple(key.split("."))
        around = (places.get(parts[:n]) for n in range(len(parts), 0, -1))
        raise UserError(f"{next(filter(None, around), path)}: {key}: {problem}", hint)
    return loaded


def flat(settings: Settings) -> Settings:
    """Settings with dotted keys alone: dots and sections are the same."""
    return {".".join(key): value for key, value in leaves(settings)}


def _named(value: Any, target: str) -> Any:
    """A value with the target's name in place of `{target}`."""
    if isinstance(value, list | tuple):
        return [_named(item, target) for item in value]
    return value.replace("{target}", target) if isinstance(value, str) else value


def _written_out(method: SweepMethod, folder: Path) -> SweepMethod:
    recipe = method.recipe
    if recipe not in recipe_names():
        recipe = os.path.normpath(folder.resolve() / recipe)
    trials = method.trials
    if method.grid and not trials:
        combinations = itertools.product(*method.grid.values())
        trials = tuple(dict(zip(method.grid, values, strict=True)) for values in combinations)
    name = method.name or Path(recipe).with_suffix("").name
    return replace(method, recipe=recipe, name=name, trials=tuple(flat(trial) for trial in trials))


def _problems(written: Suite, loaded: SuiteFile) -> Iterator[tuple[str, str, str]]:
    """What a field alone cannot say: key, problem and hint of names that are no folder's or occur twice, of nothing to
    compare, and of unequal budgets. `written` is the suite as it stands in the file."""
    suite = loaded.suite
    names = {
        "methods": [method.name for method in suite.methods],
        "test.targets": [target.name for target in suite.test.targets],
        "test.seeds": [str(seed) for seed in suite.test.seeds],
    }
    for key, found in names.items():
        if not found:
            yield key, "is empty", "name at least one"
        for number, name in enumerate(found):
            if not NAME.fullmatch(name):
                yield f"{key}.{number}", f"{name!r} is no name", "use letters, digits, dots and dashes"
            if found.index(name) < number:
                yield f"{key}.{number}", f"{name!r} is there twice", "give each another `name`"
    for number, (entry, method) in enumerate(zip(written.methods, suite.methods, strict=True)):
        key, name, trials = f"methods.{number}", method.name, method.trials
        if entry.trials and entry.grid:
            yield key, f"{name} has trials and a grid", "keep one of the two"
        if trials and method.untuned:
            yield key, f"{name} is untuned and has trials", "keep one of the two"
        if not trials and not method.untuned:
            yield key, f"{name} has no trials", "write trials or a grid; or `untuned: why there are none`"
        if trials and len(trials) != loaded.num_trials:
            problem = f"{name} has {len(trials)} trials, others have {loaded.num_trials}"
            yield key, problem, "a comparison is fair where every method is tuned as long as every other"
        for one, other in itertools.combinations(range(len(trials)), 2):
            if trials[one] == trials[other]:
                yield key, f"{name}: trials {one} and {other} are the same", "try something else"
