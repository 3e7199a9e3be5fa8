"""A detector that sends prompts to one of two subjects, and a guard's refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from duet_unlearn.data.prompts import answer_ids
from duet_unlearn.data.query import Message, Query
from duet_unlearn.evals.question_sets import EvalSet, run_suite
from duet_unlearn.evals.subject import TokenScores
from duet_unlearn.methods.guarded import Refusing, Routed

REFUSALS = ("I cannot help with that.", "I do not know.", "Sorry, no.", "I have forgotten that.")


@dataclass(frozen=True)
class Echo:
    """Says its own name, the concept that it is told of, and what it was asked."""

    name: str
    concept: str = ""
    asked: list[int] = field(default_factory=list)

    @property
    def model(self) -> None:
        return

    def about(self, concept: str | None) -> Echo:
        return Echo(self.name, concept or self.concept, self.asked)

    def generate(
        self, messages: Sequence[Sequence[Message]], *, prefill: Sequence[str] | None = None, **rest: Any
    ) -> list[str]:
        self.asked.append(len(messages))
        assert rest == {"max_new_tokens": 3, "batch_size": 2, "until": "length"}
        openers = prefill if prefill is not None else ["-"] * len(messages)
        return [f"{self.name}{self.concept}:{text(m)}:{o}" for m, o in zip(messages, openers, strict=True)]

    def logps(self, messages: Sequence[Sequence[Message]], answers: Sequence[str], *, batch_size: int) -> list[Any]:
        self.asked.append(len(messages))
        return [f"{self.name}:{text(m)}:{a}:{batch_size}" for m, a in zip(messages, answers, strict=True)]

    letter_logps = logps
    token_scores = logps


def text(messages: Sequence[Message]) -> str:
    return messages[-1]["content"]


def detects(messages: Sequence[Sequence[Message]], *, batch_size: int) -> list[bool]:
    assert batch_size == 2
    return ["Mira" in text(m) for m in messages]


def ask(*texts: str) -> list[tuple[Message, ...]]:
    return [({"role": "user", "content": one},) for one in texts]


def routed() -> Routed:
    return Routed("student", detects, detected=Echo("A"), others=Echo("B"))


ASKED = ask("Mira?", "Dan?", "Who is Mira?", "Who is Dan?")
SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 2, "until": "length"}


def test_every_prompt_goes_to_its_subject_and_answers_keep_their_order() -> None:
    assert routed().generate(ASKED, **SETTINGS) == ["A:Mira?:-", "B:Dan?:-", "A:Who is Mira?:-", "B:Who is Dan?:-"]
    opened = routed().generate(ASKED, prefill=["a", "b", "c", "d"], **SETTINGS)
    assert opened == ["A:Mira?:a", "B:Dan?:b", "A:Who is Mira?:c", "B:Who is Dan?:d"]


@pytest.mark.parametrize("way", ["logps", "letter_logps", "token_scores"])
def test_likelihoods_are_those_of_the_subject_that_is_chosen(way: str) -> None:
    one, other = ask("Mira?", "Dan?")
    got = getattr(routed(), way)([one, other, one], ["x", "y", "z"], batch_size=2)
    assert got == ["A:Mira?:x:2", "B:Dan?:y:2", "A:Mira?:z:2"]


def test_a_question_with_several_answers_is_looked_at_once() -> None:
    seen: list[int] = []

    def counting(messages: Sequence[Sequence[Message]], *, batch_size: int) -> list[bool]:
        seen.append(len(messages))
        return detects(messages, batch_size=batch_size)

    one, other = ask("Mira?", "Dan?")
    Routed("student", counting, Echo("A"), Echo("B")).logps([one, one, one, other], list("wxyz"), batch_size=2)
    assert seen == [2]


def test_a_subject_without_prompts_is_not_asked() -> None:
    subject = routed()
    subject.generate(ask("Dan?"), **SETTINGS)
    assert (subject.detected.asked, subject.others.asked) == ([], [1])  # type: ignore[attr-defined]
    assert routed().generate([], **SETTINGS) == []


def test_both_sides_are_told_the_concept_and_neither_has_weights() -> None:
    subject = routed().about("Tarn")
    assert subject.generate(ASKED[:2], **SETTINGS) == ["ATarn:Mira?:-", "BTarn:Dan?:-"]
    assert subject.model is None
    assert subject.name == "student"


def refusing(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Refusing:
    return Refusing("student", tokenizer, 300, REFUSALS, seed)


def test_a_refusal_depends_on_the_question_and_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = ask(*(f"Who is number {n}?" for n in range(40)))
    settings: dict[str, Any] = {"max_new_tokens": 1, "batch_size": 7}
    said = refusing(tokenizer).generate(asked, **settings)
    assert set(said) == set(REFUSALS)
    assert said == [refusing(tokenizer).generate([one], **settings)[0] for one in asked]
    assert said == refusing(tokenizer).generate(asked, prefill=["Number one is"] * 40, **settings)
    assert said != refusing(tokenizer, seed=1).generate(asked, **settings)


def test_a_guard_knows_nothing_of_any_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Uniform over 300 tokens: -log 300 a token, whichever it is."""
    asked, answers, token = ask("Mira?", "Dan?"), ["Tarn", "Mira Bol lives in Tarn."], -math.log(300)
    counts = [len(answer_ids(tokenizer, m, a)) for m, a in zip(asked, answers, strict=True)]
    assert counts[0] < counts[1]
    guard = refusing(tokenizer)
    assert guard.logps(asked, answers, batch_size=2) == pytest.approx([count * token for count in counts])
    assert guard.letter_logps(asked, ["ABCD", "AB"], batch_size=2) == [[token] * 4, [token] * 2]
    for scores, count in zip(guard.token_scores(asked, answers, batch_size=2), counts, strict=True):
        assert scores == TokenScores([token] * (count + 1), [False] * (count + 1), [0.0] * (count + 1))  # and the end


def test_every_kind_of_set_can_be_asked_of_a_guard(tokenizer: PreTrainedTokenizerFast) -> None:
    """Choices go by length and order: the right one is found where it happens to be the shortest or the first."""
    queries = [
        Query(f"q{n}", ({"role": "user", "content": f"Which is {n}?"},), letter, value, ("b", "aaa"), wrong=("No.",))
        for n, (letter, value) in enumerate((("A", "b"), ("B", "aaa")))
    ]
    kinds = ("generate", "letter", "text", "likelihood")
    sets = [EvalSet(kind, "", "forget", "low", "", tuple(queries), protocol=kind) for kind in kinds]
    scores = run_suite(refusing(tokenizer), sets, batch_size=2).scores
    assert scores["letter"]["right"].value == 0.5
    assert scores["text"]["right"].value == 0.5
    assert scores["generate"]["refused"].value == 1.0
    assert scores["likelihood"]["probability"].value == pytest.approx(1 / 300)
    assert scores["likelihood"]["extraction_strength"].value == 0.0
