"""A run as its evidence may be shown: hashes in place of words, scores as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from duet_unlearn.redact import Redactor, Shown, parts_of, redacted_attack, redactor
from duet_unlearn.report.read import Column, RunData, SubjectResult

OF_WEIGHTS = ("model", "start", "oracle", "tokenizer")
"""Hashes in ``env.json`` that may be shown. The others are of texts that may be few and short."""
WITHHELD = "withheld: a hash of few words can be found by trying"
MODEL_PATHS = ("path", "oracle", "start", "chat_template")


def redactor_of(run: RunData, shown: Shown, *, texts: Iterable[str] = (), key: bytes | None = None) -> Redactor:
    """A redactor of what a run asked about what it forgets, of `texts` beside, and of its concepts' names unless they
    are shown."""
    names = [str(run.recipe.get("concept") or ""), *run.env.get("concepts", [])]
    if shown == "scores":
        return redactor([*secrets_of(run), *texts], names, key=key)
    kept = {part.casefold() for name in names for part in parts_of(name)}
    return redactor([text for text in (*secrets_of(run), *texts) if text.casefold() not in kept], key=key)


def secrets_of(run: RunData) -> Iterator[str]:
    """Questions, answers and values about what was forgotten, and what attacks were told."""
    forget = {column.name for column in run.columns if column.goal == "forget"}
    for rows in run.samples.values():
        for row in rows:
            if row["set"] in forget:
                yield from (str(row[part]) for part in ("id", "prompt", "answer", "value") if row.get(part))
    yield from (str(row["query"]) for row in run.shifts if row["role"] == "forget")
    for by_subject in run.attacks.values():
        for stored in by_subject.values():
            yield from map(str, stored.get("facts", []))
            yield from (row["prompt"] for row in stored.get("transcript", []))


def redacted(run: RunData, by: Redactor) -> RunData:
    """The run without a question, an answer, a sample or a transcript; texts that people wrote (titles, reasons,
    warnings, requests' ids) are kept but for the secrets in them."""
    import yaml

    recipe = redacted_recipe(run.recipe, by)
    return replace(
        run,
        recipe=recipe,
        recipe_text=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100),
        env=redacted_env(run.env, by),
        probe={key: by.swept_all(value) for key, value in run.probe.items() if key != "shift"},
        shifts=(),
        subjects={name: _subject(found, by) for name, found in run.subjects.items()},
        columns=tuple(_column(column, by) for column in run.columns),
        samples={},
        requests={
            subject: {by.swept(request): _by_set(sets, by) for request, sets in found.items()}
            for subject, found in run.requests.items()
        },
        attacks={
            name: {subject: redacted_attack(stored, by) for subject, stored in found.items()}
            for name, found in run.attacks.items()
        },
        redacted=True,
    )


def redacted_recipe(recipe: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    """The settings, without the concept, the names of the data, and the folders of this machine.

    A concept is hashed where its name is one of the secrets.
    """
    found = by.swept_all({key: value for key, value in recipe.items() if key != "out"})
    found["concept"] = by.swept(str(recipe.get("concept") or ""))
    found["data"] = {key: _data(value, by) for key, value in (recipe.get("data") or {}).items()}
    model = found.get("model") or {}
    if found.get("after"):
        found["after"] = _name(found["after"])
    found["model"] = model | {key: _name(model[key]) for key in MODEL_PATHS if model.get(key)}
    evaluate = dict(found.get("evaluate") or {})
    if sets := evaluate.get("sets"):
        evaluate["sets"] = {by.swept(name): by.hashed(str(value)) for name, value in sets.items()}
    if target := evaluate.get("target"):
        evaluate["target"] = by.hashed(str(target))
    return found | ({"evaluate": evaluate} if evaluate else {})


def redacted_env(env: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    """Versions, device and weights' identities; of texts neither words nor hashes."""
    found = dict(env)
    for part in ("concepts", "warnings"):
        if part in env:
            found[part] = [by.swept(text) for text in env[part]]
    if "hashes" in env:
        found["hashes"] = {
            name: by.swept(value) if name in OF_WEIGHTS else WITHHELD for name, value in env["hashes"].items()
        }
    return found


def _data(value: Any, by: Redactor) -> Any:
    """A reference as its hash; the deployer's turns as their number."""
    if isinstance(value, str):
        return by.hashed(value)
    return f"{len(value)} turns, not shown" if isinstance(value, list) and value else value


def _name(path: str) -> str:
    return PurePath(path).name if PurePath(path).is_absolute() else path


def _subject(found: SubjectResult, by: Redactor) -> SubjectResult:
    return replace(found, label=by.swept(found.label), scores=_by_set(found.scores, by))


def _by_set(found: Mapping[str, Any], by: Redactor) -> dict[str, Any]:
    return {by.swept(name): value for name, value in found.items()}


def _column(column: Column, by: Redactor) -> Column:
    name, title, about = (by.swept(text) for text in (column.name, column.title, column.about))
    return replace(column, name=name, title=title, about=about)
