"""Greedy answers as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from duet_unlearn.data.prompts import Prefix, is_raw, render
from duet_unlearn.data.query import Message
from duet_unlearn.teacher.decode import end_ids, greedy, pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CUT = re.compile(r"\n\s*\n|Question")
"""Where an answer to raw text ends (DUET's tables): behind it a base model writes the next example."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Sequence[Message]],
    *,
    prefix: Prefix | None = None,
    prefill: Sequence[str] | None = None,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Greedy answers in the order of `messages`: the generated part only, without prefill and special tokens.

    `prefill` opens each answer. An answer to raw text (role ``text``, or the plain template) is cut as ``CUT`` says.
    """
    openers = prefill if prefill is not None else [""] * len(messages)
    pairs = zip(messages, openers, strict=True)
    rows = [render(tokenizer, m, prefix=prefix, prefill=opener) for m, opener in pairs]
    new = greedy(
        model,
        rows,
        ends=end_ids(model, tokenizer),
        filler=pad_id(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in new]
    return [cut(text) if is_raw(tokenizer, m) else text.strip() for text, m in zip(texts, messages, strict=True)]


def cut(text: str) -> str:
    """The first example's answer: up to the first blank line or "Question"."""
    # A leading line break is the answer's own gap, not its end.
    return CUT.split(text.lstrip(), maxsplit=1)[0].strip()
