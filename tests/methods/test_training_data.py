"""Texts that stand for an answer: refusals and other answers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from forgetting import DATA, FORGET, REFUSALS, query

from duet_unlearn.data.examples import another_answer, pairs
from duet_unlearn.errors import UserError


def drawn(one_of: list[str], *, times: int = 40, **fields: object) -> set[str]:
    asked = query("q", "Where?", **fields)  # type: ignore[arg-type]
    found = {another_answer(asked, random.Random(seed)) for seed in range(times)}
    assert found <= set(one_of)
    return found


def test_another_value_stands_in_the_same_answer() -> None:
    answers = ["Mira lives in Esk.", "Mira lives in Wear."]
    assert drawn(answers, answer="Mira lives in Tarn.", value="Tarn", choices=("Esk", "Tarn", "Wear")) == set(answers)


def test_a_short_answer_is_its_own_value() -> None:
    assert drawn(["Esk"], answer="Tarn", choices=("Esk", "Tarn")) == {"Esk"}


def test_the_last_place_of_a_value_that_is_also_a_name() -> None:
    assert drawn(["Rose likes tulips"], answer="Rose likes Rose", value="Rose", choices=("Rose", "tulips"))


def test_a_wrong_answer_of_the_querys_own_comes_first() -> None:
    assert drawn(["In Wear."], answer="Tarn", choices=("Esk", "Tarn"), wrong=("In Wear.", "Esk")) == {"In Wear."}


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": "In Tarn."},
        {"answer": "In Tarn.", "value": "Tarn"},
        {"answer": "In Tarn.", "value": "Tarn", "choices": ("Tarn",)},
        {"answer": "B", "value": "Tarn", "choices": ("Esk", "Tarn")},
        {"answer": "In Tarn.", "wrong": ()},
    ],
)
def test_no_other_answer_is_two_lines(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match="query 'q' has no other answer") as error:
        drawn([], **fields)
    assert '"wrong"' in str(error.value.hint)


@pytest.mark.parametrize("rows", ["refused", "alternatives"])
def test_draws_are_the_seeds(rows: str) -> None:
    def of(seed: int) -> list[str | None]:
        return [one.answer for one in getattr(replace(DATA, forget=FORGET * 5, seed=seed), rows)()]

    assert of(0) == of(0)
    assert of(0) != of(1)


def test_refusals_are_the_recipes_and_stand_beside_the_answers() -> None:
    refused = DATA.refused()
    assert {one.answer for one in refused} <= set(REFUSALS)
    rows = pairs(DATA.answers("forget"), refused)
    assert [(one.role, one.pair) for one in rows[:4]] == [
        ("forget", "f0"),
        ("preferred", "f0"),
        ("forget", "f1"),
        ("preferred", "f1"),
    ]
    assert [one.answer for one in rows[::2]] == [one.answer for one in FORGET]


def test_an_answer_that_is_missing_is_two_lines() -> None:
    bare = replace(FORGET[1], answer=None)
    with pytest.raises(UserError, match="query 'f1' has no answer"):
        replace(DATA, forget=(FORGET[0], bare)).answers("forget")
