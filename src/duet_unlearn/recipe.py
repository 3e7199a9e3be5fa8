"""Recipes: YAML in and out, parents, overrides, and errors that name the key, the nearest one and the line.

The tree of settings is in ``config.py``, the reading of files in ``layers.py``; pydantic is used here only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from duet_unlearn.config import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    PrefixConfig,
    Recipe,
    TrainConfig,
)
from duet_unlearn.errors import UserError, nearest
from duet_unlearn.layers import (
    Key,
    Layer,
    about,
    leaves,
    locate,
    merge,
    override,
    recipe_name,
    recipe_names,
    with_parents,
)
from duet_unlearn.methods import METHODS

__all__ = [
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "ModelConfig",
    "PrefixConfig",
    "Recipe",
    "TrainConfig",
    "about",
    "default_recipe",
    "differing_key",
    "dump_recipe",
    "load_recipe",
    "recipe_hash",
    "recipe_names",
    "validated",
]


INIT_WRITES = "`duet init MODEL --concept ..` writes every key that is needed"
Kind = TypeVar("Kind")


def load_recipe(path_or_name: str | Path, overrides: Sequence[str | Layer] = ()) -> Recipe:
    """Read a recipe file or a packaged recipe, with its parents and overrides ``a.b=value`` (value in YAML).

    Paths in a file are relative to that file, in an override to the current folder; both come out absolute.

    Raises:
        UserError: a missing, empty or malformed file; an unknown key or method; a value of the wrong type.
    """
    path = locate(str(path_or_name))
    layer = with_parents(path)
    layer.values.setdefault("name", recipe_name(path))
    for one in overrides:
        layer = merge(layer, one if isinstance(one, Layer) else override(one))
    return _validate(layer, path)


def default_recipe(model: str, overrides: Sequence[str] = ()) -> Recipe:
    """Every default, changed by overrides: for what asks about a model and reads no queries.

    Raises:
        UserError: as `load_recipe`.
    """
    sections = {"model": {"path": model}, "data": {"forget": ""}, "method": {"name": "duet"}}
    layer = Layer({"name": "default", "concept": "", **sections}, {})
    for text in overrides:
        layer = merge(layer, override(text))
    return _validate(layer, Path("--set"))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults written out; ``load_recipe`` reads it back to the same recipe."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False, allow_unicode=True, width=100)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of everything that decides the result: all fields but the name and the output folder."""
    values = {key: value for key, value in asdict(recipe).items() if key not in ("name", "out")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def differing_key(first: Recipe, second: Recipe) -> str | None:
    """The first key, dotted, whose values differ in two recipes; name and out do not count."""
    one, two = dict(leaves(asdict(first))), dict(leaves(asdict(second)))
    for key in [*one, *two]:
        if key not in (("name",), ("out",)) and one.get(key) != two.get(key):
            return ".".join(key)
    return None


def validated(kind: type[Kind], layer: Layer, path: Path, *, missing: str) -> Kind:
    """A dataclass of settings from a file that is no recipe, with errors worded as a recipe's; `missing` says where
    its keys are described.

    Raises:
        UserError: as `load_recipe`.
    """
    _check_keys(kind, layer.values, layer, path, ())
    return _adapt(kind, layer.values, layer, path, (), missing=missing)


def _validate(layer: Layer, path: Path) -> Recipe:
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
    kind: type, values: dict[str, Any], layer: Layer, path: Path, key: Key, *, missing: str = INIT_WRITES
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


def _method_type(method: dict[str, Any], layer: Layer, path: Path) -> type:
    name, known = method.get("name"), _methods()
    if name not in known:
        close = nearest(str(name), known)
        hint = f"did you mean {close}?" if close else f"the methods are {', '.join(known)}"
        _fail(layer, path, ("method", "name"), f"unknown method {name!r}" if name else "is missing", hint)
    return known[str(name)]


def _check_keys(kind: type, values: dict[str, Any], layer: Layer, path: Path, key: Key) -> None:
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


def _fail_value(detail: ErrorDetails, layer: Layer, path: Path, prefix: Key, missing: str) -> NoReturn:
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
            wanted = detail["msg"].removeprefix("Input should be ")
            options = re.findall("'([^']*)'", wanted) if kind == "literal_error" else []
            close = nearest(str(given), options)
            hint = f"did you mean {close}?" if close else f"it should be {wanted[0].lower() + wanted[1:]}"
            _fail(layer, path, key, f"is {given!r}", hint)


def _as_text(given: Any) -> str:
    """How to write a value that YAML did not read as text."""
    if given is None:
        return "write a text behind it"
    if isinstance(given, dict):  # a colon or a brace made it one; the shell has taken its quotes away
        return """YAML reads a colon or brace as structure; quote the text for YAML too: --set 'concept="A: one"'"""
    return f"put it into quotes: '{given}'"


def _fail(layer: Layer, path: Path, key: Key, problem: str, hint: str) -> NoReturn:
    """Raise with the place of the key, or of the nearest section around it that is written down."""
    around = (layer.places.get(key[:n]) for n in range(len(key), 0, -1))
    place = next((found for found in around if found), str(path))
    raise UserError(f"{place}: {'.'.join(key)}: {problem}", hint)
