"""The suite: many methods under one protocol, as a YAML file says it. Read like a recipe, with errors worded alike."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Entry:
    """One method of the comparison."""

    recipe: str
    """A recipe file, relative to the suite's folder, or a packaged name."""
    name: str | None = None
    """Its name in folders and tables; null: the last part of the recipe's."""
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
    methods: tuple[Entry, ...]
    """What is compared. Every method has as many trials as every other."""
    settings: Settings = field(default_factory=dict)
    """Settings of all runs."""
    after_tests: After = field(default_factory=After)
    """What follows each test."""
    expect: Expected = field(default_factory=Expected)
    """The first guess at the time."""


@dataclass(frozen=True)
class Method:
    """An entry with its name and its trials written out."""

    name: str
    entry: Entry
    trials: tuple[Settings, ...]


@dataclass(frozen=True)
class Loaded:
    """A suite, and where it stands."""

    suite: Suite
    path: Path
    methods: tuple[Method, ...]
    places: Mapping[Key, str]
    """Key -> `file:line`."""

    @property
    def num_trials(self) -> int:
        """Settings that are tried for each method that has any."""
        return max((len(method.trials) for method in self.methods), default=0)

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def recipe(self, method: Method, target: Target | None, chosen: Settings, *, seed: int) -> Recipe:
        """The recipe of one run: the method's, changed by the suite, the target (None: tuning's), the entry, the
        trial and the seed, the later over the earlier.

        Raises:
            UserError: as `load_recipe`, with the line of the suite.
        """
        part: Key = ("test",) if target else ("tune",)
        own: Key = ("methods", str(self.methods.index(method)))
        about = target or self.suite.tune
        layers = [
            (self.suite.settings, ("settings",)),
            (about.settings, part),
            (method.entry.settings, own),
            (chosen, own),
            ({"seed": seed, "out": None}, part),
        ]
        return load_recipe(method.entry.recipe, [self._layer(found, about.name, key) for found, key in layers])

    def _layer(self, settings: Settings, target: str, key: Key) -> SettingsLayer:
        place, folder = self.places.get(key, str(self.path)), self.path.parent.resolve()
        named = {name: _named(value, target) for name, value in dotted(settings).items()}
        return settings_layer(named, place=place, folder=folder)


def suite_names() -> list[str]:
    """Names of the packaged suites."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def about_suite(name: str) -> str:
    """One line about a packaged suite: its first comment."""
    return (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def load_suite(path_or_name: str | Path) -> Loaded:
    """Read a suite file or a packaged suite.

    Raises:
        UserError: a missing, empty or malformed file; an unknown key; methods with unequal numbers of trials.
    """
    path = _locate(str(path_or_name))
    values, node = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no suite", DESCRIBED)
    values.setdefault("name", path.stem)
    places = {key: f"{path}:{line}" for key, line in lines_of(node)}
    suite = validated(Suite, SettingsLayer(values, places), path, missing=DESCRIBED)
    methods = tuple(_method(entry, path.parent) for entry in suite.methods)
    loaded = Loaded(suite, path, methods, places)
    _check(loaded)
    return loaded


def dotted(settings: Settings) -> dict[Key, Any]:
    """Settings as keys with their values: dots and sections are the same."""
    return {tuple(".".join(key).split(".")): value for key, value in leaves(settings)}


def flat(settings: Settings) -> Settings:
    """Settings with dotted keys alone."""
    return {".".join(key): value for key, value in dotted(settings).items()}


def _named(value: Any, target: str) -> Any:
    """A value with the target's name where it says so."""
    if isinstance(value, list | tuple):
        return [_named(item, target) for item in value]
    return value.replace("{target}", target) if isinstance(value, str) else value


def _locate(name: str) -> Path:
    if name in suite_names():
        return PACKAGED / f"{name}.yaml"
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        close = nearest(name, suite_names())
        hint = f"did you mean {close}?" if close else f"packaged are {', '.join(suite_names())}; a file ends in .yaml"
        raise UserError(f"no suite is called {name!r}", hint)
    return path


def _method(entry: Entry, folder: Path) -> Method:
    packaged = entry.recipe in recipe_names()
    recipe = entry.recipe if packaged else os.path.normpath(folder.resolve() / entry.recipe)
    name = entry.name or Path(recipe).with_suffix("").name
    keys = list(entry.grid)
    combined = tuple(dict(zip(keys, values, strict=True)) for values in itertools.product(*entry.grid.values()))
    trials = entry.trials or (combined if keys else ())
    whole = Entry(recipe, name, entry.settings, entry.trials, entry.grid, entry.untuned)
    return Method(name, whole, tuple(flat(trial) for trial in trials))


def _check(loaded: Loaded) -> None:
    """What a field alone cannot say.

    Raises:
        UserError: names that are no folder's or occur twice; nothing to compare; unequal budgets.
    """
    suite = loaded.suite
    names = {
        "methods": [method.name for method in loaded.methods],
        "test.targets": [target.name for target in suite.test.targets],
        "test.seeds": [str(seed) for seed in suite.test.seeds],
    }
    for key, found in names.items():
        if not found:
            _fail(loaded, key, "is empty", "name at least one")
        for number, name in enumerate(found):
            if not NAME.fullmatch(name):
                _fail(loaded, f"{key}.{number}", f"{name!r} is no name", "use letters, digits, dots and dashes")
            if found.index(name) < number:
                _fail(loaded, f"{key}.{number}", f"{name!r} is there twice", "give each another `name`")
    for number, method in enumerate(loaded.methods):
        _check_trials(loaded, method, f"methods.{number}")


def _check_trials(loaded: Loaded, method: Method, key: str) -> None:
    entry, wanted = method.entry, loaded.num_trials
    if entry.trials and entry.grid:
        _fail(loaded, key, f"{method.name} has trials and a grid", "keep one of the two")
    if method.trials and entry.untuned:
        _fail(loaded, key, f"{method.name} is untuned and has trials", "keep one of the two")
    if not method.trials and not entry.untuned:
        _fail(loaded, key, f"{method.name} has no trials", "write trials or a grid; or `untuned: why there are none`")
    if method.trials and len(method.trials) != wanted:
        _fail(
            loaded,
            key,
            f"{method.name} has {len(method.trials)} trials, others have {wanted}",
            "a comparison is fair where every method is tuned as long as every other",
        )
    for one, other in itertools.combinations(range(len(method.trials)), 2):
        if method.trials[one] == method.trials[other]:
            _fail(loaded, key, f"{method.name}: trials {one} and {other} are the same", "try something else")


def _fail(loaded: Loaded, key: str, problem: str, hint: str) -> None:
    parts = tuple(key.split("."))
    around = (loaded.places.get(parts[:n]) for n in range(len(parts), 0, -1))
    raise UserError(f"{next(filter(None, around), loaded.path)}: {key}: {problem}", hint)
