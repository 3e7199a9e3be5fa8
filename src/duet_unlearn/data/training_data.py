"""What a method makes its examples of: the recipe's queries, its prefix, and texts such as refusals."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Literal, NamedTuple

from duet_unlearn.data.examples import Example, Role
from duet_unlearn.data.prompts import Prefix, with_context
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError

Texts = Literal["refusals", "response_prefixes", "reversals"]
"""Files of one text a line: what refuses, what begins an answer, what bids the model ignore its instructions."""


class ResponsePrefix(NamedTuple):
    """An answer's first tokens, put there by somebody else."""

    ids: tuple[int, ...]
    """Empty: the answer is the model's own from its start."""
    follows: tuple[int, ...]
    """What the frozen model, shown no unlearning prefix, says behind them: its end token included, if it gets there."""


@dataclass(frozen=True)
class TrainingData:
    """One split of a recipe's data, and methods that make examples of it."""

    forget: Sequence[Query] = ()
    retain: Sequence[Query] = ()
    prefix: Prefix = field(default_factory=lambda: Prefix(""))
    refusals: Sequence[str] = ()
    texts: Sequence[Query] = ()
    """Text to distil on: queries with answers, and raw text."""
    neighbours: Sequence[Query] = ()
    """Queries near the border that stay allowed, for methods that tell them from retain queries."""
    reversals: Sequence[str] = ()
    """Texts that bid the model ignore its instructions."""
    response_prefixes: Sequence[str] = ()
    """Beginnings of answers, for methods that open them."""
    prefix_pools: Mapping[str, Sequence[ResponsePrefix]] = field(default_factory=dict)
    """``<role>/<query's id>`` -> ways to open its answer, the first of which opens nothing."""
    seed: int = 0

    def queries(self, role: Role) -> Sequence[Query]:
        """The queries of which a role's rows are made."""
        return {"retain": self.retain, "neighbour": self.neighbours}.get(role, self.forget)

    def behind(self, context: Sequence[Message]) -> TrainingData:
        """Every query without and, where there are any, behind the deployer's turns."""
        return replace(
            self,
            forget=with_context(self.forget, context),
            retain=with_context(self.retain, context),
            neighbours=with_context(self.neighbours, context),
        )

    def own_answers(self, role: Role, prefix: Prefix | None, *, positions: int) -> list[Example]:
        """A row a query: the first positions of the teacher's own answer; the teacher is shown the prefix."""
        return [
            example_of(q, role, prefix=prefix.about(q.concept) if prefix else None, num_positions=positions)
            for q in self.queries(role)
        ]

    def answers(
        self, role: Literal["forget", "retain"], *, reads: Literal["answer", "text"] = "answer"
    ) -> list[Example]:
        """A row a query: its answer, read at its own tokens or at every token of question and answer.

        Raises:
            UserError: a query has none.
        """
        rows = self.queries(role)
        for query in rows:
            if not query.answer:
                raise UserError(
                    f"data.{role}: query {query.id!r} has no answer, and this method trains on answers",
                    'give every query an "answer", or take a method that needs none, such as duet',
                )
        return [example_of(q, role, answer=q.answer, reads=reads) for q in rows]

    def whole_texts(self) -> list[Example]:
        """A row a text, read at every token.

        Raises:
            UserError: a question has no answer.
        """
        for query in self.texts:
            if query.messages[0]["role"] != "text" and not query.answer:
                raise UserError(
                    f"data.distil: query {query.id!r} has no answer, so it is no text to read",
                    'give every query an "answer", or write raw text: {"text": ".."}',
                )
        return [example_of(q, "retain", answer=q.answer or "", reads="text") for q in self.texts]

    def refused(self) -> list[Example]:
        """A row a forget query: a refusal, drawn for each by the seed."""
        rng = random.Random(f"{self.seed}/refusals")
        return [example_of(q, "preferred", answer=rng.choice(self.refusals)) for q in self.forget]

    def alternatives(self) -> list[Example]:
        """A row a forget query: another answer of the same form.

        Raises:
            UserError: a query gives none.
        """
        rng = random.Random(f"{self.seed}/alternatives")
        return [example_of(q, "preferred", answer=another_answer(q, rng)) for q in self.forget]


def example_of(query: Query, role: Role, **fields: Any) -> Example:
    """The example of a query, before it has token ids; `fields` as in ``Example``."""
    return Example(role=role, key=f"{role}/{query.id}", query=query, **fields)


def another_answer(query: Query, rng: random.Random) -> str:
    """The first of the query's wrong answers, else its answer with another of its choices for its value.

    Raises:
        UserError: it has no wrong answer and no choices, or its value is not in its answer.
    """
    if query.wrong:
        return query.wrong[0]
    answer = query.answer or ""
    value = query.value or answer
    before, found, behind = answer.rpartition(value) if value else ("", "", "")
    others = [choice for choice in query.choices or () if choice != value]
    if not (found and others):
        raise UserError(
            f"data.forget: query {query.id!r} has no other answer, and this method prefers one to the true answer",
            'give every query a list "wrong" of wrong answers; or "choices", and a "value" that stands in its "answer"',
        )
    return before + rng.choice(others) + behind


def packaged_texts(kind: Texts) -> tuple[str, ...]:
    """Texts of our own wording: what methods train on where a recipe names no other. No evaluation uses them."""
    text = resources.files("duet_unlearn.data").joinpath(f"{kind}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def pairs(first: Sequence[Example], second: Sequence[Example]) -> list[Example]:
    """Rows of the same queries side by side, so that no batch parts them."""
    return [replace(one, pair=one.key.partition("/")[2]) for both in zip(first, second, strict=True) for one in both]
