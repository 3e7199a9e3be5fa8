"""Ways to open an answer: what an attacker may put into the model's mouth, and what the model would say behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, NamedTuple

from duet_unlearn.data.files import atomic_write_text, read_text
from duet_unlearn.data.prompts import answer_ids, render, turn_end
from duet_unlearn.data.query import Query
from duet_unlearn.teacher.decoding import end_ids, greedy, pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Opening(NamedTuple):
    """An answer's first tokens, put there by somebody else."""

    ids: tuple[int, ...]
    """Empty: the answer is the model's own from its start."""
    follows: tuple[int, ...]
    """What the frozen model, told no prefix, says behind them: its end token included, if it comes to its end."""


def find_openings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    *,
    openers: Sequence[str],
    length: int,
    follow: int,
    batch_size: int,
) -> list[tuple[Opening, ...]]:
    """Each query's openings: none, then its pool.

    The pool: `openers`; the model's own greedy answer of `length` tokens at most, up to each of its words but the
    first; of a question that lists its choices, each of them (or its letter). Behind each the model goes on greedily
    for `follow` tokens; nobody needs to know the right answer.
    """
    prompts = [render(tokenizer, query.messages) for query in queries]
    decode = {"ends": end_ids(model, tokenizer), "filler": pad_id(tokenizer), "batch_size": batch_size}
    said = greedy(model, prompts, max_new_tokens=length, **decode)
    pools = [_pool(tokenizer, *one, openers) for one in zip(queries, said, strict=True)]
    rows = [[*prompt, *ids] for prompt, pool in zip(prompts, pools, strict=True) for ids in pool]
    continued = iter(greedy(model, rows, max_new_tokens=follow, **decode))
    end = turn_end(tokenizer)

    def opening(ids: tuple[int, ...]) -> Opening:
        own = next(continued)
        return Opening(ids, (*own, end) if len(own) < follow and end is not None else tuple(own))

    return [tuple(opening(ids) for ids in pool) for pool in pools]


def write_openings(path: Path, found: Mapping[str, Sequence[Opening]]) -> None:
    """Keep openings by name; what is made of them must be the same when a killed run goes on."""
    atomic_write_text(path, json.dumps(found) + "\n")


def read_openings(path: Path) -> dict[str, tuple[Opening, ...]]:
    """What ``write_openings`` wrote."""
    stored = json.loads(read_text(path))
    return {name: tuple(Opening(tuple(ids), tuple(follows)) for ids, follows in pool) for name, pool in stored.items()}


def _pool(
    tokenizer: PreTrainedTokenizerBase, query: Query, said: Sequence[int], openers: Sequence[str]
) -> list[tuple[int, ...]]:
    """The empty opening and all others, each once."""
    given = [tuple(answer_ids(tokenizer, query.messages, text)) for text in (*openers, *_choices(query))]
    return list(dict.fromkeys([(), *given, *_cuts(tokenizer, said)]))


def _choices(query: Query) -> tuple[str, ...]:
    """The choices that a question lists, or their letters; none of an open question."""
    choices = query.choices or ()
    letters = ascii_uppercase[: len(choices)]
    if all(f"{letter}. {choice}" in query.text for letter, choice in zip(letters, choices, strict=False)):
        return tuple(letters)
    return choices if all(choice in query.text for choice in choices) else ()


def _cuts(tokenizer: PreTrainedTokenizerBase, said: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """An answer's ids up to each of its words but the first."""
    texts = [
        str(tokenizer.decode(list(said[:stop]), clean_up_tokenization_spaces=False)) for stop in range(1, len(said) + 1)
    ]
    for stop in range(1, len(said)):
        if texts[stop][len(texts[stop - 1]) :][:1].isspace() and texts[stop - 1].strip():
            yield tuple(said[:stop])
