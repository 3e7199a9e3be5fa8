"""Recipe files as layers of plain values: YAML in, parents and overrides merged, every key with its place.

A layer is one file or one ``--set``; layers are merged from the oldest parent to the command line; every key
remembers the line that set it last, so that an error can name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.constructor import SafeConstructor

from duet_unlearn.data.files import read_text
from duet_unlearn.data.published import scheme_of
from duet_unlearn.errors import UserError, nearest

PACKAGED = Path(__file__).parent / "recipes"
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
    ("data", "openers"),
    ("data", "reversals"),
    ("data", "distil"),
    ("data", "folder"),
)
"""Keys that may hold a path relative to the file that sets them; `evaluate.sets.*` are the others."""


class Layer(NamedTuple):
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


def with_parents(path: Path, children: tuple[Path, ...] = ()) -> Layer:
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


def _parent(layer: Layer, path: Path) -> Path:
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


def _read(path: Path) -> Layer:
    values, node = read_yaml(path)
    if values is None:
        raise UserError(f"{path}: is empty", "`duet init MODEL --concept ..` writes a recipe to start from")
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: is no recipe", "a recipe is lines of `key: value`")
    places = {key: f"{path}:{line}" for key, line in lines_of(node)}
    return Layer(_anchor(values, path.parent.resolve()), places)


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


def override(text: str) -> Layer:
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


def settings_layer(settings: Mapping[Key, Any], *, place: str, folder: Path) -> Layer:
    """The layer of single settings that were all set in one place; relative paths are relative to `folder`."""
    layer = Layer({}, {})
    for key, value in settings.items():
        values: Any = value
        for name in reversed(key):
            values = {name: values}
        inner = {key + deep: place for deep, _ in leaves(value)} if isinstance(value, dict) else {}
        places = {key[: n + 1]: place for n in range(len(key))} | inner
        layer = merge(layer, Layer(_anchor(values, folder), places))
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


def merge(parent: Layer, child: Layer) -> Layer:
    """The child's values over the parent's, section by section; another method takes none of its settings."""
    method = _inner(child.values, ("method",)).get("name")
    if method is not None and method != _inner(parent.values, ("method",)).get("name"):
        parent = Layer({k: v for k, v in parent.values.items() if k != "method"}, parent.places)
    return Layer(_merged(parent.values, child.values), parent.places | child.places)


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
