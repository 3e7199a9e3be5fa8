"""What a frozen model is asked, and how: rows of token ids, and its logits at the positions that a loss will read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from duet_unlearn.data.examples import Example, Role
from duet_unlearn.data.prompts import Prefix, render, render_answer
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.teacher.decoding import end_ids
from duet_unlearn.tensors import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = 16_384
"""Tokens, padding included, that the model reads at once."""
SIZE = 32
"""Given answers that are read at once, at most: their logits, a row a token, are what takes memory."""
Teacher = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(N, V) logits of rows (ids and mask) at named positions (row and column), as ``logits_at`` gives a model's; or what
is read in their place."""


@dataclass(frozen=True)
class Asked:
    """One query as the frozen model and the student meet it: they differ by the prefix and nothing else."""

    query: Query
    prefix: Prefix | None
    role: Role
    answer: str | None = None
    """What stands behind the prompt, up to its end token (empty behind raw text that is read itself); None: the frozen
    model's own greedy answer."""
    positions: int = 1
    """Of the frozen model's own answer: how many of its first positions the loss reads."""
    reads: Literal["answer", "text"] = "answer"
    """Positions that the loss reads: those that predict the answer and its end token, or all of the row."""
    pair: str | None = None
    """Neighbouring rows of one pair stay in one micro-batch."""
    opening: tuple[int, ...] = ()
    """Ids that open the model's own answer: what it says goes on behind them."""
    aligned: str | None = None
    """Key of the row whose own answer is this one's target, from its start on and with no opening; None: what the
    frozen model says here."""
    pool: str | None = None
    """Rows of one pool are alternatives: an epoch meets one of them."""
    number: int = 0
    """Which of its pool."""
    forbidden: tuple[int, ...] = ()
    """Ids that must not follow: by their probability the rows of a pool are compared."""

    @property
    def key(self) -> str:
        return f"{self.pool}/{self.number}" if self.pool else f"{self.role}/{self.query.id}"


@dataclass(frozen=True)
class Row:
    """An asked query in token ids."""

    asked: Asked
    student: list[int]
    teacher: list[int]
    """Both end with the same answer; of a model's own answer, with the prompt and the opening. Of a row that is aligned
    with another the teacher is asked nothing."""
    start: int
    """The student's first position."""
    labels: list[int] | None
    """The token behind each position; None of a model's own answer."""

    def example(self, said: Sequence[int] = (), count: int | None = None) -> Example:
        """The student's side; of a model's own answer, with what it `said` and the `count` of its positions."""
        ids, labels = self.student + list(said), self.labels
        stop = self.start + (count if count is not None else len(labels or ()))
        one = self.asked
        return Example(
            tuple(ids),
            tuple(range(self.start, stop)),
            tuple(labels) if labels is not None else None,
            one.role,
            one.key,
            one.pair,
            one.pool,
            one.forbidden,
        )


def rows_of(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked]) -> list[Row]:
    """Every query in token ids.

    Raises:
        UserError: a query stands twice in a role.
    """
    seen: set[str] = set()
    for one in asked:
        if one.key in seen:
            raise UserError(f"the query {one.key} stands twice", "give every query an id of its own")
        seen.add(one.key)
    return [_row(tokenizer, one) for one in asked]


def _row(tokenizer: PreTrainedTokenizerBase, one: Asked) -> Row:
    messages = one.query.messages
    if one.answer is None:
        student, teacher = ([*render(tokenizer, messages, prefix=p), *one.opening] for p in (None, one.prefix))
        return Row(one, student, [] if one.aligned else teacher, len(student) - 1, None)
    student, first = render_answer(tokenizer, messages, one.answer)
    teacher = render_answer(tokenizer, messages, one.answer, prefix=one.prefix)[0] if one.prefix else student
    start = first - 1 if one.reads == "answer" else 0
    return Row(one, student[:-1], teacher[:-1], start, student[start + 1 :])


def own_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    kept: Callable[[Tensor], dict[str, Tensor]],
) -> Iterator[tuple[list[int], list[dict[str, Tensor]]]]:
    """Per row, what the model says by itself: its greedy tokens (one fewer than positions, which all rows share), and
    what is `kept` of its (B, V) logits at each position."""
    prompts, positions = [row.teacher for row in rows], rows[0].asked.positions
    results: dict[int, tuple[list[int], list[dict[str, Tensor]]]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest, ends = max(map(len, prompts)) + positions, end_ids(model, tokenizer)
    size = max(1, TOKENS // longest)
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        for i in chunk:
            results[i] = ([], [])
        live = chunk
        for place in range(positions):
            logits_BV = _next_logits(model, [prompts[i] + results[i][0] for i in live])
            stored = kept(logits_BV)
            for b, i in enumerate(live):
                tokens, told = results[i]
                told.append({name: values[b] for name, values in stored.items()})
                if place + 1 < positions:
                    tokens.append(int(logits_BV[b].argmax()))
            live = [i for i in live if not results[i][0] or results[i][0][-1] not in ends]
            if not live:
                break
    for i in range(len(prompts)):
        tokens, told = results[i]
        yield tokens[: len(told) - 1], told


def given_answers(teacher: Teacher, rows: Sequence[Row], device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Index of each row, and (P, V) logits at its positions."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].teacher))
    start = 0
    while start < len(order):
        size = max(1, TOKENS // len(rows[order[min(start + SIZE, len(order)) - 1]].teacher))
        chunk = order[start : start + min(size, SIZE)]
        start += len(chunk)
        padded = pad([rows[i].teacher for i in chunk], 0, side="right")
        spots = [(b, column) for b, i in enumerate(chunk) for column in _columns(rows[i])]
        rows_N, cols_N = torch.tensor(spots, device=device).unbind(-1)
        logits_NV = teacher(padded.ids_BT.to(device), padded.mask_BT.to(device), rows_N, cols_N)
        counts = [len(rows[i].labels or ()) for i in chunk]
        yield from zip(chunk, logits_NV.split(counts), strict=True)


def _columns(row: Row) -> range:
    """The positions in the teacher's row: as far from its end as in the student's."""
    shift = len(row.teacher) - len(row.student)
    return range(row.start + shift, row.start + shift + len(row.labels or ()))


def _next_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """(B, V) logits behind the last token of each row."""
    device = next(model.parameters()).device
    padded = pad(rows, 0, side="right")
    cols_B = torch.tensor([len(row) - 1 for row in rows], device=device)
    rows_B = torch.arange(len(rows), device=device)
    return logits_at(model, padded.ids_BT.to(device), padded.mask_BT.to(device), rows_B, cols_B)
