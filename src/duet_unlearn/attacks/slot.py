"""The place behind a question where an attacker puts what he has optimised: tokens, or vectors in tokens' places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.asking import whole
from duet_unlearn.attacks.copies import bare
from duet_unlearn.attacks.result import NotApplicable
from duet_unlearn.attacks.turns import question_of, reworded
from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.blocks import logits_at, num_embeddings
from duet_unlearn.models.quantise import is_quantised
from duet_unlearn.tensors import pad, sum_by_row, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANCHOR = "?"
"""What texts of single tokens are read behind: a text's first token may be written otherwise."""
MARKS = 256
"""How many tokens are tried to find a question's slot."""
CHUNK = 8192
"""Tokens that are read back in one call of the tokeniser."""


class Slot(NamedTuple):
    """A rendered question, parted where its text ends (see ``behind``), and the answer that is to come."""

    head: tuple[int, ...]
    tail: tuple[int, ...]
    answer: tuple[int, ...]

    def row(self, inserted: Sequence[int]) -> tuple[list[int], int]:
        """The ids with something in the slot, and where the answer starts."""
        prompt = [*self.head, *inserted, *self.tail]
        return [*prompt, *self.answer], len(prompt)


def open_to_gradients(subject: Subject) -> ModelSubject:
    """The subject to optimise against: adapters merged into a copy, which is faster; packed weights as they are.

    Raises:
        NotApplicable: what it forgot is not in its weights, or another program holds them.
    """
    voice = whole(subject)
    return voice if is_quantised(voice.model) else bare(voice)


@torch.no_grad()
def embedded(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(L, D) the model's vectors of tokens, as its first block gets them (Gemma 3 scales them)."""
    return model.get_input_embeddings()(torch.tensor([*ids], device=model.device))


def slot_of(tokenizer: PreTrainedTokenizerBase, query: Query, usable: Sequence[int], *, length: int) -> Slot:
    """Where a query's question ends, with the first `length` tokens of its answer.

    Raises:
        NotApplicable: whatever stands there, the tokeniser joins it with the question.
    """
    answer = tuple(answer_ids(tokenizer, query.messages, query.answer or "")[:length])
    plain = render(tokenizer, query.messages)
    for mark in usable[:MARKS]:
        marked = render(tokenizer, behind(query, text_of(tokenizer, [mark])).messages)
        place = next((i for i, (a, b) in enumerate(zip(plain, marked, strict=False)) if a != b), len(plain))
        if marked == [*plain[:place], mark, *plain[place:]]:
            return Slot(tuple(plain[:place]), tuple(plain[place:]), answer)
    raise NotApplicable("the tokeniser joins whatever stands behind a question with it")


def behind(query: Query, text: str) -> Query:
    """The query with a text behind its question: the last turn's text; in raw text that ends with "Question: ..
    Answer:" in front of "Answer:", in any other at its end."""
    return reworded(query, question_of(query) + text)


def usable_ids(
    tokenizer: PreTrainedTokenizerBase, *, without: Sequence[str] = (), most: int | None = None
) -> list[int]:
    """Tokens of printable ASCII that read back as themselves, none of them special; the first `most` of these, and of
    them no token of the texts `without`."""
    size = len(_read(tokenizer, [ANCHOR])[0])
    spoken = [f"{ANCHOR}{space}{text}" for text in without for space in ("", " ")]
    banned = {i for ids in _read(tokenizer, spoken) for i in ids[size:]}
    return [i for i in readable_ids(tokenizer, len(tokenizer), most) if i not in banned]


@lru_cache(maxsize=8)
def readable_ids(tokenizer: PreTrainedTokenizerBase, size: int, most: int | None = None) -> tuple[int, ...]:
    """The first `most` of the tokens below `size` of printable ASCII that read back as themselves, none of them
    special. Found once a tokeniser: vocabularies of 256 k take seconds."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}  # a chat's borders among them
    special, anchor, found = added | {*tokenizer.all_special_ids}, _read(tokenizer, [ANCHOR])[0], list[int]()
    for start in range(0, size, CHUNK):
        ids = [i for i in range(start, min(start + CHUNK, size)) if i not in special]
        texts = zip(ids, _texts_of(tokenizer, [[i] for i in ids]), strict=True)
        plain = {i: text for i, text in texts if text.isascii() and text.isprintable() and text.strip()}
        read = _read(tokenizer, [ANCHOR + text for text in plain.values()])
        found += [i for i, back in zip(plain, read, strict=True) if back == [*anchor, i]]
        if most is not None and len(found) >= most:
            break
    return tuple(found[:most])


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Tokens as they read behind other text."""
    return _texts_of(tokenizer, [ids])[0]


def _texts_of(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    anchor = _read(tokenizer, [ANCHOR])[0]
    plain, *joint = tokenizer.batch_decode(
        [anchor, *([*anchor, *ids] for ids in rows)], clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(plain) for text in joint]


def _read(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []


@contextmanager
def vectors(model: PreTrainedModel, soft_LD: Tensor) -> Iterator[None]:
    """Inside, ids from the vocabulary's size on stand for the rows of `soft_LD`, through which gradients flow.

    Hooks on the embedding, so that batching, caches and decoding are those of any ids.
    """
    table, size = model.get_input_embeddings(), num_embeddings(model)
    call: dict[str, Tensor] = {}

    def read(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        call["ids_BT"] = inputs[0]
        return (inputs[0].clamp_max(size - 1), *inputs[1:])

    def put(_module: nn.Module, _inputs: Any, embedded_BTD: Tensor) -> Tensor:
        places_BT = call["ids_BT"] - size
        own_BTD = soft_LD.to(embedded_BTD.dtype)[places_BT.clamp_min(0)]
        return torch.where((places_BT >= 0)[..., None], own_BTD, embedded_BTD)

    handles = [table.register_forward_pre_hook(read), table.register_forward_hook(put)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def vector_ids(model: PreTrainedModel, count: int) -> range:
    """The ids that stand for so many vectors."""
    return range(num_embeddings(model), num_embeddings(model) + count)


def answer_loss(model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], int]], *, padding_id: int) -> Tensor:
    """Mean over rows (ids, where the answer starts) of the mean cross entropy of the answer's tokens, in nats."""
    padded = pad([ids for ids, _ in rows], padding_id, side="right")
    spots = [(row, col) for row, (ids, start) in enumerate(rows) for col in range(start - 1, len(ids) - 1)]
    rows_N, cols_N = torch.tensor(spots, device=model.device).unbind(-1)
    ids_BT = padded.ids_BT.to(model.device)
    logits_NV = logits_at(model, ids_BT, padded.mask_BT.to(model.device), rows_N, cols_N)
    lengths_B = torch.bincount(rows_N, minlength=len(rows))
    return -(sum_by_row(token_logps(logits_NV, ids_BT[rows_N, cols_N + 1]), rows_N, len(rows)) / lengths_B).mean()
