"""GCG: a suffix of tokens, found by gradients, that makes a model answer whatever question it stands behind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from duet_unlearn.attacks.asking import Ask, ask
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Watch, unwatched
from duet_unlearn.attacks.slot import (
    Slot,
    answer_loss,
    behind,
    embedded,
    open_to_gradients,
    slot_of,
    text_of,
    usable_ids,
    vector_ids,
    vectors,
)
from duet_unlearn.config.sections import Count
from duet_unlearn.data.prompts import render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.question_sets import expected_answer
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.teacher.decoding import evaluating, pad_id
from duet_unlearn.teacher.shared import answer_logits
from duet_unlearn.tensors import sum_by_row, token_logps

BATCH = 64
"""Rows of one pass over candidates."""


class Suffix(NamedTuple):
    """What stands behind the questions."""

    ids: tuple[int, ...]
    loss: float
    """Mean cross entropy of the known answers behind it, in nats a token."""


@dataclass(frozen=True)
class Gcg:
    """Greedy coordinate gradient (arXiv 2307.15043): swap one token of a suffix at a time, by the gradient on known
    answers, and keep the best of many swaps. The suffix is then put behind every wanted question.

    No token of a value that a wanted fact could have, or of an answer as short as one, is used. In raw text that ends
    with "Answer:" the suffix stands in front of that. Other than in the paper each step draws its questions
    anew, a suffix is only replaced by one that is better on them, and the first is the best of many random ones.
    """

    name: Literal["gcg"] = "gcg"
    length: Count = 2
    """Tokens of the suffix; ours, for small models, which lose the question before longer ones: the paper's are 20."""
    steps: Count = 10
    """The paper's are 500."""
    candidates: Count = 24
    """Swaps tried in a step; the paper's are 512."""
    top: Count = 64
    """A swap is drawn from so many tokens at its place; the paper's are 256."""
    questions: Count = 12
    """Known questions of a step; the paper's are up to 25, always the same."""
    answer: Count = 16
    """Of an answer so many tokens are optimised for."""
    restarts: Count = 2
    """Each is an instance."""
    title: ClassVar[str] = "Optimised suffix (GCG)"
    access: ClassVar[Access] = "weights"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        tried = self.steps * (self.candidates + 3) * min(self.questions, len(goal.known))
        return self.restarts * (tried + len(goal.wanted)) * ASK_TOKENS

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: nothing is known to optimise for, or there are no weights of its own.
        """
        voice = open_to_gradients(subject)
        if not goal.known:
            raise NotApplicable("the attacker knows no other answer to optimise for")
        told = {text for q in goal.wanted for text in (q.value, expected_answer(q), *(q.choices or ())) if text}
        usable = usable_ids(voice.tokenizer, without=sorted(told))
        slots = [slot_of(voice.tokenizer, query, usable, length=self.answer) for query in goal.known]
        search, suffixes = Search(voice, goal.known[0], slots, usable, self), []
        for restart in range(self.restarts):
            draw = random.Random(f"gcg/{goal.seed}/{restart}")
            suffix = search.start(draw)
            for step in range(self.steps):
                watch(restart * self.steps + step, self.restarts * self.steps)
                suffix = search.better(suffix.ids, draw)
            suffixes.append(suffix)
        texts = [text_of(voice.tokenizer, suffix.ids) for suffix in suffixes]
        asks = [
            Ask(f"restart {restart}", number, behind(query, text))
            for restart, text in enumerate(texts, start=1)
            for number, query in enumerate(goal.wanted)
        ]
        pairs = zip(ask(voice, asks, goal), suffixes, strict=True)
        return [replace(one, numbers={"loss": suffix.loss}) for one, suffix in pairs]


@dataclass(frozen=True)
class Search:
    """A model, the known questions, and how a suffix is improved."""

    voice: ModelSubject
    query: Query
    """The question of the first slot, behind which suffixes are read back: those that read otherwise are left out."""
    slots: Sequence[Slot]
    usable: Sequence[int]
    """The tokens that a suffix is made of."""
    config: Gcg

    def start(self, draw: random.Random) -> Suffix:
        """The best of many random suffixes.

        Raises:
            NotApplicable: none of them reads back as itself.
        """
        drawn = [tuple(draw.choices(self.usable, k=self.config.length)) for _ in range(self.config.candidates)]
        return self.best(drawn, self.some(draw))

    def better(self, ids: tuple[int, ...], draw: random.Random) -> Suffix:
        """The best of a suffix and many that differ from it by one token."""
        slots = self.some(draw)
        return self.best([ids, *self.swaps(ids, slots, draw)], slots)

    def some(self, draw: random.Random) -> list[Slot]:
        """The slots of a step."""
        return draw.sample(self.slots, min(self.config.questions, len(self.slots)))

    def best(self, tried: Sequence[tuple[int, ...]], slots: Sequence[Slot]) -> Suffix:
        """The one of the lowest loss; of equal ones the first."""
        sound = [one for one in tried if self.reads_back(one)]
        if not sound:
            raise NotApplicable("no suffix of so many tokens reads back as itself")
        found = zip(sound, self.losses(sound, slots), strict=True)
        return min((Suffix(*one) for one in found), key=lambda one: one.loss)

    def swaps(self, ids: tuple[int, ...], slots: Sequence[Slot], draw: random.Random) -> list[tuple[int, ...]]:
        """Suffixes with one token swapped for one of the `top` that the gradient promises most of."""
        slope_LU = self.gradient(ids, slots)
        best_LK = (-slope_LU).topk(min(self.config.top, len(self.usable)), dim=-1).indices.tolist()
        tried: dict[tuple[int, ...], None] = {}
        for _ in range(self.config.candidates):
            place = draw.randrange(len(ids))
            tried[(*ids[:place], self.usable[draw.choice(best_LK[place])], *ids[place + 1 :])] = None
        return [one for one in tried if one != ids]

    def gradient(self, ids: Sequence[int], slots: Sequence[Slot]) -> Tensor:
        """(L, U) slope of the loss along each usable token's one-hot coordinate at each place."""
        model, soft_LD = self.voice.model, embedded(self.voice.model, ids).float().requires_grad_()
        rows = [slot.row(vector_ids(model, len(ids))) for slot in slots]
        with evaluating(model), torch.enable_grad(), vectors(model, soft_LD):
            loss = answer_loss(model, rows, padding_id=pad_id(self.voice.tokenizer))
            (slope_LD,) = torch.autograd.grad(loss, [soft_LD])  # the model's own gradients stay as they are
        table_UD = embedded(model, self.usable)
        return (slope_LD.to(table_UD.dtype) @ table_UD.T).float()

    def losses(self, suffixes: Sequence[Sequence[int]], slots: Sequence[Slot]) -> list[float]:
        """Of each suffix the loss that ``answer_loss`` gives; what rows begin alike with is computed once."""
        model, padding_id, size = self.voice.model, pad_id(self.voice.tokenizer), len(slots)
        rows = [slot.row(ids) for ids in suffixes for slot in slots]
        means = [0.0] * len(rows)
        with evaluating(model):
            for indices, at in answer_logits(model, rows, padding_id=padding_id, batch_size=BATCH):
                sums_B = sum_by_row(token_logps(at.logits_NV, at.labels_N), at.rows_N, len(indices))
                for index, total in zip(indices, sums_B.tolist(), strict=True):
                    means[index] = -total / len(slots[index % size].answer)
        return [sum(means[start : start + size]) / size for start in range(0, len(means), size)]

    def reads_back(self, ids: Sequence[int]) -> bool:
        """Whether the text of these tokens, behind a question, is tokenised into them again."""
        tokenizer = self.voice.tokenizer
        written = render(tokenizer, behind(self.query, text_of(tokenizer, ids)).messages)
        slot = self.slots[0]
        return written == [*slot.head, *ids, *slot.tail]
