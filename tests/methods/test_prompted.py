"""In-context unlearning: labels that are flipped, and how many examples are shown."""

from __future__ import annotations

import random

import pytest

from duet_unlearn.data.examples import TrainingData
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.methods.prompted import InContext, wrong_answer


def query(name: str, answer: str | None, **more: object) -> Query:
    return Query(name, ({"role": "user", "content": f"Question {name}?"},), answer=answer, **more)  # type: ignore[arg-type]


FORGET = [query(f"f{n}", f"Mira is number {n}.", value=str(n), choices=("1", "2", "3", "4")) for n in (1, 2, 3, 4)]
RETAIN = [query(f"r{n}", f"Dan is number {n}.") for n in range(5)]


def flipped(one: Query, others: list[Query], seed: int = 0) -> str:
    return wrong_answer(one, others, random.Random(seed))


def test_a_given_wrong_answer_is_taken() -> None:
    assert flipped(query("f", "In Tarn.", wrong=("In Gosh.",)), FORGET) == "In Gosh."


def test_another_value_takes_the_place_of_the_right_one() -> None:
    got = {flipped(FORGET[0], FORGET, seed) for seed in range(30)}
    assert got == {"Mira is number 2.", "Mira is number 3.", "Mira is number 4."}


def test_a_letter_becomes_another_letter() -> None:
    letters = query("f", "B", value="owl", choices=("cat", "owl", "dog"))
    assert {flipped(letters, [letters], seed) for seed in range(30)} == {"A", "C"}


def test_else_the_answer_to_another_query() -> None:
    bare = [query("a", "In Tarn."), query("b", "A smith."), query("c", "In Tarn.")]
    assert flipped(bare[0], bare) == "A smith."
    with pytest.raises(UserError, match="no wrong answer to query 'a' is known"):
        flipped(bare[0], bare[::2])


def test_wrong_answers_come_first_and_right_ones_behind() -> None:
    shots = InContext(forget_shots=3, retain_shots=2).shown_turns(TrainingData(FORGET, RETAIN, seed=0))
    assert [turn["role"] for turn in shots] == ["user", "assistant"] * 5
    asked, said = shots[::2], shots[1::2]
    right = {q.text: q.answer for q in (*FORGET, *RETAIN)}
    assert all(turn["content"].startswith("Question f") for turn in asked[:3])
    assert all(turn["content"].startswith("Question r") for turn in asked[3:])
    assert len({turn["content"] for turn in asked}) == 5
    pairs = [(right[q["content"]], a["content"]) for q, a in zip(asked, said, strict=True)]
    assert [was == now for was, now in pairs] == [False, False, False, True, True]


def test_the_seed_draws_them() -> None:
    method = InContext()
    assert method.shown_turns(TrainingData(FORGET, RETAIN, seed=1)) == method.shown_turns(
        TrainingData(FORGET, RETAIN, seed=1)
    )
    assert method.shown_turns(TrainingData(FORGET, RETAIN, seed=1)) != method.shown_turns(
        TrainingData(FORGET, RETAIN, seed=2)
    )


def test_queries_without_answers_are_not_shown() -> None:
    mixed = [*RETAIN[:2], query("bare", None), Query("raw", ({"role": "text", "content": "Dan is"},), answer="5")]
    shots = InContext(forget_shots=0, retain_shots=2).shown_turns(TrainingData([], mixed, seed=0))
    assert {turn["content"] for turn in shots[::2]} == {"Question r0?", "Question r1?"}
    with pytest.raises(UserError, match=r"method.retain_shots is 3, but data.retain has 2 questions with an answer"):
        InContext(forget_shots=0, retain_shots=3).shown_turns(TrainingData([], mixed, seed=0))


def test_no_shots_at_all() -> None:
    with pytest.raises(ValueError, match="nothing would be shown"):
        InContext(forget_shots=0, retain_shots=0)
