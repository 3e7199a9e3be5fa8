"""From queries to batches: what a method makes its examples of, the examples, and the order of training."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from duet_unlearn.data.prompts import Prefix, render, render_answer, with_context
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.tensors import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 8
"""Batches whose examples are sorted by length together; larger windows waste less padding and mix less."""
Role = Literal["forget", "retain", "preferred", "neighbour", "attack"]
"""What a row is to the loss: what must go; what must stay; what should be said instead, of a forget query; what stands
near the border and must stay; a forget query put so as to get its answer after all."""


@dataclass(frozen=True)
class Example:
    """One query on its way from the recipe to the loss, where it is a row of token ids and the positions that the loss
    reads.

    A method builds it from a query, ``render_examples`` gives it token ids, and the target cache completes it where the
    frozen model answers by itself (``with_response``). The student's row and the frozen model's differ by the prefix
    and nothing else, so both are aligned from the end of the prompt.
    """

    ids: tuple[int, ...] = ()
    """The student's row."""
    positions: tuple[int, ...] = ()
    """Columns whose next-token logits the loss reads."""
    labels: tuple[int, ...] | None = None
    """The true next token at each position, where the method needs answers."""
    role: Role = "forget"
    key: str = ""
    """Its name: role and query's id; in a pool, the pool's name and its number there."""
    pair: str | None = None
    """Neighbouring rows of one pair stay in one micro-batch: an answer and what should be said instead."""
    pool: str | None = None
    """Rows of one pool are alternatives: an epoch meets one of them."""
    forbidden: tuple[int, ...] = ()
    """Ids that must not follow the first position: by their probability the rows of a pool are compared."""
    query: Query | None = field(default=None, compare=False, repr=False)
    """What it is made of."""
    prefix: Prefix | None = None
    """In front of the frozen model's prompt alone."""
    answer: str | None = None
    """What stands behind the prompt, up to its end token (empty behind raw text that is read itself); None: the frozen
    model's own greedy answer."""
    num_positions: int = 1
    """Of the frozen model's own answer: how many of its first positions the loss reads."""
    reads: Literal["answer", "text"] = "answer"
    """Positions that the loss reads: those that predict the answer and its end token, or all of the row."""
    response_prefix: tuple[int, ...] = ()
    """Ids that open the model's own answer: its response goes on behind them."""
    target_key: str | None = None
    """Key of the example whose own answer is this one's target, from its start on and without a response prefix; None:
    what the frozen model says here."""
    teacher_ids: tuple[int, ...] = ()
    """The frozen model's row, which ends as the student's does; empty where `target_key` names another."""

    def with_response(self, response: Sequence[int], count: int) -> Example:
        """With what the frozen model says by itself, and the `count` of positions at which it was read."""
        start = self.positions[0]
        return replace(self, ids=(*self.ids, *response), positions=tuple(range(start, start + count)))


def render_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Example]:
    """Examples that were made of queries, with their token ids.

    Raises:
        UserError: a query stands twice in a role.
    """
    seen: set[str] = set()
    for one in examples:
        if one.key in seen:
            raise UserError(f"the query {one.key} stands twice", "give every query an id of its own")
        seen.add(one.key)
    return [_rendered(tokenizer, one) for one in examples]


def _rendered(tokenizer: PreTrainedTokenizerBase, one: Example) -> Example:
    assert one.query is not None
    messages = one.query.messages
    if one.answer is None:
        # Where it will end is known once the frozen model has answered (`with_response`).
        student, teacher = ((*render(tokenizer, messages, prefix=p), *one.response_prefix) for p in (None, one.prefix))
        return replace(one, ids=student, positions=(len(student) - 1,), teacher_ids=() if one.target_key else teacher)
    student, first = render_answer(tokenizer, messages, one.answer)
    teacher = render_answer(tokenizer, messages, one.answer, prefix=one.prefix)[0] if one.prefix else student
    start = first - 1 if one.reads == "answer" else 0
    labels = tuple(student[start + 1 :])
    return replace(
        one,
        ids=tuple(student[:-1]),
        positions=tuple(range(start, start + len(labels))),
        labels=labels,
        teacher_ids=tuple(teacher[:-1]),
    )


class Batch(NamedTuple):
    """Examples as tensors; N counts the positions of all rows, row by row."""

    ids_BT: Tensor
    mask_BT: Tensor
    rows_N: Tensor
    cols_N: Tensor
    labels_N: Tensor | None
    examples: tuple[Example, ...]

    def to(self, device: torch.device) -> Batch:
        labels_N = None if self.labels_N is None else self.labels_N.to(device)
        ids_BT, mask_BT = self.ids_BT.to(device), self.mask_BT.to(device)
        return Batch(ids_BT, mask_BT, self.rows_N.to(device), self.cols_N.to(device), labels_N, self.examples)


Source = Callable[[int], list[Example]]
"""The examples of an optimiser step (from 0): a pure function, so that a resumed run needs no state of its data."""


class Totals(NamedTuple):
    """How much of each role a whole optimiser step holds, over its micro-batches and processes."""

    rows: dict[Role, int]
    positions: dict[Role, int]


def totals(examples: Sequence[Example]) -> Totals:
    """Rows and positions of each role."""
    roles = dict.fromkeys(example.role for example in examples)
    return Totals(
        {role: sum(e.role == role for e in examples) for role in roles},
        {role: sum(len(e.positions) for e in examples if e.role == role) for role in roles},
    )


def items(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples one by one, but those of a pair together."""
    numbered = groupby(enumerate(examples), key=lambda one: one[1].pair or one[0])
    return [[example for _, example in group] for _, group in numbered]


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Examples as one right-padded batch."""
    padded = pad([example.ids for example in examples], pad_id, side="right")
    rows = [row for row, example in enumerate(examples) for _ in example.positions]
    cols = [column for example in examples for column in example.positions]
    labels = None
    if all(example.labels is not None for example in examples):
        labels = torch.tensor([label for example in examples for label in example.labels or ()])
    return Batch(*padded, torch.tensor(rows), torch.tensor(cols), labels, tuple(examples))


Pick = Callable[[int], Collection[str]]
"""Keys of the rows that an epoch (from 0) takes out of their pools, one of each; asked again, it says the same."""


def pools(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The rows of each pool."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        if example.pool:
            found.setdefault(example.pool, []).append(example)
    return found


def draw(rows: Mapping[str, Sequence[Example]], *, epoch: int, seed: int) -> dict[str, str]:
    """Pool -> the key of one of its rows, drawn anew for each epoch."""
    return {name: random.Random(f"{seed}/{epoch}/{name}").choice(same).key for name, same in rows.items()}


def epochs_source(
    examples: Sequence[Example], *, batch_size: int, epochs: int, seed: int, pick: Pick | None = None
) -> tuple[Source, int]:
    """Each epoch meets every example once, forget and retain mixed, in an order of its own; also the number of steps.
    A pair counts once in a batch's size; of a pool an epoch meets the row that `pick` names, or one that is drawn.

    Within windows of ``WINDOW`` batches neighbours have about the same length *within their role*, so that a batch
    has both roles in their shares even where one role's rows are all longer; the order of the batches is shuffled.
    """
    alternatives = pools(examples)

    @lru_cache(maxsize=1)
    def met(epoch: int) -> list[list[Example]]:
        keys = pick(epoch) if pick else draw(alternatives, epoch=epoch, seed=seed).values()
        return items([example for example in examples if not example.pool or example.key in keys])

    per_epoch = -(-(len(items([e for e in examples if not e.pool])) + len(alternatives)) // batch_size)

    def source(step: int) -> list[Example]:
        epoch, index = divmod(step, per_epoch)
        whole = met(epoch)
        firsts = [item[0] for item in whole]
        rng = random.Random(f"{seed}/{epoch}")
        order = rng.sample(range(len(whole)), len(whole))
        batches: list[list[int]] = []
        for start in range(0, len(order), WINDOW * batch_size):
            window = _by_length(order[start : start + WINDOW * batch_size], firsts)
            batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        rng.shuffle(batches)
        return [example for i in batches[index] for example in whole[i]]

    return source, per_epoch * epochs


def _by_length(indices: Sequence[int], examples: Sequence[Example]) -> list[int]:
    """Indices by their examples' place, from 0 to 1, in their own role's order of length."""
    placed: list[tuple[float, int]] = []
    for role in get_args(Role):
        same = sorted((i for i in indices if examples[i].role == role), key=lambda i: (len(examples[i].ids), i))
        placed += [((place + 0.5) / len(same), i) for place, i in enumerate(same)]
    return [i for _, i in sorted(placed)]


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
