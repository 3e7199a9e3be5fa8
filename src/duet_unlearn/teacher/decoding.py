"""Answers as token ids: greedy decoding of many prompts at once, draws, forbidden tokens, and beam search."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

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
    """An answer to each row, up to and without the first id of `eos_ids`: the search of transformers, by the summed
    log-probability of an answer's tokens with its end token; lengths are not evened out.

    A row that stands there several times gets its best answer, the second best and so on, and from the `beams`-th on
    that one.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=0.0,
        early_stopping="never",  # an answer that still grows may come among the best
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=padding_id,
    )
    places: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(index)
    prompts, answers = list(places), [[0]] * len(rows)
    own, model.generation_config = model.generation_config, settings  # what the model brings along must not mix in
    try:
        with evaluating(model), torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
            for indices in batches([len(prompt) for prompt in prompts], batch_size=max(1, batch_size // beams)):
                padded = pad([prompts[i] for i in indices], padding_id, side="left")
                ids_BT, mask_BT = padded.ids_BT.to(model.device), padded.mask_BT.to(model.device)
                found = cast("Any", model).generate(
                    input_ids=ids_BT, attention_mask=mask_BT.long(), generation_config=settings
                )
                new = found[:, ids_BT.shape[1] :].tolist()
                for number, index in enumerate(indices):
                    best = [until_end(ids, eos_ids) for ids in new[number * beams : (number + 1) * beams]]
                    for rank, place in enumerate(places[prompts[index]]):
                        answers[place] = best[min(rank, beams - 1)]
    finally:
        model.generation_config = own
    return answers


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
