"""Beam search: the answers that are most likely as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from duet_unlearn.teacher.decode import evaluating
from duet_unlearn.tensors import batches, head_at, pad, position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Beam(NamedTuple):
    """An answer so far, or a whole one."""

    logp: float
    """Summed log-probability of its tokens, the end token among them, in nats; lengths are not evened out."""
    ids: list[int]


def beam_search(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    beams: int,
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """An answer to each row, up to and without the first id of `ends`. A row that stands there several times gets its
    best answer, the second best and so on, and from the `beams`-th on that one.

    The widths are those of ``generate(num_beams=beams, length_penalty=0)`` in transformers.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(index)
    prompts, said = list(places), [[0]] * len(rows)
    size = max(1, batch_size // beams)
    with evaluating(model), torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
        for indices in batches([len(prompt) for prompt in prompts], batch_size=size):
            found = search(model, [prompts[i] for i in indices], beams, ends, filler, max_new_tokens)
            for index, best in zip(indices, found, strict=True):
                for rank, place in enumerate(places[prompts[index]]):
                    said[place] = best[min(rank, len(best) - 1)].ids
    return said


def search(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    beams: int,
    ends: frozenset[int],
    filler: int,
    max_new_tokens: int,
) -> list[list[Beam]]:
    """The best answers of each row, the best first.

    In the shape suffixes b stands for the beams of all rows, one behind the other: one a row before the first token,
    for they would be alike, then `beams`.
    """
    padded = pad(rows, filler, side="left")
    ids_bT, mask_bT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
    places_bT, cache = position_ids(mask_bT), None
    live = [[Beam(0.0, [])] for _ in rows]
    whole: list[list[Beam]] = [[] for _ in rows]
    for _ in range(max_new_tokens):
        every_b = torch.arange(len(ids_bT), device=model.device)
        with head_at(model, every_b, torch.full_like(every_b, ids_bT.shape[1] - 1)):
            output = model(
                input_ids=ids_bT,
                attention_mask=mask_bT,
                position_ids=places_bT,
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        came = _grow(torch.log_softmax(output.logits[0].float(), dim=-1), live, whole, beams, ends)
        if all(_settled(done, going, beams) for done, going in zip(whole, live, strict=True)):
            break
        from_b = torch.tensor(came, device=model.device)
        cache.reorder_cache(from_b)
        ids_bT = torch.tensor([[beam.ids[-1]] for row in live for beam in row], device=model.device)
        places_bT = places_bT[from_b, -1:] + 1
        mask_bT = torch.cat([mask_bT[from_b], mask_bT.new_ones(len(came), 1)], dim=1)
    return [
        sorted([*done, *going], key=lambda beam: -beam.logp)[:beams] for done, going in zip(whole, live, strict=True)
    ]


def _grow(
    logps_bV: Tensor, live: list[list[Beam]], whole: list[list[Beam]], beams: int, ends: frozenset[int]
) -> list[int]:
    """Put the `beams` best continuations of every row into `live`, and those that end into `whole`; where in the batch
    each came from."""
    came, start = [], 0
    for number, row in enumerate(live):
        own_nV = logps_bV[start : start + len(row)]
        totals_nV = own_nV + own_nV.new_tensor([beam.logp for beam in row])[:, None]
        # Of every beam no more than the end tokens can drop out, so that these are enough to go on with.
        best = totals_nV.flatten().topk(min(beams * (1 + len(ends)), totals_nV.numel()))
        going: list[tuple[int, Beam]] = []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token = divmod(place, totals_nV.shape[1])
            if token not in ends:
                going.append((start + parent, Beam(total, [*row[parent].ids, token])))
            elif rank < beams:
                whole[number].append(Beam(total, row[parent].ids))
        start += len(row)
        live[number] = [beam for _, beam in going[:beams]]
        came += [parent for parent, _ in going[:beams]]
    return came


def _settled(whole: list[Beam], live: list[Beam], beams: int) -> bool:
    """Whether nothing that still grows can come among the best: a log-probability only falls."""
    best = sorted((beam.logp for beam in whole), reverse=True)[:beams]
    return len(best) == beams and best[-1] >= max(beam.logp for beam in live)
