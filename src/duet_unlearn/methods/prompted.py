"""Methods that only say something in front of the question: an instruction, or solved examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from duet_unlearn.config.sections import Whole, prefix_of
from duet_unlearn.data.examples import TrainingData, another_answer
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Deployed, Subject
from duet_unlearn.methods.base import Context, Method, Need, Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class UnlearningPrefix(Method):
    """No training: the recipe's `prefix` stands in front of every question (RWKU's in-context unlearning, arXiv
    2406.10890; the teacher of DUET). Who leaves it out has the knowledge."""

    name: Literal["prefix"] = "prefix"

    trains: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = False

    def build_subject(self, served: Served) -> Subject:
        """The model behind the prefix."""
        return Deployed(replace(served.bare, prefix=prefix_of(served.settings)))


@dataclass(frozen=True)
class InContext(Method):
    """No training: earlier turns with forget queries answered wrongly and retain queries answered rightly stand in
    front of every question, the same for all (ICUL, in-context unlearning, arXiv 2310.07579)."""

    name: Literal["icul"] = "icul"
    forget_shots: Whole = 4
    """Forget queries with a wrong answer, which come first. The paper shows the very query that is asked, of 1 to 20
    to be forgotten; whom to ask what is not known here, so a few stand for all. Ours."""
    retain_shots: Whole = 4
    """Retain queries with their right answer behind them. The paper tries 2 to 6."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain"})
    trains: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.forget_shots + self.retain_shots:
            raise ValueError("method.forget_shots is 0, and retain_shots too: nothing would be shown")

    def save_subject(
        self, student: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, context: Context
    ) -> dict[str, Any]:
        """The turns that are shown."""
        return {"shots": list(context.shown_turns)}

    def build_subject(self, served: Served) -> Subject:
        """The model behind those turns."""
        return Deployed(served.bare, shots=tuple(served.stored["shots"]))

    def shown_turns(self, data: TrainingData) -> tuple[Message, ...]:
        """The turns, drawn by the seed.

        Raises:
            UserError: fewer queries than shots; one without an answer, or without any that is wrong.
        """
        forget, retain = data.forget, (*data.retain, *data.neighbours)
        rng = random.Random(f"{data.seed}/icul")
        wrong = [(q, wrong_answer(q, forget, rng)) for q in _drawn(rng, forget, self.forget_shots, "forget")]
        right = [(q, str(q.answer)) for q in _drawn(rng, retain, self.retain_shots, "retain")]
        pairs = [*wrong, *right]
        turns = [(("user", query.text), ("assistant", answer)) for query, answer in pairs]
        return tuple({"role": role, "content": text} for both in turns for role, text in both)


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
