"""Greedy decoding and next-token logits of many prompts: batched, left-padded, with position ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from duet_unlearn.tensors import head_at, logits_at, pad, position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKEN_BUDGET = 16_384
"""Prompt tokens of one batch, padding included: long prompts go in smaller batches."""


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
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


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: the tokeniser's and the generation config's (Llama 3 has three)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None)


def batches(lengths: Sequence[int], *, batch_size: int, token_budget: int = TOKEN_BUDGET) -> Iterator[list[int]]:
    """Indices in groups of similar length, longest first, of `token_budget` padded tokens at most."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        rows = max(1, min(batch_size, token_budget // max(1, lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def next_logits(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, filler: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Batch by batch, indices of rows and their (B, V) logits of the next token.

    To be used inside ``evaluating``.
    """
    for indices in batches([len(row) for row in rows], batch_size=batch_size):
        padded = pad([rows[index] for index in indices], filler, side="right")
        cols = padded.mask_BT.sum(-1) - 1
        device = model.device
        yield (
            indices,
            logits_at(
                model,
                padded.ids_BT.to(device),
                padded.mask_BT.to(device),
                torch.arange(len(indices), device=device),
                cols.to(device),
            ),
        )


def greedy(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """The most likely next tokens of each row, in their order, up to and without the first id of `ends`."""
    outputs: list[list[int]] = [[] for _ in rows]
    if max_new_tokens < 1:
        return outputs
    with evaluating(model):
        for indices in batches([len(row) for row in rows], batch_size=batch_size):
            new = _greedy_batch(model, [rows[i] for i in indices], ends, filler, max_new_tokens)
            for index, ids in zip(indices, new, strict=True):
                outputs[index] = ids
    return outputs


def _greedy_batch(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """Padding stands left, so that every row ends in the last column; position ids count real tokens only."""
    padded = pad(rows, filler, side="left")
    ids_BT, mask_BT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
    places_BT, cache, columns = position_ids(mask_BT), None, []
    stops = torch.tensor(sorted(ends), device=model.device)
    done_B = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
    every_B = torch.arange(len(rows), device=model.device)
    for _ in range(max_new_tokens):
        with head_at(model, every_B, torch.full_like(every_B, ids_BT.shape[1] - 1)):
            output = model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=places_BT,
                past_key_values=cache,
                use_cache=True,
            )
        cache, token_B = output.past_key_values, output.logits[0].argmax(-1)
        columns.append(token_B)
        done_B |= torch.isin(token_B, stops)
        if bool(done_B.all()):
            break
        ids_BT, places_BT = token_B[:, None], places_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
    return [_until(row, ends) for row in torch.stack(columns, dim=1).tolist()]


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    """What stands before the first end; what a finished row goes on to say counts for nothing."""
    return next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)
