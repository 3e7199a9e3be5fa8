"""Recipe files: YAML in and out, parents and overrides merged, and errors that name key, nearest key and line.

A layer is one file or one ``--set``; layers are merged from the oldest parent to the command line, and every key
remembers the line that set it last, so that an error can name it. pydantic is used here only.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import SafeConstructor

from duet_unlearn.config.recipe import METHODS, Recipe
from duet_unlearn.data.files import read_text
from duet_unlearn.data.published import scheme_of
from duet_unlearn.errors import UserError, nearest

LOG = logging.getLogger("duet_unlearn")
PACKAGED = Path(__file__).parents[1] / "recipes"
Key = tuple[str, ...]
PATH_KEYS = (
    ("after",),
    ("model", "path"),
    ("model", "start"),
    ("model", "oracle"),
    ("model", "chat_template"),
    ("data", "forget"),
    ("data", "retain"),
    ("data", "validation_forget"),
    ("data", "validation_retain"),
    ("data", "neighbours"),
    ("data", "refusals"),
    ("data", "response_prefixes"),
    ("data", "reversals"),
    ("data", "distil"),
    ("data", "folder"),
)
"""Keys that may hold a path relative to the file that sets them; `evaluate.sets.*` are the others."""


OLD_KEYS: dict[Key, Key] = {("data", "openers"): ("data", "response_prefixes")}
"""Keys as an earlier version named them -> today's names. They are still read."""


class SettingsLayer(NamedTuple):
    """One source of settings."""

    values: dict[str, Any]
    places: dict[Key, str]
    """Key -> where it stands: `file:line`, or `--set`."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as ``lab/duet``."""
    return sorted(p.relative_to(PACKAGED).with_suffix("").as_posix() for p in PACKAGED.rglob("*.yaml"))


def about(name: str) -> str:
    """One line about a packaged recipe: its first comment."""
    return (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def locate(name: str) -> Path:
    """The file of a packaged recipe's name or of a path.

    Raises:
        UserError: a folder, or a name that is neither.
    """
    if name in recipe_names():
        return PACKAGED / f"{name}.yaml"
    path = Path(name)
    if path.is_dir():
        raise UserError(f"{name}: is a folder, not a recipe", "name a .yaml file, or see `duet list recipes`")
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        close = nearest(name, recipe_names())
        hint = f"did you mean {close}?" if close else "`duet list recipes` shows them; a file ends in .yaml"
        raise UserError(f"no recipe is called {name!r}", hint)
    if not path.exists():
        raise UserError(
            f"{name}: no such file",
            "`duet list recipes` shows the packaged ones; `duet init` writes a new one",
        )
    return path


def recipe_name(path: Path) -> str:
    """The name of a recipe that gives none: its place in the package, or its file's."""
    inside = path.is_relative_to(PACKAGED)
    return path.relative_to(PACKAGED).with_suffix("").as_posix() if inside else path.stem


def with_parents(path: Path, children: tuple[Path, ...] = ()) -> SettingsLayer:
    """A file's layer merged over its parents'. A name is never inherited.

    Raises:
        UserError: a file is missing, empty, not YAML, or its own ancestor.
    """
    if path.resolve() in children:
        chain = " -> ".join(p.name for p in (*children, path))
        raise UserError(f"{path}: recipes are each other's base: {chain}", "remove one `base:` line")
    layer = _read(path)
    if "base" not in layer.values:
        return layer
    parent = with_parents(_parent(layer, path), (*children, path.resolve()))
    parent.values.pop("name", None)
    return merge(parent, layer)


def _parent(layer: SettingsLayer, path: Path) -> Path:
    base, place = layer.values.pop("base"), layer.places[("base",)]
    if not isinstance(base, str):
        raise UserError(f"{place}: base is no text", 'give a path or a packaged name, such as "lab/duet"')
    if base in recipe_names():
        return PACKAGED / f"{base}.yaml"
    parent = path.parent / base
    if not parent.is_file():
        close = nearest(base, recipe_names())
        hint = f"did you mean {close}?" if close else "give a path relative to this file, or a packaged name"
        raise UserError(f"{place}: no recipe {base!r} for base", hint)
    return parent


def _read(path: Path) -> SettingsLayer:
    values, node = read_yaml(path)
    if values is None:
        raise UserError(f"{path}: is empty", "`duet init MODEL --concept ..` writes a recipe to start from")
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: is no recipe", "a recipe is lines of `key: value`")
    places = {key: f"{path}:{line}" for key, line in lines_of(node)}
    return _layer(values, places, path.parent.resolve())


def _layer(values: dict[str, Any], places: dict[Key, str], folder: Path) -> SettingsLayer:
    """A layer with today's names of its keys and with absolute paths."""
    for (*old_sections, old), (*sections, new) in OLD_KEYS.items():
        section = _inner(values, tuple(old_sections))
        if old in section:
            value, place = section.pop(old), places.get((*old_sections, old), "")
            _inner(values, tuple(sections)).setdefault(new, value)
            places.setdefault((*sections, new), place)
            if value is not None:  # the folder of an old run spells out every key, most of them null
                _note_renamed(place, ".".join((*old_sections, old)), ".".join((*sections, new)))
    return SettingsLayer(_anchor(values, folder), places)


@cache  # one recipe is read many times
def _note_renamed(place: str, old: str, new: str) -> None:
    LOG.warning("note: %s: %s is called %s now", place, old, new)


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """What a YAML file says, and the node that knows its lines.

    Raises:
        UserError: the file is missing, empty or not YAML.
    """
    text = read_text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return (None if node is None else SafeConstructor().construct_document(node)), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{place}: is not YAML ({problem})", "write lines of `key: value`") from error


def lines_of(node: yaml.Node | None, key: Key = ()) -> Iterator[tuple[Key, int]]:
    """Where each key and each item of a list stands."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(name.value), name, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(number), value, value) for number, value in enumerate(node.value)]
    else:
        return
    for name, mark, value in pairs:
        yield (*key, name), mark.start_mark.line + 1
        yield from lines_of(value, (*key, name))


def override(text: str) -> SettingsLayer:
    """The layer of one ``a.b=value``.

    Raises:
        UserError: it has no `=`, or the value is not YAML.
    """
    dotted, equals, raw = text.partition("=")
    key = tuple(dotted.strip().split("."))
    if not equals or not all(key):
        raise UserError(f"--set {text}: is no setting", "write it as a.b=value, for example train.epochs=5")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not YAML", "put it into quotes") from error
    return settings_layer({key: value}, place="--set", folder=Path.cwd())


def settings_layer(settings: Mapping[Key, Any], *, place: str, folder: Path) -> SettingsLayer:
    """The layer of single settings that were all set in one place; relative paths are relative to `folder`."""
    layer = SettingsLayer({}, {})
    for key, value in settings.items():
        values: Any = value
        for name in reversed(key):
            values = {name: values}
        inner = {key + deep: place for deep, _ in leaves(value)} if isinstance(value, dict) else {}
        places = {key[: n + 1]: place for n in range(len(key))} | inner
        layer = merge(layer, _layer(values, places, folder))
    return layer


def _anchor(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the relative paths of a layer absolute. Hub ids, `lab:`, `tofu:` and `plain` are no files and stay."""
    keys = [*PATH_KEYS, *(("evaluate", "sets", name) for name in _inner(values, ("evaluate", "sets")))]
    for *sections, name in keys:
        section = _inner(values, tuple(sections))
        value = section.get(name)
        if isinstance(value, str) and _is_path(value, folder, must_exist=sections in ([], ["model"])):
            section[name] = os.path.normpath(folder / value)
    return values


def _inner(values: Any, key: Key) -> dict[str, Any]:
    for name in key:
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _is_path(value: str, folder: Path, *, must_exist: bool) -> bool:
    if value.startswith("lab:") or scheme_of(value) or value == "plain":
        return False
    return not must_exist or value.startswith(".") or (folder / value).exists()


def merge(parent: SettingsLayer, child: SettingsLayer) -> SettingsLayer:
    """The child's values over the parent's, section by section; another method takes none of its settings."""
    method = _inner(child.values, ("method",)).get("name")
    if method is not None and method != _inner(parent.values, ("method",)).get("name"):
        parent = SettingsLayer({k: v for k, v in parent.values.items() if k != "method"}, parent.places)
    return SettingsLayer(_merged(parent.values, child.values), parent.places | child.places)


def leaves(values: dict[str, Any], key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value that is no section, with its key."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*key, name))
        else:
            yield (*key, name), value


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    out = dict(parent)
    for name, value in child.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = _merged(out[name], value) if both else value
    return out


INIT_WRITES = "`duet init MODEL --concept ..` writes every key that is needed"
Kind = TypeVar("Kind")


def load_recipe(path_or_name: str | Path, overrides: Sequence[str | SettingsLayer] = ()) -> Recipe:
    """Read a recipe file or a packaged recipe, with its parents and overrides ``a.b=value`` (value in YAML).

    Paths in a file are relative to that file, in an override to the current folder; both come out absolute.

    Raises:
        UserError: a missing, empty or malformed file; an unknown key or method; a value of the wrong type.
    """
    path = locate(str(path_or_name))
    layer = with_parents(path)
    layer.values.setdefault("name", recipe_name(path))
    for one in overrides:
        layer = merge(layer, one if isinstance(one, SettingsLayer) else override(one))
    return _validate(layer, path)


def default_recipe(model: str, overrides: Sequence[str] = ()) -> Recipe:
    """Every default, changed by overrides: for what asks about a model and reads no queries.

    Raises:
        UserError: as `load_recipe`.
    """
    sections = {"model": {"path": model}, "data": {"forget": ""}, "method": {"name": "duet"}}
    layer = SettingsLayer({"name": "default", "concept": "", **sections}, {})
    for text in overrides:
        layer = merge(layer, override(text))
    return _validate(layer, Path("--set"))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults written out; ``load_recipe`` reads it back to the same recipe."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False, allow_unicode=True, width=100)


def differing_key(first: Recipe, second: Recipe) -> str | None:
    """The first key, dotted, whose values differ in two recipes; name and out do not count."""
    one, two = dict(leaves(asdict(first))), dict(leaves(asdict(second)))
    for key in [*one, *two]:
        if key not in (("name",), ("out",)) and one.get(key) != two.get(key):
            return ".".join(key)
    return None


def validated(kind: type[Kind], layer: SettingsLayer, path: Path, *, missing: str) -> Kind:
    """A dataclass of settings from a file that is no recipe, with errors worded as a recipe's; `missing` says where
    its keys are described.

    Raises:
        UserError: as `load_recipe`.
    """
    _check_keys(kind, layer.values, layer, path, ())
    return _adapt(kind, layer.values, layer, path, (), missing=missing)


def _validate(layer: SettingsLayer, path: Path) -> Recipe:
    _check_keys(Recipe, layer.values, layer, path, ())
    method = layer.values.get("method")
    if not isinstance(method, dict):
        _fail(
            layer,
            path,
            ("method",),
            "is missing or no section",
            f"method.name is one of {', '.join(_methods())}",
        )
    kind = _method_type(method, layer, path)
    _check_keys(kind, method, layer, path, ("method",))
    values = layer.values | {"method": _adapt(kind, method, layer, path, ("method",))}
    return _adapt(Recipe, values, layer, path, ())


def _adapt(
    kind: type, values: dict[str, Any], layer: SettingsLayer, path: Path, key: Key, *, missing: str = INIT_WRITES
) -> Any:
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        _fail_value(error.errors()[0], layer, path, key, missing)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Made once: a comparison of many methods reads hundreds of recipes."""
    return TypeAdapter(kind)


def _methods() -> dict[str, type]:
    return {kind().name: kind for kind in METHODS}


def _method_type(method: dict[str, Any], layer: SettingsLayer, path: Path) -> type:
    name, known = method.get("name"), _methods()
    if name not in known:
        close = nearest(str(name), known)
        hint = f"did you mean {close}?" if close else f"the methods are {', '.join(known)}"
        _fail(layer, path, ("method", "name"), f"unknown method {name!r}" if name else "is missing", hint)
    return known[str(name)]


def _check_keys(kind: type, values: dict[str, Any], layer: SettingsLayer, path: Path, key: Key) -> None:
    """Refuse keys that a section's dataclass has not, section by section."""
    known = {field.name for field in fields(kind)}
    for name in values:
        if name not in known:
            close = nearest(str(name), known)
            dotted = ".".join((*key, close)) if close else ""
            hint = f"did you mean {dotted}?" if close else f"the keys here are {', '.join(sorted(known))}"
            _fail(layer, path, (*key, str(name)), "unknown key", hint)
    hints = get_type_hints(kind)
    for name, value in values.items():
        section = _section(hints[name])
        if section and isinstance(value, dict):
            _check_keys(section, value, layer, path, (*key, name))
        for number, item in enumerate(value) if isinstance(value, list) else ():
            if section and isinstance(item, dict):
                _check_keys(section, item, layer, path, (*key, name, str(number)))


def _section(hint: Any) -> type | None:
    """The dataclass of a field that is a section; None for values, and for the method: `name` chooses it."""
    found = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind) and isinstance(kind, type)]
    return found[0] if len(found) == 1 and found[0] not in METHODS else None


def _fail_value(detail: ErrorDetails, layer: SettingsLayer, path: Path, prefix: Key, missing: str) -> NoReturn:
    """Raise for the first value that pydantic refuses."""
    key, given = (*prefix, *(str(part) for part in detail["loc"])), detail["input"]
    match detail["type"]:
        case "missing":
            _fail(layer, path, key, "is missing", missing)
        case "string_type":
            _fail(layer, path, key, "is empty" if given is None else f"is {given!r}, not text", _as_text(given))
        case "dataclass_type":
            _fail(
                layer,
                path,
                key,
                f"is {given!r}, not a section",
                "put its keys under it, each as `key: value`",
            )
        case "value_error":  # a dataclass's own check; its text begins with the key
            key_text, _, problem = str(detail["ctx"]["error"]).partition(" ")
            _fail(
                layer,
                path,
                tuple(key_text.split(".")),
                problem,
                "see the field's description in docs/methods.md" if missing == INIT_WRITES else missing,
            )
        case kind:
            expected = detail["msg"].removeprefix("Input should be ")
            options = re.findall("'([^']*)'", expected) if kind == "literal_error" else []
            close = nearest(str(given), options)
            hint = f"did you mean {close}?" if close else f"it should be {expected[0].lower() + expected[1:]}"
            _fail(layer, path, key, f"is {given!r}", hint)


def _as_text(given: Any) -> str:
    """How to write a value that YAML did not read as text."""
    if given is None:
        return "write a text behind it"
    if isinstance(given, dict):  # a colon or a brace made it one; the shell has taken its quotes away
        return """YAML reads a colon or brace as structure; quote the text for YAML too: --set 'concept="A: one"'"""
    return f"put it into quotes: '{given}'"


def _fail(layer: SettingsLayer, path: Path, key: Key, problem: str, hint: str) -> NoReturn:
    """Raise with the place of the key, or of the nearest section around it that is written down."""
    around = (layer.places.get(key[:n]) for n in range(len(key), 0, -1))
    place = next((found for found in around if found), str(path))
    raise UserError(f"{place}: {'.'.join(key)}: {problem}", hint)
