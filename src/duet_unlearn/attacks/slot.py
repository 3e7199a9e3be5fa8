"""The place behind a question where an attacker puts what he has optimised: tokens, or vectors in tokens' places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.asking import whole
from duet_unlearn.attacks.copies import bare
from duet_unlearn.attacks.result import NotApplicable
from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.data.query import Query
from duet_unlearn.evals.corrupted import vocabulary
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.tensors import logits_at, pad, sum_by_row, token_logps
from duet_unlearn.train.model import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANCHOR = "?"
"""What texts of single tokens are read behind: a text's first token may be written otherwise."""
MARKS = 256
"""How many tokens are tried to find a question's slot."""


class Slot(NamedTuple):
    """A rendered question, parted where the last turn's text ends, and the answer that is to come."""

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
    """Where a query's last turn ends, with the first `length` tokens of its answer.

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
    """The query with a text behind its last turn."""
    *before, last = query.messages
    return replace(query, messages=(*before, {**last, "content": last["content"] + text}))


def usable_ids(tokenizer: PreTrainedTokenizerBase, *, without: Sequence[str] = ()) -> list[int]:
    """Tokens of printable ASCII that read back as themselves, none of them special, and none of the texts `without`."""
    anchor = _read(tokenizer, [ANCHOR])[0]
    spoken = [f"{ANCHOR}{space}{text}" for text in without for space in ("", " ")]
    banned = {*tokenizer.all_special_ids, *(i for ids in _read(tokenizer, spoken) for i in ids[len(anchor) :])}
    ids = [i for i in range(len(tokenizer)) if i not in banned]
    texts = [text_of(tokenizer, [i]) for i in ids]
    read = _read(tokenizer, [ANCHOR + text for text in texts])
    return [
        i
        for i, text, back in zip(ids, texts, read, strict=True)
        if text.isascii() and text.isprintable() and text.strip() and back == [*anchor, i]
    ]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Tokens as they read behind other text."""
    anchor = _read(tokenizer, [ANCHOR])[0]
    plain, joint = (str(tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in (anchor, [*anchor, *ids]))
    return joint.removeprefix(plain)


def _read(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []


@contextmanager
def vectors(model: PreTrainedModel, soft_LD: Tensor) -> Iterator[None]:
    """Inside, ids from the vocabulary's size on stand for the rows of `soft_LD`, through which gradients flow.

    Hooks on the embedding, so that batching, caches and decoding are those of any ids.
    """
    table, size = model.get_input_embeddings(), vocabulary(model)
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
    return range(vocabulary(model), vocabulary(model) + count)


def answer_loss(model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], int]], *, filler: int) -> Tensor:
    """Mean over rows (ids, where the answer starts) of the mean cross entropy of the answer's tokens, in nats."""
    padded = pad([ids for ids, _ in rows], filler, side="right")
    spots = [(row, col) for row, (ids, start) in enumerate(rows) for col in range(start - 1, len(ids) - 1)]
    rows_N, cols_N = torch.tensor(spots, device=model.device).unbind(-1)
    ids_BT = padded.ids_BT.to(model.device)
    logits_NV = logits_at(model, ids_BT, padded.mask_BT.to(model.device), rows_N, cols_N)
    lengths_B = torch.bincount(rows_N, minlength=len(rows))
    return -(sum_by_row(token_logps(logits_NV, ids_BT[rows_N, cols_N + 1]), rows_N, len(rows)) / lengths_B).mean()
