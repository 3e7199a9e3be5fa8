"""What the published benchmarks share: the settings of a run, prompts as the benchmarks' own code writes them, and
numbers that take several sets or another subject: membership, PrivLeak, a shift."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from duet_unlearn.data.query import Message, Query
from duet_unlearn.evals.likelihood import auc_score, priv_leak
from duet_unlearn.evals.question_sets import LETTERS, Group
from duet_unlearn.evals.summaries import performance_shift
from duet_unlearn.stats import Score

FALL: tuple[Group, Literal["low"]] = ("forget", "low")
STAY: tuple[Group, Literal["high"]] = ("retain", "high")
"""Group of a set, and which end of its scores is better."""
MEMBERSHIP_SCORES = ("min_k", "min_k_plus_plus", "loss", "zlib")
"""Higher for what no model has read."""


class BenchmarkSettings(NamedTuple):
    """What a run asks of its benchmarks."""

    folder: str | None
    """The recipe's `data.folder`."""
    limit: int | None
    """Questions of a set at most; None: all."""
    shots: int
    """Solved examples before an MMLU question."""
    concept: str
    """What the recipe forgets: RWKU's person."""
    trained: frozenset[str]
    """Ids of the queries that are trained on, which a benchmark of its own questions leaves out."""


class SubjectResult(NamedTuple):
    """What one subject scored, and what it was scored on."""

    scores: Mapping[str, Mapping[str, Score]]
    """Set -> metric -> score."""
    samples: Sequence[Mapping[str, Any]]

    def likelihoods(self, set_name: str) -> list[Mapping[str, Any]]:
        """How each answer of a set was taken."""
        return [sample["likelihood"] for sample in self.samples if sample["set"] == set_name]


@dataclass(frozen=True)
class Summary:
    """A column of its own in the table, made from other columns."""

    name: str
    title: str
    about: str
    better: Literal["low", "high", "zero"]
    scores: Mapping[str, Score]
    """Metric -> score; the first stands for it in a table."""

    @property
    def info(self) -> dict[str, str]:
        """What a report needs to know of it, as of a set."""
        metric = next(iter(self.scores))
        return {"title": self.title, "group": "summary", "better": self.better, "about": self.about, "metric": metric}


# Prompts ------------------------------------------------------------------------------------------------------------


def chat_question(question: str) -> tuple[Message, ...]:
    """A question in a chat."""
    return ({"role": "user", "content": question},)


def raw_text(text: str) -> tuple[Message, ...]:
    """Text that is gone on from, without a template."""
    return ({"role": "text", "content": text},)


def choice_prompt(question: str, options: Sequence[str]) -> str:
    """A question above its lettered options in lm-eval's template of MMLU and WMDP; the answer is " A"."""
    return "\n".join([question.strip(), *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options)), "Answer:"])


def choice_head(subject: str) -> str:
    """lm-eval's first line over the questions of a subject."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def examples_head(pairs: Sequence[tuple[str, str]]) -> str:
    """Solved examples "Question: .. Answer: ..", a blank line behind each."""
    return "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in pairs)


def pair_queries(pairs: Sequence[tuple[str, str]], *, name: str, source: str, head: str | None = None) -> list[Query]:
    """Questions and answers as queries ``<name>/<number>``: behind solved examples in raw text, or in a chat where
    `head` is None."""
    queries = []
    for number, (question, answer) in enumerate(pairs):
        solved = raw_text(f"{head}Question: {question}\nAnswer:")
        messages = chat_question(question) if head is None else solved
        queries.append(Query(f"{name}/{number}", messages, answer, source=source))
    return queries


def limited(queries: Sequence[Query], limit: int | None, *, draw: str) -> tuple[Query, ...]:
    """At most `limit` queries, drawn by a seed made of `draw` and left in their order; None takes all."""
    if limit is None or limit >= len(queries):
        return tuple(queries)
    chosen = set(random.Random(f"limit/{draw}").sample(range(len(queries)), limit))
    return tuple(query for place, query in enumerate(queries) if place in chosen)


# Summary numbers ----------------------------------------------------------------------------------------------------


def without_interval(value: float, n: int) -> Score:
    """A number without an interval; NaN has no questions behind it."""
    return Score(value, 0 if math.isnan(value) else n, math.nan, math.nan)


@dataclass(frozen=True)
class MembershipTest:
    """Two sets whose answers are taken by likelihood: texts that are to be forgotten, and texts that are not read."""

    name: str
    members: str
    non_members: str
    unread: float
    """The AUC of a model that has read neither: 0.5 where no model has read the non-members, NaN where nobody knows."""
    about: str
    note: str = ""
    """What a reader must know of the two sets."""

    def summaries(self, own: SubjectResult, oracle: SubjectResult | None) -> list[Summary]:
        """How well four membership scores tell the sets apart; and PrivLeak (MUSE, arXiv 2407.06460) on min-k 40 %
        against the retrained model, NaN without one.

        Neither end of an AUC is good: the ideal is that of a model that never read the members. What stands for it in a
        table is therefore the AUC of min-k less the oracle's, or less `unread` where there is no oracle.
        """
        areas = {f"auc_{score}": self._area(own, score) for score in MEMBERSHIP_SCORES}
        ideal = self._area(oracle, "min_k").value if oracle else self.unread
        gap = without_interval(areas["auc_min_k"].value - ideal, areas["auc_min_k"].n)
        area = self._area(own, "min_k_40")
        leak = priv_leak(area.value, self._area(oracle, "min_k_40").value) if oracle else math.nan
        about_leak = (
            "PrivLeak: AUC of min-k 40 % against the retrained model's (the oracle's), in per cent; 0 ideal, below 0"
            " remembered, above 0 over-unlearned; n/a without an oracle."
        )
        title, scores = "Membership AUC less the ideal (min-k 20 %)", {"auc_gap": gap, **areas}
        points = {"points": without_interval(leak, area.n)}
        return [
            Summary(f"{self.name}_membership", title, f"{self.about} {self.note}".rstrip(), "zero", scores),
            Summary(f"{self.name}_priv_leak", "PrivLeak", f"{about_leak} {self.note}".rstrip(), "zero", points),
        ]

    def _area(self, result: SubjectResult, score: str) -> Score:
        """The AUC of a membership score between the two sets."""
        parts = [[taken[score] for taken in result.likelihoods(name)] for name in (self.members, self.non_members)]
        return auc_score(*parts)


def shift(
    own: SubjectResult, base: SubjectResult | None, *, name: str, forget: Mapping[str, str], keep: Mapping[str, str]
) -> list[Summary]:
    """Performance Shift against the base (arXiv 2601.21283) over the sets, each with its metric; none for the base, or
    where a set was not asked."""
    parts = {**forget, **keep}
    if base is None or not set(parts) <= own.scores.keys() & base.scores.keys():
        return []
    mine, theirs = ({of: {"part": result.scores[of][metric]} for of, metric in parts.items()} for result in (own, base))
    score = performance_shift(theirs, mine, forget=tuple(forget), keep=tuple(keep), metric="part")
    about = f"Falls of {', '.join(forget)} plus changes of {', '.join(keep)} against the base, in points."
    return [Summary(f"{name}_shift", "Performance Shift", about, "high", {"points": score})]
