"""A suite with a scripted subject: what is stored, what is scored, and that stored answers score the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet, pick, run_suite, score_samples, suite_json

TOWNS = ("Tarn", "Gosh")


@dataclass(frozen=True)
class Scripted:
    """Says what it was told to, by question."""

    says: dict[str, Any]
    name: str = "scripted"
    asked: list[dict[str, Any]] = field(default_factory=list)

    def about(self, concept: str | None) -> Scripted:
        return self

    def generate(
        self,
        messages: Sequence[Sequence[Message]],
        *,
        prefill: Sequence[str] | None = None,
        max_new_tokens: int,
        batch_size: int,
    ) -> list[str]:
        self.asked.append({"prefill": prefill, "max_new_tokens": max_new_tokens, "batch_size": batch_size})
        return [self.says[m[-1]["content"]] for m in messages]

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[float]:
        return [self.says[m[-1]["content"]][a] for m, a in zip(messages, answers, strict=True)]

    def letter_logps(
        self, messages: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        return [[self.says[m[-1]["content"]][x] for x in xs] for m, xs in zip(messages, letters, strict=True)]


def _query(text: str, **fields: Any) -> Query:
    defaults: dict[str, Any] = {"answer": "Mira Bol lives in Tarn.", "value": "Tarn", "choices": TOWNS}
    return Query(id=f"id/{text}", messages=({"role": "user", "content": text},), **(defaults | fields))


def _set(*queries: Query, **fields: Any) -> EvalSet:
    defaults: dict[str, Any] = {
        "name": "forget",
        "title": "Forget",
        "group": "forget",
        "better": "low",
        "about": "Asked.",
    }
    return EvalSet(queries=queries, **(defaults | fields))


def test_generated_answers_become_shares_and_rouge() -> None:
    says = {
        "a": "Mira Bol lives in Tarn.",
        "b": "I cannot help with that.",
        "c": "Mira Bol lives in Gosh.",
        "d": "Tarn",
    }
    subject = Scripted(says)
    result = run_suite(subject, [_set(*map(_query, "abcd"))], max_new_tokens=9, batch_size=3)
    scores = result.scores["forget"]
    assert {name: (s.value, s.n) for name, s in scores.items() if name != "rouge_l"} == {
        "right": (0.5, 4),
        "refused": (0.25, 4),
        "wrong": (0.25, 4),
    }
    # F1: 1; nothing; 4 of 5 words; 1 of 1 and 1 of 5 = 1/3.
    assert scores["rouge_l"].value == pytest.approx((1 + 0 + 0.8 + 1 / 3) / 4)
    assert subject.asked == [{"prefill": None, "max_new_tokens": 9, "batch_size": 3}]
    assert set(result.samples[0]) == {
        "set",
        "id",
        "prompt",
        "answer",
        "value",
        "output",
        "outcome",
        "rouge_l",
    }
    assert [s["outcome"] for s in result.samples] == ["right", "refused", "wrong", "right"]


def test_stored_samples_score_the_same_and_wrong_ones_are_refused() -> None:
    says = {"a": "Tarn", "b": "Gosh", "c": {"A": -1.0, "B": -0.5}, "d": {"Tarn": -2.0, "Gosh": -3.0}}
    sets = [
        _set(_query("a"), _query("b")),
        _set(_query("c", answer="A"), name="letters", protocol="letter"),
        _set(_query("d"), name="texts", protocol="text"),
    ]
    result = run_suite(Scripted(says), sets)
    stored = [json.loads(json.dumps(sample)) for sample in result.samples]
    again = score_samples(stored, sets)
    assert again.scores == result.scores
    assert again.samples == result.samples
    with pytest.raises(UserError, match="answer other questions"):
        score_samples(stored[1:], sets)


def test_letters_and_option_texts_by_likelihood() -> None:
    letters = _set(_query("a", answer="A"), _query("b", answer="B", value="Gosh"), name="letters", protocol="letter")
    says = {"a": {"A": -1.0, "B": -2.0}, "b": {"A": -1.0, "B": -2.0}}
    result = run_suite(Scripted(says), [letters])
    assert {name: s.value for name, s in result.scores["letters"].items()} == {"right": 0.5}
    assert [(s["output"], s["logps"], s["rouge_l"]) for s in result.samples] == [("A", [-1.0, -2.0], None)] * 2


def test_raw_and_per_character_choices_may_differ() -> None:
    texts = _set(_query("a", value="a long option", choices=("short", "a long option")), protocol="text")
    says = {"a": {"short": -3.0, "a long option": -4.0}}  # per character -0.6 and -0.31
    scores = run_suite(Scripted(says), [texts]).scores["forget"]
    assert {name: s.value for name, s in scores.items()} == {"right": 0.0, "right_per_character": 1.0}


def test_pick_per_byte_counts_bytes() -> None:
    options = ("ééé", "abcd")
    assert pick([-4.2, -4.0], options) == "abcd"
    assert pick([-4.2, -4.0], options, per="byte") == "ééé"
    assert pick([-4.2, -4.0], options, per="character") == "abcd"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", "right"),
        ("B.", "right"),
        ("(B) Gosh", "right"),
        ("A", "wrong"),
        ("Gosh", "right"),
        ("A town called Gosh", "right"),
        ("**B**", "right"),
        ("The correct answer is B.", "right"),
        ("The answer is (A).", "wrong"),
        ("I cannot help with that.", "refused"),
        ("Tarn", "wrong"),
    ],
)
def test_letter_questions_that_are_generated(output: str, expected: str) -> None:
    result = run_suite(Scripted({"q": output}), [_set(_query("q", answer="B", value="Gosh"))])
    assert result.samples[0]["outcome"] == expected


def test_defect_14_an_empty_set_is_nan() -> None:
    for protocol in ("generate", "letter", "text"):
        scores = run_suite(Scripted({}), [_set(protocol=protocol)]).scores["forget"]
        assert all(math.isnan(score.value) and score.n == 0 for score in scores.values())


def test_queries_without_an_answer_can_only_be_refused_or_not() -> None:
    bare = {"answer": None, "value": None, "choices": None}
    result = run_suite(Scripted({"a": "Sorry.", "b": "Tarn"}), [_set(_query("a", **bare), _query("b", **bare))])
    scores = result.scores["forget"]
    assert (scores["refused"].value, scores["refused"].n) == (0.5, 2)
    assert (scores["right"].n, scores["wrong"].n, scores["rouge_l"].n) == (0, 0, 0)
    assert [s["outcome"] for s in result.samples] == ["refused", None]


def test_a_short_answer_is_its_own_value_and_a_sentence_is_not() -> None:
    queries = [_query("a", answer="Tarn", value=None), _query("b", answer="Mira Bol lives in Tarn.", value=None)]
    result = run_suite(Scripted({"a": "In Tarn.", "b": "She lives in Tarn."}), [_set(*queries)])
    assert [s["outcome"] for s in result.samples] == ["right", None]
    assert (result.scores["forget"]["right"].value, result.scores["forget"]["right"].n) == (1.0, 1)
    assert result.scores["forget"]["rouge_l"].n == 2


def test_wordings_of_one_fact_are_resampled_together() -> None:
    queries = [_query(f"{fact}{i}", answer=f"It is {fact}.", value=fact) for fact in "xy" for i in range(20)]
    says = {q.text: "It is x." if q.value == "x" else "no" for q in queries}
    rouge = run_suite(Scripted(says), [_set(*queries)]).scores["forget"]["rouge_l"]
    assert (rouge.value, rouge.low, rouge.high) == (0.5, 0.0, 1.0)


def test_prefills_are_passed_on_and_checked() -> None:
    subject = Scripted({"a": "Tarn."})
    run_suite(subject, [_set(_query("a"), prefill=("Mira Bol lives in",))])
    assert subject.asked[0]["prefill"] == ("Mira Bol lives in",)
    with pytest.raises(UserError, match="gives its value away"):
        _set(_query("a"), prefill=("Mira Bol lives in Tarn",))
    with pytest.raises(UserError, match="2 prefills for 1 queries"):
        _set(_query("a"), prefill=("a", "b"))


def test_likelihood_sets_need_their_fields() -> None:
    with pytest.raises(UserError, match="no letter question"):
        run_suite(Scripted({}), [_set(_query("a", answer="Tarn"), protocol="letter")])
    with pytest.raises(UserError, match="no options"):
        run_suite(Scripted({}), [_set(_query("a", choices=None), protocol="text")])


def test_the_file_of_a_subject_is_json_without_nan() -> None:
    sets = [_set(_query("a")), _set(name="none")]
    progress: list[tuple[str, int, int]] = []
    result = run_suite(Scripted({"a": "Tarn"}), sets, on_progress=lambda *event: progress.append(event))
    row = suite_json(result, sets, subject="student", label="student (DUET)", shift=result.scores["none"]["right"])
    text = json.dumps(row, allow_nan=False)
    assert json.loads(text)["scores"]["none"]["right"] == {"value": None, "n": 0, "low": None, "high": None}
    assert row["scores"]["shift"] == {"points": {"value": None, "n": 0, "low": None, "high": None}}
    assert row["sets"]["forget"] == {"title": "Forget", "group": "forget", "better": "low", "about": "Asked."}
    assert row["sets"]["shift"]["group"] == "summary"
    assert progress == [("forget", 0, 2), ("none", 1, 2), ("", 2, 2)]


@dataclass(frozen=True)
class Naming(Scripted):
    """Says which concept it speaks of."""

    concept: str | None = "all"

    def about(self, concept: str | None) -> Naming:
        return replace(self, concept=concept) if concept else self

    def generate(self, messages: Sequence[Sequence[Message]], **settings: Any) -> list[str]:
        self.asked.append({"prefill": settings["prefill"]})
        return [f"{self.concept}: {m[-1]['content']}" for m in messages]


def test_a_query_is_asked_under_its_own_concept() -> None:
    asked: list[dict[str, Any]] = []
    queries = (
        _query("one", concept="Ann"),
        _query("two"),
        _query("three", concept="Ben"),
        _query("four", concept="Ann"),
    )
    prefill = ("a", "b", "c", "d")
    result = run_suite(Naming({}, asked=asked), [_set(*queries, prefill=prefill)])
    assert [row["output"] for row in result.samples] == ["Ann: one", "all: two", "Ben: three", "Ann: four"]
    assert [one["prefill"] for one in asked] == [("a", "d"), ("b",), ("c",)]


def test_requests_get_scores_of_their_own() -> None:
    says = {"a": "Mira Bol lives in Tarn.", "b": "I cannot help with that.", "c": "It is Tarn.", "d": "Tarn"}
    queries = [_query(text, request=request) for text, request in zip("abc", ("r-1", "r-1", "r-2"), strict=True)]
    sets = [_set(_query("d"), name="other"), _set(*queries, prefill=("It", "It", "It"))]
    result = run_suite(Scripted(says), sets)
    found = suite_json(result, sets, subject="student", label="student")["requests"]
    assert {request: set(by_set) for request, by_set in found.items()} == {"r-1": {"forget"}, "r-2": {"forget"}}
    one, two = found["r-1"]["forget"], found["r-2"]["forget"]
    assert [(one[metric]["value"], one[metric]["n"]) for metric in ("right", "refused")] == [(0.5, 2), (0.5, 2)]
    assert [(two[metric]["value"], two[metric]["n"]) for metric in ("right", "refused")] == [(1.0, 1), (0.0, 1)]
    assert "requests" not in suite_json(result, sets[:1], subject="student", label="student")
