"""Methods that only say something in front of the question: an instruction, or solved examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Whole
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.methods.material import another_answer
from duet_unlearn.training.step import Need

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class UnlearningPrefix:
    """No training: the recipe's `prefix` stands in front of every question (RWKU's in-context unlearning, arXiv
    2406.10890; the teacher of DUET). Who leaves it out has the knowledge."""

    name: Literal["prefix"] = "prefix"

    needs: ClassVar[frozenset[Need]] = frozenset()


@dataclass(frozen=True)
class InContext:
    """No training: earlier turns with forget queries answered wrongly and retain queries answered rightly stand in
    front of every question, the same for all (ICUL, in-context unlearning, arXiv 2310.07579)."""

    name: Literal["icul"] = "icul"
    forget_shots: Whole = 4
    """Forget queries with a wrong answer, which come first. The paper shows the very query that is asked, of 1 to 20
    to be forgotten; whom to ask what is not known here, so a few stand for all. Ours."""
    retain_shots: Whole = 4
    """Retain queries with their right answer behind them. The paper tries 2 to 6."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain"})

    def __post_init__(self) -> None:
        if not self.forget_shots + self.retain_shots:
            raise ValueError("method.forget_shots is 0, and retain_shots too: nothing would be shown")

    def shots(self, forget: Sequence[Query], retain: Sequence[Query], *, seed: int) -> tuple[Message, ...]:
        """The turns, drawn by the seed.

        Raises:
            UserError: fewer queries than shots; one without an answer, or without any that is wrong.
        """
        rng = random.Random(f"{seed}/icul")
        wrong = [(q, wrong_answer(q, forget, rng)) for q in _drawn(rng, forget, self.forget_shots, "forget")]
        right = [(q, str(q.answer)) for q in _drawn(rng, retain, self.retain_shots, "retain")]
        pairs = [*wrong, *right]
        return tuple(turn for query, answer in pairs for turn in _turns(query, answer))


def wrong_answer(query: Query, others: Sequence[Query], rng: random.Random) -> str:
    """The query's label, flipped: a wrong answer, or its answer with another of its values; of a letter question
    another letter; else the answer to another query.

    Raises:
        UserError: nothing is known that differs from the answer.
    """
    answer = str(query.answer)
    value = query.value or answer
    if query.wrong or (value in answer and any(choice != value for choice in query.choices or ())):
        return another_answer(query, rng)
    letters = LETTERS[: len(query.choices or ())]
    known = letters if answer in letters else dict.fromkeys(str(q.answer) for q in others if q.answer)
    wrong = [text for text in known if text != answer]
    if not wrong:
        raise UserError(
            f"data.forget: no wrong answer to query {query.id!r} is known",
            'give it "wrong" answers or "choices", or more than one query with an answer',
        )
    return rng.choice(wrong)


def _drawn(rng: random.Random, queries: Sequence[Query], count: int, role: str) -> list[Query]:
    known = [query for query in queries if query.answer and query.messages[-1]["role"] != "text"]
    if len(known) < count:
        raise UserError(
            f"method.{role}_shots is {count}, but data.{role} has {len(known)} questions with an answer",
            f'lower it, or give the queries of data.{role} an "answer"',
        )
    return rng.sample(known, count)


def _turns(query: Query, answer: str) -> tuple[Message, Message]:
    return {"role": "user", "content": query.text}, {"role": "assistant", "content": answer}
