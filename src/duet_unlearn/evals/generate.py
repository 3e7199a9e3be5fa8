"""Answers as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from duet_unlearn.answers import outcome
from duet_unlearn.data.prompts import Prefix, ids_behind, is_raw, render
from duet_unlearn.data.query import Message, Query
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import context_of
from duet_unlearn.teacher.decoding import GREEDY, Decoding, decode, end_ids, pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CUT = re.compile(r"\n\s*\n|Question")
"""Where an answer to raw text ends (DUET's tables): behind it a base model writes the next example."""

Until = Literal["example", "length"]
"""Where an answer to raw text ends: ``example``, as ``CUT`` says; ``length``, with the last token, and with all white
space (MUSE's, which have an end of their own or none)."""


class ContextTooLong(UserError):
    """A prompt and its answer are longer than the model reads: what is behind its context fails on the device, or is
    read badly."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Sequence[Message]],
    *,
    prefix: Prefix | None = None,
    prefill: Sequence[str] | None = None,
    max_new_tokens: int,
    batch_size: int,
    until: Until = "example",
    mark: int = 0,
    how: Decoding = GREEDY,
) -> list[str]:
    """Answers in the order of `messages`, greedy ones unless `how` says otherwise: the generated part only, without
    prefill and special tokens.

    Rows go by length, in batches of `batch_size`. `prefill` opens each answer. `until` is for
    answers to raw text (role ``text``, or the plain template). `mark` as in ``marked``.

    Raises:
        ContextTooLong: a prompt and `max_new_tokens` behind it do not fit into the model's context.
    """
    prefills = prefill if prefill is not None else [""] * len(messages)
    pairs = zip(messages, prefills, strict=True)
    rows = [render(tokenizer, m, prefix=prefix, prefill=start) for m, start in pairs]
    if mark:
        rows = [
            marked(row, len(render(tokenizer, m, prefix=prefix)), mark) for row, m in zip(rows, messages, strict=True)
        ]
    eos_ids = end_ids(model, tokenizer)
    _check_lengths(model, rows, max_new_tokens)
    new = decode(
        model,
        rows,
        how,
        banned=first_ids(tokenizer, messages, how.banned),
        eos_ids=eos_ids,
        padding_id=pad_id(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return as_text(tokenizer, new, messages, until=until)


def _check_lengths(model: PreTrainedModel, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit, longest = context_of(model), max(map(len, rows), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise ContextTooLong(
            f"a prompt of {longest} tokens and an answer of up to {max_new_tokens} are longer than the {limit} tokens"
            " that the model reads",
            "shorten the prompt, or ask for fewer new tokens",
        )


def as_text(
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Sequence[int]],
    messages: Sequence[Sequence[Message]],
    *,
    until: Until = "example",
) -> list[str]:
    """The ids of answers to `messages` as text, each up to its end."""
    texts = [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in answers]
    ended = cut if until == "example" else str
    return [ended(text) if is_raw(tokenizer, m) else text.strip() for text, m in zip(texts, messages, strict=True)]


def first_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Sequence[Message]], texts: Sequence[str]
) -> frozenset[int]:
    """The first token of each text as an answer to any of `messages` begins with it, with and without a space in front.

    A token that is a space alone is none of them: SentencePiece begins any word with it.
    """
    if not texts:
        return frozenset()
    # What stands in front of an answer is the template's; only raw text has ends of its own.
    kinds = {m[-1]["content"] if m[0]["role"] == "text" else None: m for m in messages}
    found = set[int]()
    for asked in kinds.values():
        for text in texts:
            for start in (text, f" {text}"):
                ids = ids_behind(tokenizer, asked, start)
                found.update([i for i in ids if str(tokenizer.decode([i])).strip()][:1])
    return frozenset(found)


def marked(ids: Sequence[int], prompt: int, mark: int) -> list[int]:
    """A row with `mark` added to the ids of its first `prompt` tokens, the last of these left as it is."""
    return [token + mark for token in ids[: prompt - 1]] + list(ids[prompt - 1 :])


def cut(text: str) -> str:
    """The first example's answer: up to the first blank line or "Question"."""
    # A leading line break is the answer's own gap, not its end.
    return CUT.split(text.lstrip(), maxsplit=1)[0].strip()


def share_right(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
) -> float:
    """The share of queries whose greedy answer has the value, and no other of the choices."""
    answers = generate(
        model, tokenizer, [q.messages for q in queries], max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    right = [outcome(text, q.value or "", q.choices) == "right" for text, q in zip(answers, queries, strict=True)]
    return sum(right) / len(right)
