"""Attacks' results of made-up numbers in a run folder, stored as `duet attack` stores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duet_unlearn.attacks.result import AttackAnswer, AttackResult, Cost, Instance, Metric, Status, instance, to_json
from duet_unlearn.stats import Score

FACTS = 60
PROMPT = "In which town does Mira Bol live? ({})"


def counted(name: str, right: int, *, family: str = "") -> Instance:
    """An instance that brought back the first `right` facts."""
    told = "Mira Bol lives in Tarn."
    said = [
        AttackAnswer(i, PROMPT.format(i), "Sure.", told if i < right else "No idea.", i < right) for i in range(FACTS)
    ]
    return instance(name, said, FACTS, family=family)


def measured(name: str, value: float, low: float, high: float) -> Instance:
    """An instance of a measure that counts no facts."""
    return Instance(name, Score(value, 200, low, high))


def write_attack(
    run: Path,
    name: str,
    subject: str,
    instances: Sequence[Instance] = (),
    *,
    access: str = "chat",
    title: str = "",
    metric: Metric = "right",
    status: Status = "done",
    reason: str = "",
    tokens: int = 6000,
    **stamp: Any,
) -> Path:
    result = AttackResult(name, subject, status, reason, metric, tuple(instances), Cost(tokens, 2.5, 0))
    stored = to_json(result, facts=[f"fact/{i}" for i in range(FACTS)])
    stored |= {"title": title or name.capitalize(), "access": access, "config": {"name": name}, "goal": "ab12"} | stamp
    path = run / "attacks" / subject / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored))
    return path


def write_everyone(run: Path, name: str, base: int, oracle: int, student: int, **settings: Any) -> None:
    """One attack on base, oracle and student, with as many facts brought back."""
    for subject, right in (("base", base), ("oracle", oracle), ("student", student)):
        write_attack(run, name, subject, [counted("first", right // 2), counted("second", right)], **settings)
