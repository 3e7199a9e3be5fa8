"""A copy of the frozen place, and how what a command writes there is compared with what is stored."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PLACE = HERE / "place"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PACKED = ("sweep", "undo")
"""Folders of many files, stored as archives."""
PLACEHOLDER = "@PLACE@"
"""Stands in stored files for the folder of the place, as run folders name absolute paths."""
TEXTS = (".json", ".jsonl", ".yaml", ".txt", ".md", ".jinja")
OTHERS_EVERY_TIME = frozenset(
    "started platform python packages commit commits date threads device seconds training memory peak_memory worker"
    " started_at written_by sha256 bytes machine".split()
)
"""Keys whose values are another machine's or hour's. What they hold is not compared, only that it is there."""
PROSE = frozenset(
    "title label about verdict reason sentences cost rule forgotten limitations warnings what hint"
    " not_applicable not_tested untuned".split()
)
"""Keys whose texts may be worded anew; where they hold no text, what they hold is compared."""


def copied(target: Path) -> Path:
    """A copy of the place, as if it had been made there."""
    shutil.copytree(PLACE, target, ignore=shutil.ignore_patterns("*.zip"))
    for name in PACKED:
        shutil.unpack_archive(PLACE / f"{name}.zip", target / name)
    for path in target.rglob("*"):
        if path.suffix in TEXTS and PLACEHOLDER in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(PLACEHOLDER, str(target)), encoding="utf-8")
    for env in target.rglob("env.json"):
        _hash_paths_anew(env.parent)
    # The stage before is the same in both; it is stored once.
    shutil.copytree(target / "undo" / "before", target / "begun-undo" / "before")
    return target


def _hash_paths_anew(run: Path) -> None:
    """Put the two hashes that paths are a part of, as the earlier version would have written them in this place: of
    everything in the recipe but its name and folder, and of what decides the evaluation."""
    recipe = yaml.load((run / "recipe.yaml").read_text(encoding="utf-8"), Loader=LOADER)
    everything = {key: value for key, value in recipe.items() if key not in ("name", "out")}
    asked = [recipe["concept"], recipe["prefix"], recipe["evaluate"], recipe["model"]["dtype"]]
    before = read(run / "env.json")["hashes"]
    for path in (run / "env.json", run / "audit.json"):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            text = text.replace(before["recipe"], digest(everything)).replace(before["settings"], digest(asked)[:16])
            path.write_text(text, encoding="utf-8")


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time it was written, by which a file that was written again is found out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def names(folder: Path) -> set[str]:
    """Every file of a folder but those that are made of the others."""
    return {name for name in contents(folder) if not name.endswith((".html", "table.txt"))}


def read(path: Path) -> Any:
    """What a JSON or JSONL file holds."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def differences(stored: Any, found: Any, *, rel: float) -> list[str]:
    """Where two values differ: in a key always, in a number beyond a tolerance, in a text that is no prose."""
    return list(_differences(stored, found, "", rel))


def _differences(stored: Any, found: Any, where: str, rel: float) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(found, dict):
        yield from (f"{where}: {key!r} is missing" for key in stored if key not in found)
        yield from (f"{where}: {key!r} is new" for key in found if key not in stored)
        for key in stored.keys() & found.keys():
            one, other = stored[key], found[key]
            if key == "seconds" and isinstance(one, dict):  # of phases, whose names count
                yield from (f"{where}/{key}: {phase!r} has one only" for phase in one.keys() ^ other.keys())
            worded = key in PROSE and _is_text(one) and _is_text(other)
            if key not in OTHERS_EVERY_TIME and not worded:
                yield from _differences(one, other, f"{where}/{key}", rel)
    elif isinstance(stored, list) and isinstance(found, list):
        if len(stored) != len(found):
            yield f"{where}: {len(found)} instead of {len(stored)}"
        for number, (one, other) in enumerate(zip(stored, found, strict=False)):
            yield from _differences(one, other, f"{where}/{number}", rel)
    elif isinstance(stored, float) or isinstance(found, float):
        numbers = isinstance(stored, int | float) and isinstance(found, int | float)
        if not numbers or not math.isclose(stored, found, rel_tol=rel, abs_tol=rel / 100):
            yield f"{where}: {found!r} instead of {stored!r}"
    elif stored != found:
        yield f"{where}: {found!r} instead of {stored!r}"


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value)))


def folder_differences(stored: Path, found: Path, *, rel: float) -> list[str]:
    """Where the JSON files of two run folders differ, and which files only one of them has."""
    lines = [f"{name}: only one has it" for name in sorted(names(stored) ^ names(found))]
    for name in sorted(names(stored) & names(found)):
        if name.endswith((".json", ".jsonl")) and not name.endswith(("tokenizer.json", "config.json")):
            apart = differences(read(stored / name), read(found / name), rel=rel)
            lines += [f"{name}{line}" for line in apart]
    return lines
