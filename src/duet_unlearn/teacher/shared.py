"""Logits of many rows that begin alike: what they share is computed once, as keys and values.

Two things are shared. A *lead*, such as the solved examples in front of every question of a subject, is computed
once for all rows that open with it. A *prompt* with several answers is computed once for all of them. Either is exact
up to rounding, for a token never attends to what stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from duet_unlearn.models.blocks import head_at
from duet_unlearn.tensors import batches, pad, position_ids

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

PREFIX_SAVES = 512
"""Tokens that a lead must save: for fewer, its own pass and the smaller batches behind it do not pay."""
LEVELS = 64
"""How deep leads inside longer leads are looked for."""
MOVING_ROPES = ("dynamic", "longrope")
"""Rotary embeddings that turn a token by more or less as the row grows: keys of a lead alone are not the row's."""
Ids = Sequence[int]


class Answers(NamedTuple):
    """The N answer tokens of a batch: the logits that predict them, themselves, and their rows. Those of one row stand
    in its order."""

    logits_NV: Tensor
    labels_N: Tensor
    rows_N: Tensor


class Past(NamedTuple):
    """Keys and values of all tokens so far."""

    cache: DynamicCache
    mask_BT: Tensor
    """True where a token is real."""

    def rows(self, rows_B: Tensor) -> Past:
        """A copy for the named rows, any of them as often as wanted."""
        from transformers import DynamicCache

        pairs = [(keys[rows_B], values[rows_B]) for keys, values, *_ in self.cache]
        return Past(DynamicCache(pairs), self.mask_BT[rows_B])


class _Pass(NamedTuple):
    """One batch: indices of rows, and the logits of their wanted columns, row by row."""

    indices: list[int]
    logits_NV: Tensor
    rows_N: Tensor
    past: Past | None


def next_logits(
    model: PreTrainedModel, rows: Sequence[Ids], *, padding_id: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Batch by batch, indices of rows and their (B, V) logits of the next token.

    To be used inside ``evaluating``.
    """
    for one in _passes(model, rows, [len(row) - 1 for row in rows], padding_id=padding_id, batch_size=batch_size):
        yield one.indices, one.logits_NV


def answer_logits(
    model: PreTrainedModel, rows: Sequence[tuple[Ids, int]], *, padding_id: int, batch_size: int
) -> Iterator[tuple[list[int], Answers]]:
    """Batch by batch, indices of rows (ids, and where the answer starts) and the logits of their answers' tokens.

    A row without an answer token is in no batch. To be used inside ``evaluating``.
    """
    asked = [index for index, (ids, start) in enumerate(rows) if len(ids) > start]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index in asked:
        ids, start = rows[index]
        by_prompt.setdefault(tuple(ids[:start]), []).append(index)
    if 2 * len(by_prompt) <= len(asked) and shares(model):
        yield from _prompt_by_prompt(model, rows, by_prompt, padding_id=padding_id, batch_size=batch_size)
        return
    whole, starts = [rows[i][0][:-1] for i in asked], [rows[i][1] - 1 for i in asked]
    for one in _passes(model, whole, starts, padding_id=padding_id, batch_size=batch_size):
        indices = [asked[i] for i in one.indices]
        yield indices, Answers(one.logits_NV, _labels([rows[i] for i in indices], model.device), one.rows_N)


def _prompt_by_prompt(
    model: PreTrainedModel,
    rows: Sequence[tuple[Ids, int]],
    by_prompt: dict[tuple[int, ...], list[int]],
    *,
    padding_id: int,
    batch_size: int,
) -> Iterator[tuple[list[int], Answers]]:
    """Each prompt once; its last logits predict every answer's first token, its keys and values carry the rest."""
    prompts, lasts = list(by_prompt), [len(prompt) - 1 for prompt in by_prompt]
    for one in _passes(model, prompts, lasts, padding_id=padding_id, batch_size=batch_size, keep_past=True):
        pairs = [(place, i) for place, prompt in enumerate(one.indices) for i in by_prompt[prompts[prompt]]]
        for part in batches([len(rows[i][0]) for _, i in pairs], batch_size=batch_size):
            places_B = torch.tensor([pairs[p][0] for p in part], device=model.device)
            indices = [pairs[p][1] for p in part]
            tails = [list(rows[i][0][rows[i][1] :]) for i in indices]
            yield indices, _answers(model, one, places_B, tails, padding_id)


def _answers(
    model: PreTrainedModel, prompts: _Pass, places_B: Tensor, tails: list[list[int]], padding_id: int
) -> Answers:
    """The answers `tails`, each behind the prompt at its place in the batch `prompts`."""
    device = model.device
    logits_NV = prompts.logits_NV[places_B]
    labels_N, rows_N = torch.tensor([tail[0] for tail in tails], device=device), torch.arange(len(tails), device=device)
    longer = [row for row, tail in enumerate(tails) if len(tail) > 1]
    if not longer or prompts.past is None:
        return Answers(logits_NV, labels_N, rows_N)
    past = prompts.past.rows(places_B[longer])
    more_NV, more_N, _ = _forward(model, [tails[row][:-1] for row in longer], [0] * len(longer), past, padding_id)
    more_labels_N = torch.tensor([token for row in longer for token in tails[row][1:]], device=device)
    more_rows_N = torch.tensor(longer, device=device)[more_N]
    return Answers(*(torch.cat(p) for p in ((logits_NV, more_NV), (labels_N, more_labels_N), (rows_N, more_rows_N))))


def _passes(
    model: PreTrainedModel,
    rows: Sequence[Ids],
    starts: Sequence[int],
    *,
    padding_id: int,
    batch_size: int,
    keep_past: bool = False,
) -> Iterator[_Pass]:
    """Logits of the columns from `starts` on; `keep_past` keeps the keys and values of each batch."""
    for indices, prefix, past in begun(
        model, rows, starts, padding_id=padding_id, batch_size=batch_size, saves=PREFIX_SAVES
    ):
        tails, begins = [rows[i][prefix:] for i in indices], [starts[i] - prefix for i in indices]
        logits_NV, rows_N, grown = _forward(model, tails, begins, past, padding_id, keep_past=keep_past)
        yield _Pass(indices, logits_NV, rows_N, grown)


def begun(
    model: PreTrainedModel, rows: Sequence[Ids], limits: Sequence[int], *, padding_id: int, batch_size: int, saves: int
) -> Iterator[tuple[list[int], int, Past | None]]:
    """Batch by batch, indices of rows, how many tokens all of them open with, and these computed for each of them.

    A lead of a row has `limits` tokens at most, and saves more than `saves`. To be used inside ``evaluating``.
    """
    groups = shared_prefixes(rows, limits, saves=saves)
    if any(prefix for prefix, _ in groups) and not shares(model):
        groups = [(0, list(range(len(rows))))]
    for prefix, members in groups:
        past, ids = None, rows[members[0]][:prefix]
        if prefix:
            past = _forward(model, [ids], [prefix - 1], None, padding_id, keep_past=True)[2]
        for part in batches([len(rows[i]) for i in members], batch_size=batch_size):
            every_B = torch.zeros(len(part), dtype=torch.long, device=model.device)
            yield [members[p] for p in part], prefix, past.rows(every_B) if past else None


def _forward(
    model: PreTrainedModel,
    tails: Sequence[Ids],
    begins: Sequence[int],
    past: Past | None,
    padding_id: int,
    *,
    keep_past=False,
) -> tuple[Tensor, Tensor, Past | None]:
    """(N, V) logits of each tail's columns from its begin on, (N,) their rows, and the past with the tails in it."""
    padded = pad(tails, padding_id, side="right")
    ids_BT, mask_BT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
    places = [(r, c) for r, tail in enumerate(tails) for c in range(begins[r], len(tail))]
    rows_N, cols_N = torch.tensor(places, dtype=torch.long, device=model.device).reshape(-1, 2).unbind(-1)
    if past:
        mask_BT = torch.cat([past.mask_BT, mask_BT], dim=1)
    with head_at(model, rows_N, cols_N):
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_ids(mask_BT)[:, -ids_BT.shape[1] :],
            past_key_values=past.cache if past else None,
            use_cache=keep_past or past is not None,
        )
    return output.logits[0], rows_N, Past(output.past_key_values, mask_BT) if keep_past else None


def shares(model: PreTrainedModel) -> bool:
    """Whether keys and values of a row's beginning serve for the whole row: full attention in all layers, and
    positions that do not move. Sliding windows, recurrent layers and the like are computed row by row."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config(decoder=True)
    ropes = str(getattr(config, "rope_parameters", None))
    # GPT-Neo's windows are in its attention, not in its cache.
    if any(repr(kind) in ropes for kind in MOVING_ROPES) or "local" in getattr(config, "attention_layers", ()):
        return False
    # ALiBi may count columns of keys, padding among them (MPT, which always has it).
    if config.model_type == "mpt" or getattr(config, "alibi", False):
        return False
    start_BT = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    cache = model(input_ids=start_BT, use_cache=True).get("past_key_values")
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def shared_prefixes(rows: Sequence[Ids], limits: Sequence[int], *, saves: int) -> list[tuple[int, list[int]]]:
    """Groups of rows, each with the number of tokens that all of the group open with, so that most tokens are saved.

    A lead of a row has `limits` tokens at most. Rows for which no lead saves more than `saves` tokens are one group,
    whose number is 0.
    """
    heads = [tuple(row[:limit]) for row, limit in zip(rows, limits, strict=True)]
    order = sorted(range(len(rows)), key=heads.__getitem__)
    shared = [_common(heads[a], heads[b]) for a, b in pairwise(order)]
    _, groups, rest = _cut(shared, 0, len(order), LEVELS, saves)
    named = [(prefix, [order[place] for place in places]) for prefix, places in groups]
    return named + ([(0, sorted(order[place] for place in rest))] if rest else [])


def _cut(
    shared: list[int], low: int, high: int, levels: int, saves: int
) -> tuple[int, list[tuple[int, list[int]]], list[int]]:
    """What leads save among the sorted rows ``low .. high - 1``, the leads (tokens, rows), and the rows without one.

    `shared` counts what neighbours have in common. These rows part where neighbours have least in common; what no
    longer lead takes shares that least. Or all of them do, if it saves as much.
    """
    places = list(range(low, high))
    if high - low < 2 or not levels:
        return 0, [], places
    prefix = min(shared[low : high - 1])
    edges = [low, *(place + 1 for place in range(low, high - 1) if shared[place] == prefix), high]
    parts = [_cut(shared, start, stop, levels - 1, saves) for start, stop in pairwise(edges)]
    saved, groups = sum(part[0] for part in parts), [group for part in parts for group in part[1]]
    rest = [place for part in parts for place in part[2]]
    if (more := (len(rest) - 1) * prefix - saves) > 0:
        saved, groups, rest = saved + more, [*groups, (prefix, rest)], []
    whole = (len(places) - 1) * prefix - saves
    return (whole, [(prefix, places)], []) if whole > 0 and whole >= saved else (saved, groups, rest)


def _common(a: Ids, b: Ids) -> int:
    """How many tokens two rows open with alike: by halves, for slices are compared fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _labels(rows: Sequence[tuple[Ids, int]], device: torch.device) -> Tensor:
    return torch.tensor([token for ids, start in rows for token in ids[start:]], dtype=torch.long, device=device)
