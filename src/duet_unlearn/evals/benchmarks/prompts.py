"""Prompts as the benchmarks' own code writes them, and the draw of a few questions for a quick run."""

from __future__ import annotations

import random
from collections.abc import Sequence

from duet_unlearn.data.query import Message, Query
from duet_unlearn.evals.question_sets import LETTERS


def said(question: str) -> tuple[Message, ...]:
    """A question in a chat."""
    return ({"role": "user", "content": question},)


def raw(text: str) -> tuple[Message, ...]:
    """Text that is gone on from, without a template."""
    return ({"role": "text", "content": text},)


def with_options(question: str, options: Sequence[str]) -> str:
    """A question above its lettered options: "A. .." a line."""
    return "\n".join([question.strip(), *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))])


def choice_prompt(question: str, options: Sequence[str]) -> str:
    """A question with options in lm-eval's template of MMLU and WMDP; the answer is " A"."""
    return f"{with_options(question, options)}\nAnswer:"


def choice_head(subject: str) -> str:
    """lm-eval's first line over the questions of a subject."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def examples_head(pairs: Sequence[tuple[str, str]]) -> str:
    """Solved examples "Question: .. Answer: ..", a blank line behind each."""
    return "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in pairs)


def limited(queries: Sequence[Query], limit: int | None, *, draw: str) -> tuple[Query, ...]:
    """At most `limit` queries, drawn by a seed made of `draw` and left in their order; None takes all."""
    if limit is None or limit >= len(queries):
        return tuple(queries)
    chosen = set(random.Random(f"limit/{draw}").sample(range(len(queries)), limit))
    return tuple(query for place, query in enumerate(queries) if place in chosen)
