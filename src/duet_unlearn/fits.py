"""Whether all that a job sends through its model fits into the model's context; checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING

from duet_unlearn.data.prompts import answer_ids, behind, render, render_answer
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.methods.bidirectional import Bidirectional, led_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from duet_unlearn.job import Job

TEMPLATE = 512
"""Tokens that a chat template adds at most; what may come near the model's context is counted exactly."""


def check_fits(job: Job, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    """Every prompt, with prefix and opening, and the longest text behind it must fit into `limit` tokens; and every
    text to distil on.

    Raises:
        UserError: one does not; it is named with its lengths.
    """
    named = None if job.shots else job.material("train").prefix  # never both
    for query, opening, new_tokens in [*_trained(job), *_asked(job)]:
        prefix = named.about(query.concept) if named else None
        longest = max((query.answer or "", query.paraphrase or "", *(query.wrong or ())), key=len)
        messages = behind(query.messages, job.shots) if job.shots else query.messages
        texts = (prefix.said if prefix else "", opening, *(message["content"] for message in messages))
        if _most_tokens(*texts) + max(_most_tokens(longest), new_tokens) + TEMPLATE <= limit:
            continue
        prompt = len(render(tokenizer, messages, prefix=prefix, prefill=opening))
        room = max(1 + len(answer_ids(tokenizer, query.messages, longest)), new_tokens)
        if prompt + room > limit:
            raise UserError(
                f"query {query.id!r}: {prompt} tokens of prompt and {room} of answer exceed the model's {limit}",
                _shorten(job, query),
            )
    for query in job.texts:
        answer = query.answer or ""
        if _most_tokens(answer, *(message["content"] for message in query.messages)) + TEMPLATE <= limit:
            continue
        if (length := len(render_answer(tokenizer, query.messages, answer)[0])) > limit:
            raise UserError(
                f"data.distil: {query.id!r} has {length} tokens, more than the model's {limit}",
                "cut its text into shorter ones",
            )


def _asked(job: Job) -> Iterator[tuple[Query, str, int]]:
    """Every query of the evaluation, with what opens its answer and the tokens that may follow."""
    for one in job.suite():
        for query, opening in zip(one.queries, one.prefill or cycle([""]), strict=False):
            yield query, opening, one.max_new_tokens or job.recipe.evaluate.max_new_tokens


def _trained(job: Job) -> list[tuple[Query, str, int]]:
    """Every query that is trained on, at its longest, with what opens its answer and tokens that may follow."""
    forget, retain = (*job.forget, *job.validation_forget), (*job.retain, *job.validation_retain)
    queries, room = job.in_both((*forget, *retain, *job.neighbours)), job.recipe.evaluate.max_new_tokens
    if not (isinstance(method := job.recipe.method, Bidirectional) and method.attacks):
        return [(query, "", room) for query in queries]
    lead = max(job.reversals, key=len) if "reverse" in method.attacks else ""
    room = max(room, method.opening_tokens + method.forbidden_tokens, method.opening_tokens + method.positions)
    return [(led_by(q, lead) if lead else q, max(job.openers, key=len), room) for q in queries]


def _shorten(job: Job, query: Query) -> str:
    """What can be done about a prompt that is too long."""
    shots = job.recipe.evaluate.shots
    if not query.id.startswith("mmlu/"):
        front = "the examples (method.forget_shots)" if job.shots else "the prefix"
        return f"shorten the query, its answer, {front}, data.context or evaluate.max_new_tokens"
    if shots:
        return f"lower evaluate.shots (it is {shots}), or take a model that reads more tokens"
    return "it is one MMLU question alone: take a model that reads more tokens, or mmlu out of evaluate.benchmarks"


def _most_tokens(*texts: str) -> int:
    """No tokeniser of ours makes more tokens of a text than it has bytes, and a mark for its beginning."""
    return sum(len(text.encode()) + 1 for text in texts)
