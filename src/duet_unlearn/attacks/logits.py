"""Reading logits: which of the values that a fact could have the model holds most likely, whatever it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal

from duet_unlearn.attacks.asking import shown
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.plain import ASK_TOKENS
from duet_unlearn.attacks.prefill import openers
from duet_unlearn.attacks.result import Access, Instance, Metric, NotApplicable, Said, Watch, instance, unwatched
from duet_unlearn.attacks.turns import last_place
from duet_unlearn.config.sections import Whole
from duet_unlearn.data.query import Query
from duet_unlearn.evals.likelihood import exposure
from duet_unlearn.evals.question_sets import subjects_by_concept
from duet_unlearn.evals.subject import Subject

TOP = 3


@dataclass(frozen=True)
class Logits:
    """Score the right answer with each possible value in the value's place. The fact is out if its own value is the
    likeliest; an equal one counts as ahead of it.

    The numbers: the value's mean rank, its mean share of the probability of all candidates, how often it is among the
    first three, its mean exposure in bits (arXiv 1802.08232), and ``chance``, how often a candidate drawn blindly is
    the right one.
    """

    name: Literal["logits"] = "logits"
    openers: Whole = 1
    """Behind how many of the openers of ``prefill`` answers are scored, beside the answer at the prompt itself."""
    title: ClassVar[str] = "Logits read"
    access: ClassVar[Access] = "decoding"
    metric: ClassVar[Metric] = "right"

    def tokens(self, goal: Goal) -> int:
        """See ``Attack``."""
        choices = sum(len(query.choices or ()) for query in goal.wanted)
        return choices * (2 + self.openers) * ASK_TOKENS // 4  # a question is read once for all its answers

    def carry_out(self, subject: Subject, goal: Goal, watch: Watch = unwatched) -> list[Instance]:
        """See ``Attack``.

        Raises:
            NotApplicable: no wanted fact has several choices of which one is in its answer.
        """
        asked = [number for number, query in enumerate(goal.wanted) if len(candidates(query)) > 1]
        if not asked:
            raise NotApplicable("no fact has choices that could stand in its answer")
        forms: dict[str, Callable[[str, str], str]] = {
            "whole answers": lambda answer, _value: answer,
            "values alone": lambda _answer, value: value,
        }
        for opener in openers()[: self.openers]:
            forms[opener] = lambda answer, _value, opener=opener: f"{opener} {answer}"
        return [self._read(subject, goal, asked, name, form) for name, form in forms.items()]

    def _read(
        self, subject: Subject, goal: Goal, asked: Sequence[int], name: str, form: Callable[[str, str], str]
    ) -> Instance:
        queries = [goal.wanted[number] for number in asked]
        answers = [[form(answer, value) for value, answer in candidates(query).items()] for query in queries]
        taken: list[list[float]] = [[] for _ in queries]
        for voice, places in subjects_by_concept(subject, queries):
            flat = [(queries[place].messages, answer) for place in places for answer in answers[place]]
            values = voice.logps([m for m, _ in flat], [answer for _, answer in flat], batch_size=goal.batch_size)
            numbers = iter(values)
            for place in places:
                taken[place] = [next(numbers) for _ in answers[place]]
        said, ranks, shares = [], [], []
        for number, query, logps in zip(asked, queries, taken, strict=True):
            names = list(candidates(query))
            own = names.index(str(query.value))
            ranks.append(rank_of(logps, own))
            shares.append(share_of(logps, own))
            best = names[logps.index(max(logps))]
            said.append(Said(number, shown(query.messages), "", best, ranks[-1] == 1))
        sizes = [len(logps) for logps in taken]
        return instance(
            name,
            said,
            len(goal.wanted),
            rank=fmean(ranks),
            share=fmean(shares),
            top3=fmean(rank <= TOP for rank in ranks),
            exposure=fmean(map(exposure, ranks, sizes)),
            chance=fmean(1 / size for size in sizes),
        )


def candidates(query: Query) -> dict[str, str]:
    """Value -> the right answer with it in the last place of the right one; empty where that does not stand in the
    answer as a word, or is no choice."""
    value, choices = query.value or "", query.choices or ()
    place = last_place(query.answer or "", value)
    if value not in choices or place is None:
        return {}
    head, tail = place
    return {choice: f"{head}{choice}{tail}" for choice in choices}


def rank_of(logps: Sequence[float], own: int) -> int:
    """The place of one of several, from 1; those that are equal to it stand in front of it."""
    return sum(logp >= logps[own] for logp in logps)


def share_of(logps: Sequence[float], own: int) -> float:
    """Its part of the probability of all: a softmax."""
    largest = max(logps)
    return math.exp(logps[own] - largest) / math.fsum(math.exp(logp - largest) for logp in logps)
