"""Answers as token ids: greedy decoding of many prompts at once, draws, forbidden tokens, and beam search."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from duet_unlearn.data.prompts import turn_end
from duet_unlearn.models.blocks import head_at
from duet_unlearn.teacher.shared import PREFIX_SAVES, Past, begun
from duet_unlearn.tensors import batches, pad, position_ids

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

Choose = Callable[[Tensor, Sequence[int], int], Tensor]
"""From (B, V) logits, which rows those are, and how many tokens each has so far, to (B,) tokens."""


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
    padding_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(padding_id or 0)


def end_ids(model: object, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: the tokeniser's, the chat template's and the generation config's (Llama 3 has
    three)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*listed, tokenizer.eos_token_id, turn_end(tokenizer)] if i is not None)


def likeliest(logits_BV: Tensor, _rows: Sequence[int], _count: int) -> Tensor:
    """(B,) the most likely token of each row."""
    return logits_BV.argmax(-1)


def greedy(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    eos_ids: frozenset[int],
    padding_id: int,
    max_new_tokens: int,
    batch_size: int,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """The most likely next tokens of each row, or those that `choose` takes, in their order, up to and without the
    first id of `eos_ids`.

    What many rows open with is computed once for them (``teacher.shared``). Weights in fp32 compute in bf16 on CUDA;
    anywhere else a batch says what its rows say one by one.
    """
    outputs: list[list[int]] = [[] for _ in rows]
    if max_new_tokens < 1:
        return outputs
    with evaluating(model), torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
        # Rows with a lead of their own make batches of their own, and each takes as many steps as a full one; it is
        # only a CPU that takes a step of few rows much faster.
        saves = PREFIX_SAVES * (1 if model.device.type == "cpu" else max_new_tokens)
        lasts = [len(row) - 1 for row in rows]
        for indices, prefix, past in begun(
            model, rows, lasts, padding_id=padding_id, batch_size=batch_size, saves=saves
        ):
            mine = partial(_choose_of, choose, indices)
            new = _greedy_batch(
                model, [rows[i][prefix:] for i in indices], past, eos_ids, padding_id, max_new_tokens, mine
            )
            for index, ids in zip(indices, new, strict=True):
                outputs[index] = ids
    return outputs


def _choose_of(choose: Choose, indices: Sequence[int], logits_BV: Tensor, rows: Sequence[int], count: int) -> Tensor:
    """`choose` for a batch that is made of the rows `indices`."""
    return choose(logits_BV, [indices[row] for row in rows], count)


def _greedy_batch(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    past: Past | None,
    eos_ids: frozenset[int],
    padding_id: int,
    max_new_tokens: int,
    choose: Choose,
) -> list[list[int]]:
    """Rows go on from `past`. Padding stands in front of them, so that every row ends in the last column; position ids
    count real tokens only.

    Finished rows leave when they are half of the batch; until then what they go on to say counts for nothing.
    """
    padded = pad(rows, padding_id, side="left")
    ids_BT, mask_BT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
    if past:
        mask_BT = torch.cat([past.mask_BT, mask_BT], dim=1)
    places_BT, cache = position_ids(mask_BT)[:, -ids_BT.shape[1] :], past.cache if past else None
    answers: list[list[int]] = [[] for _ in rows]
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
            answers[row].append(token)
        done |= {row for row in live if answers[row][-1] in eos_ids}
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
    return [until_end(ids, eos_ids) for ids in answers]


def _selects(cache: Cache) -> bool:
    """Whether rows can leave: the states of recurrent layers have no way out."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return isinstance(cache, DynamicCache) and all(isinstance(layer, DynamicLayer) for layer in cache.layers)


def until_end(ids: list[int], eos_ids: frozenset[int]) -> list[int]:
    """What stands before the first end."""
    return next((ids[:index] for index, token in enumerate(ids) if token in eos_ids), ids)


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
    eos_ids: frozenset[int],
    padding_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """An answer to each row, up to and without the first id of `eos_ids`. A row that stands there several times gets
    its best answer, the second best and so on, and from the `beams`-th on that one.

    The widths are those of ``generate(num_beams=beams, length_penalty=0)`` in transformers.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(index)
    prompts, answers = list(places), [[0]] * len(rows)
    size = max(1, batch_size // beams)
    with evaluating(model), torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
        for indices in batches([len(prompt) for prompt in prompts], batch_size=size):
            found = search(model, [prompts[i] for i in indices], beams, eos_ids, padding_id, max_new_tokens)
            for index, best in zip(indices, found, strict=True):
                for rank, place in enumerate(places[prompts[index]]):
                    answers[place] = best[min(rank, len(best) - 1)].ids
    return answers


def search(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    beams: int,
    eos_ids: frozenset[int],
    padding_id: int,
    max_new_tokens: int,
) -> list[list[Beam]]:
    """The best answers of each row, the best first.

    In the shape suffixes b stands for the beams of all rows, one behind the other: one a row before the first token,
    for they would be alike, then `beams`.
    """
    padded = pad(rows, padding_id, side="left")
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
        origins = _grow(torch.log_softmax(output.logits[0].float(), dim=-1), live, whole, beams, eos_ids)
        if all(_settled(done, going, beams) for done, going in zip(whole, live, strict=True)):
            break
        from_b = torch.tensor(origins, device=model.device)
        cache.reorder_cache(from_b)
        ids_bT = torch.tensor([[beam.ids[-1]] for row in live for beam in row], device=model.device)
        places_bT = places_bT[from_b, -1:] + 1
        mask_bT = torch.cat([mask_bT[from_b], mask_bT.new_ones(len(origins), 1)], dim=1)
    return [
        sorted([*done, *going], key=lambda beam: -beam.logp)[:beams] for done, going in zip(whole, live, strict=True)
    ]


def _grow(
    logps_bV: Tensor, live: list[list[Beam]], whole: list[list[Beam]], beams: int, eos_ids: frozenset[int]
) -> list[int]:
    """Put the `beams` best continuations of every row into `live`, and those that end into `whole`; where in the batch
    each came from."""
    origins, start = [], 0
    for number, row in enumerate(live):
        own_nV = logps_bV[start : start + len(row)]
        totals_nV = own_nV + own_nV.new_tensor([beam.logp for beam in row])[:, None]
        # Of every beam no more than the end tokens can drop out, so that these are enough to go on with.
        best = totals_nV.flatten().topk(min(beams * (1 + len(eos_ids)), totals_nV.numel()))
        going: list[tuple[int, Beam]] = []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token = divmod(place, totals_nV.shape[1])
            if token not in eos_ids:
                going.append((start + parent, Beam(total, [*row[parent].ids, token])))
            elif rank < beams:
                whole[number].append(Beam(total, row[parent].ids))
        start += len(row)
        live[number] = [beam for _, beam in going[:beams]]
        origins += [parent for parent, _ in going[:beams]]
    return origins


def _settled(whole: list[Beam], live: list[Beam], beams: int) -> bool:
    """Whether nothing that still grows can come among the best: a log-probability only falls."""
    best = sorted((beam.logp for beam in whole), reverse=True)[:beams]
    return len(best) == beams and best[-1] >= max(beam.logp for beam in live)


@dataclass(frozen=True)
class Decoding:
    """How answers are made of logits. As it stands: greedily.

    A prompt that is asked several times gets as many answers: other draws, or the next best beams.
    """

    temperature: float = 0.0
    """Tokens are drawn from ``softmax(logits / temperature)``; 0 takes the most likely."""
    seed: int = 0
    """Of the draws. What is drawn for a prompt does not depend on what else is asked."""
    beams: int = 1
    """The answers of highest probability, as a search of so many beams finds them; 1: no search. Nothing is drawn
    then."""
    banned: tuple[str, ...] = ()
    """No answer begins with the first token of any of these texts as it stands behind the prompt, with or without a
    space in front."""
    banned_for: int = 1
    """How many of an answer's tokens the ban is for."""


GREEDY = Decoding()


def decode(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    how: Decoding,
    *,
    banned: frozenset[int],
    eos_ids: frozenset[int],
    padding_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """An answer to each row as `how` says, up to and without the first id of `eos_ids`; `banned` are its ids."""
    if how.beams > 1:
        return beam_search(
            model,
            rows,
            beams=how.beams,
            eos_ids=eos_ids,
            padding_id=padding_id,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    return greedy(
        model,
        rows,
        eos_ids=eos_ids,
        padding_id=padding_id,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        choose=chooser(how, rows, banned=banned, max_new_tokens=max_new_tokens),
    )


def chooser(how: Decoding, rows: Sequence[Sequence[int]], *, banned: frozenset[int], max_new_tokens: int) -> Choose:
    """What takes the next token of these rows."""
    if not how.temperature and not banned:
        return likeliest
    uniforms = torch.tensor(_uniforms(rows, how.seed, max_new_tokens) if how.temperature else [], dtype=torch.float64)
    forbidden = sorted(banned)

    def choose(logits_BV: Tensor, chosen: Sequence[int], count: int) -> Tensor:
        if forbidden and count < how.banned_for:
            logits_BV = logits_BV.index_fill(-1, torch.tensor(forbidden, device=logits_BV.device), -torch.inf)
        if not how.temperature:
            return logits_BV.argmax(-1)
        return draw(logits_BV / how.temperature, uniforms[list(chosen), count].to(logits_BV.device))

    return choose


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """(B,) tokens of the softmax, by the inverse of its distribution function: one number of [0, 1) a row, in fp64."""
    reached_BV = torch.softmax(logits_BV.double(), dim=-1).cumsum(-1)
    # Of the total, which rounding leaves a little off 1: nothing behind the last possible token is ever meant.
    wanted_B1 = uniform_B[:, None] * reached_BV[:, -1:]
    return torch.searchsorted(reached_BV, wanted_B1, right=True).squeeze(-1)


def _uniforms(rows: Sequence[Sequence[int]], seed: int, count: int) -> list[list[float]]:
    """Numbers of [0, 1) for each row, other ones each time that it stands there."""
    before: Counter[tuple[int, ...]] = Counter()
    found = []
    for row in map(tuple, rows):
        source = random.Random(f"{seed}/{before[row]}/{row}")
        found.append([source.random() for _ in range(count)])
        before[row] += 1
    return found
