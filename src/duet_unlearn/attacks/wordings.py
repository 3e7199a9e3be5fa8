"""Wordings of attacks: JSON lines that come with the package, and a user's own files beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from duet_unlearn.attacks.turns import PLACE, UNDERSTOOD, filled, question_of, reworded
from duet_unlearn.data.files import json_lines, read_text
from duet_unlearn.data.prompts import behind
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError, nearest

Turn = Literal["user", "system", "before"]
"""``user``: the text stands around the question. ``system``: it is the system turn, the question follows.
``before``: it is a turn of its own, which the model is made to have agreed to; the question follows."""
REQUIRED, OPTIONAL = ("id", "family", "text"), ("turn", "language")
PLACES = ("question", "concept")
SHAPE = 'a line is {"id": "mine-1", "family": "mine", "text": "Please tell me: {question}"}; "turn" is optional'


@dataclass(frozen=True)
class Wording:
    """One way to ask any question."""

    id: str
    family: str
    """Wordings with the same idea."""
    text: str
    """``{question}`` stands for what is asked, ``{concept}`` for what was forgotten."""
    turn: Turn = "user"
    language: str = ""
    """Of the text, where it is not English."""


def read_wordings(path: Path | str) -> list[Wording]:
    """The wordings of a file.

    Raises:
        UserError: missing, empty or not readable; a line that is no wording, named by file:line; an id given twice.
    """
    path = Path(path)
    found: dict[str, Wording] = {}
    for line, row in json_lines(path, read_text(path), SHAPE):
        wording = _wording(row, f"{path}:{line}")
        if wording.id in found:
            raise UserError(f"{path}:{line}: id {wording.id!r} is given twice", "make ids unique")
        found[wording.id] = wording
    return list(found.values())


def wordings(attack: str, *, files: Sequence[str] = (), per_family: int | None = None) -> tuple[Wording, ...]:
    """The packaged wordings of an attack and those of `files`, the first `per_family` of each family.

    Raises:
        UserError: as ``read_wordings``; a file names a wording as another does; `per_family` is below 1.
    """
    if per_family is not None and per_family < 1:
        raise UserError(f"attack {attack}: per_family is {per_family}", "take 1 or more, or null for all")
    packaged = str(resources.files("duet_unlearn.attacks") / "wordings" / f"{attack}.jsonl")
    chosen: dict[str, Wording] = {}
    for path in (packaged, *files):
        for wording in read_wordings(path):
            if wording.id in chosen:
                raise UserError(f"{path}: id {wording.id!r} stands in another file of attack {attack}", "rename it")
            chosen[wording.id] = wording
    families = dict.fromkeys(one.family for one in chosen.values())
    by_family = [[one for one in chosen.values() if one.family == family][:per_family] for family in families]
    return tuple(one for family in by_family for one in family)


def worded(query: Query, wording: Wording, concept: str) -> Query:
    """A query in a wording; it is judged as before. A query that names a concept of its own is about that."""
    text = filled(wording.text, concept=query.concept or concept, question=question_of(query))
    if wording.turn == "user":
        return reworded(query, text)
    role = "system" if wording.turn == "system" else "user"
    agreed = [{"role": "assistant", "content": UNDERSTOOD}] if wording.turn == "before" else []
    return replace(query, messages=behind(query.messages, [{"role": role, "content": text}, *agreed]))


def _wording(row: Any, place: str) -> Wording:
    if not isinstance(row, dict):
        raise UserError(f"{place}: is no JSON object", SHAPE)
    for key in row:
        if key not in REQUIRED + OPTIONAL:
            close = nearest(key, REQUIRED + OPTIONAL)
            raise UserError(f"{place}: unknown key {key!r}", f"did you mean {close}?" if close else SHAPE)
    for key in REQUIRED:
        if not row.get(key):
            raise UserError(f"{place}: has no {key}", SHAPE)
    if wrong := [key for key, value in row.items() if not isinstance(value, str)]:
        raise UserError(f"{place}: {wrong[0]} is no text", SHAPE)
    wording = Wording(**row)
    _check_turn(wording, place, set(PLACE.findall(wording.text)))
    return wording


def _check_turn(wording: Wording, place: str, named: Iterable[str]) -> None:
    if wording.turn not in get_args(Turn):
        raise UserError(f"{place}: unknown turn {wording.turn!r}", f"it is one of {', '.join(get_args(Turn))}")
    if unknown := sorted(set(named) - set(PLACES)):
        raise UserError(f"{place}: nothing stands for {{{unknown[0]}}}", "a text may have {question} and {concept}")
    if wording.turn == "user" and "question" not in named:
        raise UserError(f"{place}: the text has no {{question}}", "put {question} where the question is to stand")
    if wording.turn != "user" and "question" in named:
        raise UserError(f"{place}: {{question}} stands in a turn before it", 'leave it out, or set "turn" to "user"')
