"""Greedy decoding of many prompts: batched, left-padded, with position ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from duet_unlearn.data.prompts import turn_end
from duet_unlearn.teacher.shared import LEAD_SAVES, Past, begun
from duet_unlearn.tensors import head_at, pad, position_ids

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

Choose = Callable[[Tensor, Sequence[int], int], Tensor]
"""From (B, V) logits, which rows those are, and how many tokens each has said so far, to (B,) tokens."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: buffers made inside may be used by a later training step
            yield
    finally:
        model.train(was_training)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill rows with; which one does not matter, for masks come from lengths."""
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(filler or 0)


def end_ids(model: object, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: the tokeniser's, the chat template's and the generation config's (Llama 3 has
    three)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*listed, tokenizer.eos_token_id, turn_end(tokenizer)] if i is not None)


def likeliest(logits_BV: Tensor, _rows: Sequence[int], _said: int) -> Tensor:
    """(B,) the most likely token of each row."""
    return logits_BV.argmax(-1)


def greedy(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
    batch_size: int,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """The most likely next tokens of each row, or those that `choose` takes, in their order, up to and without the
    first id of `ends`.

    What many rows open with is computed once for them (``teacher.shared``). Weights in fp32 compute in bf16 on CUDA;
    anywhere else a batch says what its rows say one by one.
    """
    outputs: list[list[int]] = [[] for _ in rows]
    if max_new_tokens < 1:
        return outputs
    with evaluating(model), torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
        # Rows with a lead of their own make batches of their own, and each takes as many steps as a full one; it is
        # only a CPU that takes a step of few rows much faster.
        saves = LEAD_SAVES * (1 if model.device.type == "cpu" else max_new_tokens)
        lasts = [len(row) - 1 for row in rows]
        for indices, lead, past in begun(model, rows, lasts, filler=filler, batch_size=batch_size, saves=saves):
            mine = partial(_choose_of, choose, indices)
            new = _greedy_batch(model, [rows[i][lead:] for i in indices], past, ends, filler, max_new_tokens, mine)
            for index, ids in zip(indices, new, strict=True):
                outputs[index] = ids
    return outputs


def _choose_of(choose: Choose, indices: Sequence[int], logits_BV: Tensor, rows: Sequence[int], said: int) -> Tensor:
    """`choose` for a batch that is made of the rows `indices`."""
    return choose(logits_BV, [indices[row] for row in rows], said)


def _greedy_batch(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    past: Past | None,
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
    choose: Choose,
) -> list[list[int]]:
    """Rows go on from `past`. Padding stands in front of them, so that every row ends in the last column; position ids
    count real tokens only.

    Finished rows leave when they are half of the batch; until then what they go on to say counts for nothing.
    """
    padded = pad(rows, filler, side="left")
    ids_BT, mask_BT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
    if past:
        mask_BT = torch.cat([past.mask_BT, mask_BT], dim=1)
    places_BT, cache = position_ids(mask_BT)[:, -ids_BT.shape[1] :], past.cache if past else None
    said: list[list[int]] = [[] for _ in rows]
    live, done = list(range(len(rows))), set()
    for count in range(max_new_tokens):
        every_B = torch.arange(len(live), device=model.device)
        with head_at(model, every_B, torch.full_like(every_B, ids_BT.shape[1] - 1)):
            output = model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=places_BT,
                past_key_values=cache,
                use_cache=True,
            )
        cache, token_B = output.past_key_values, choose(output.logits[0], live, count)
        for row, token in zip(live, token_B.tolist(), strict=True):
            said[row].append(token)
        done |= {row for row in live if said[row][-1] in ends}
        if len(done) == len(rows):
            break
        ids_BT, places_BT = token_B[:, None], places_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(live), 1)], dim=1)
        going = [place for place, row in enumerate(live) if row not in done]
        if 2 * len(going) <= len(live) and _selects(cache):
            going_B = torch.tensor(going, device=model.device)
            cache.batch_select_indices(going_B)
            ids_BT, places_BT, mask_BT = ids_BT[going_B], places_BT[going_B], mask_BT[going_B]
            live = [live[place] for place in going]
    return [until_end(ids, ends) for ids in said]


def _selects(cache: Cache) -> bool:
    """Whether rows can leave: the states of recurrent layers have no way out."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return isinstance(cache, DynamicCache) and all(isinstance(layer, DynamicLayer) for layer in cache.layers)


def until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    """What stands before the first end."""
    return next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)
