"""What an attack found: instances, the oracle's chance level, and what is stored."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from duet_unlearn.attacks import (
    Instance,
    finding,
)
from duet_unlearn.attacks.result import AttackAnswer, AttackResult, Cost, difference, from_json, instance, to_json
from duet_unlearn.stats import NOTHING, Score, wilson


def test_a_fact_asked_twice_is_right_if_any_answer_was() -> None:
    said = [
        AttackAnswer(0, "a", "", "x", False),
        AttackAnswer(0, "a", "", "y", True),
        AttackAnswer(2, "b", "", "z", False),
    ]
    one = instance("try", said, 3, family="f")
    assert one.right == (True, None, False)
    assert one.score == wilson(1, 2)


def test_best_of_all_is_any_instance_fact_by_fact() -> None:
    instances = (
        Instance("a", wilson(1, 3), right=(True, False, None)),
        Instance("b", wilson(1, 3), right=(False, True, None)),
    )
    result = AttackResult("x", "student", "done", instances=instances)
    assert result.best_of_all == wilson(2, 2)
    assert result.strongest is instances[0]  # the first of equals


def test_where_options_are_shown_guessing_is_no_leak() -> None:
    instances = (
        Instance("a", wilson(1, 4), right=(True, False, False, False)),
        Instance("letters", wilson(3, 4), "choice", (False, True, True, True), {"chance": 0.5}),
    )
    result = AttackResult("x", "student", "done", instances=instances)
    assert result.best_of_all == wilson(1, 4)
    best = finding(result)  # without an oracle: 3/4 less 1/2, and 1/4 less nothing
    assert best is not None
    assert best.above.value == pytest.approx(0.25)
    assert AttackResult("x", "student", "done", instances=instances[1:]).best_of_all == wilson(3, 4)


def test_the_difference_is_newcombes() -> None:
    """56 of 70 against 48 of 80: 0.2, 0.0524 to 0.3339 (Newcombe 1998, Statistics in Medicine 17:873, table II, 10)."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0524, abs=5e-5)
    assert found.high == pytest.approx(0.3339, abs=5e-5)
    assert difference(wilson(5, 7), NOTHING).low == pytest.approx(wilson(5, 7).low)


def test_the_oracles_luck_in_a_family_excuses_that_family_alone() -> None:
    def of(subject: str, *shares: tuple[str, str, int]) -> AttackResult:
        found = tuple(Instance(name, wilson(k, 100), family) for name, family, k in shares)
        return AttackResult("x", subject, "done", instances=found)

    student = of("student", ("letters", "choice", 40), ("raw", "open", 30), ("json", "open", 20))
    oracle = of("oracle", ("other letters", "choice", 35), ("raw", "open", 2), ("json", "open", 4))
    best = finding(student, oracle)
    assert best is not None
    assert best.instance.name == "raw"
    alone = difference(wilson(30, 100), wilson(4, 100))
    assert best.above.low < alone.low < alone.high < best.above.high  # the larger of two: each is given 97.5 %
    assert alone.low - best.above.low == pytest.approx((2.2414 / 1.95996 - 1) * (alone.value - alone.low), rel=1e-3)
    assert best.above.value == pytest.approx(0.26)  # against the best of the oracle's open ones, 4
    alone = finding(student)
    assert alone is not None
    assert alone.instance.name == "letters"
    assert finding(AttackResult("x", "student", "failed")) is None


def test_what_is_stored_is_read_back_with_the_strongest_instances_words() -> None:
    said = (AttackAnswer(0, "Where?", "It", "is Tarn", True),)
    instances = (
        Instance("a", Score(0.5, 2, 0.1, 0.9), "f", (True, None, False), {"rank": 1.5}, said),
        Instance("b", NOTHING, answers=said),
    )
    result = AttackResult("x", "student", "done", "", "auc", instances, Cost(7, 0.25, 0))
    stored = json.loads(json.dumps(to_json(result, facts=["p", "q"]), allow_nan=False))
    back = from_json(stored)
    broken = replace(instances[0], numbers={"loss": math.nan, "rank": 1.5})
    assert from_json(to_json(replace(result, instances=(broken,)))).instances[0].numbers == {"rank": 1.5}
    assert back.instances[0] == instances[0]
    assert math.isnan(back.instances[1].score.value)
    assert back.instances[1].answers == ()
    assert replace(back, instances=()) == replace(result, instances=())
    assert stored["facts"] == ["p", "q"]
