"""Index arithmetic on tensors; the label shift, masks and gathers of the whole library are here and nowhere else.

Legend of the shape suffixes: B batch, T tokens, V vocabulary, K top-K, D hidden, N the loss positions of a whole
batch, flattened row by row. The logits at column t predict the token at column t + 1, so a *position* is the column
before the token it is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from duet_unlearn.errors import UserError

TOKEN_BUDGET = 16_384
"""Prompt tokens of one batch, padding included: long prompts go in smaller batches."""


class Padded(NamedTuple):
    ids_BT: Tensor
    mask_BT: Tensor
    """True where a token is real."""


class TopK(NamedTuple):
    """The K largest logits of N positions, in falling order."""

    ids_NK: Tensor
    logits_NK: Tensor


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, side: Literal["left", "right"]) -> Padded:
    """Rows of token ids as one rectangle. The mask comes from lengths: a pad id inside a row is a real token."""
    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids_BT[index, columns] = torch.tensor(row, dtype=torch.long)
        mask_BT[index, columns] = True
    return Padded(ids_BT, mask_BT)


def batches(lengths: Sequence[int], *, batch_size: int, token_budget: int = TOKEN_BUDGET) -> Iterator[list[int]]:
    """Indices in groups of similar length, longest first, of `token_budget` padded tokens at most."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        rows = max(1, min(batch_size, token_budget // max(1, lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def position_ids(mask_BT: Tensor) -> Tensor:
    """(B, T) place of each token in its own row, from 0; padding gets 0. Right for either side of padding."""
    return (mask_BT.long().cumsum(-1) - 1).clamp_min(0)


def topk(logits_NV: Tensor, k: int | None) -> TopK:
    """The `k` largest logits of each position; None takes the whole vocabulary.

    Raises:
        UserError: `k` exceeds the vocabulary.
    """
    values, ids = logits_NV.topk(check_k(k, logits_NV.shape[-1]), dim=-1)
    return TopK(ids, values)


def check_k(k: int | None, vocabulary: int) -> int:
    """K of a vocabulary of that many tokens: None is all of them.

    Raises:
        UserError: `k` exceeds the vocabulary.
    """
    if k is not None and k > vocabulary:
        raise UserError(
            f"method.k is {k}, but the model's vocabulary has {vocabulary} tokens",
            f"set method.k to {vocabulary} at most, or to null for all",
        )
    return vocabulary if k is None else k


def gather(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """(N, K) logits of the named tokens."""
    return logits_NV.gather(-1, ids_NK)


def token_logps(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) log-probability of each label, in fp32."""
    return torch.log_softmax(logits_NV.float(), dim=-1).gather(-1, labels_N[:, None]).squeeze(-1)


def sum_by_row(values_N: Tensor, rows_N: Tensor, num_rows: int) -> Tensor:
    """(B,) sum of the values of each row."""
    return values_N.new_zeros(num_rows).index_add(0, rows_N, values_N)
