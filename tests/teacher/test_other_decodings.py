"""Sampling, bans and beam search: numbers by hand, transformers' own search, and every answer there is."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import tiny
import torch
from test_decode import ROWS
from transformers import GenerationConfig

from duet_unlearn.teacher.decoding import GREEDY, Decoding, beam_search, decode, draw, greedy

ENDS = frozenset({tiny.EOS})


def said(
    how: Decoding, rows: list[list[int]] = ROWS, *, batch: int = 4, count: int = 5, banned: tuple[int, ...] = ()
) -> list[list[int]]:
    return decode(
        tiny.llama(layers=2),
        rows,
        how,
        banned=frozenset(banned),
        eos_ids=ENDS,
        padding_id=tiny.EOS,
        max_new_tokens=count,
        batch_size=batch,
    )


def test_as_it_stands_it_is_greedy() -> None:
    model = tiny.llama(layers=2)
    assert said(GREEDY) == greedy(model, ROWS, eos_ids=ENDS, padding_id=tiny.EOS, max_new_tokens=5, batch_size=4)


# Sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.19, 1), (0.2, 2), (0.69, 2), (0.701, 3), (1 - 2**-53, 3)], ids=str
)
def test_a_token_is_where_its_part_of_the_whole_is_reached(uniform: float, token: int) -> None:
    logits_BV = torch.tensor([[0.0, 0.2, 0.5, 0.3, 0.0]]).log()  # the first and the last are impossible
    assert draw(logits_BV, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    count, row = 1000, ROWS[0]
    drawn = said(Decoding(temperature=temperature, seed=3), [row] * count, batch=250, count=1)
    with torch.no_grad():
        logits_V = tiny.llama(layers=2)(input_ids=torch.tensor([row])).logits[0, -1]
    probs = torch.softmax(logits_V / temperature, dim=-1).tolist()
    seen = Counter(ids[0] if ids else tiny.EOS for ids in drawn)
    for token, prob in enumerate(probs):
        assert abs(seen[token] - count * prob) <= 5 * math.sqrt(count * prob * (1 - prob)) + 1


def test_near_zero_the_likeliest_is_drawn() -> None:
    assert said(Decoding(temperature=1e-4)) == said(GREEDY)


def test_what_is_drawn_for_a_row_does_not_depend_on_the_others() -> None:
    how = Decoding(temperature=1.0, seed=1)
    together = said(how, ROWS * 3)
    assert together == said(how, ROWS * 3, batch=1)
    assert together[:4] == said(how)
    assert [together[place] for place in (1, 5, 9)] == said(how, [ROWS[1]] * 3)


def test_a_row_is_drawn_anew_each_time_and_by_the_seed() -> None:
    how = Decoding(temperature=1.0)
    assert len({tuple(ids) for ids in said(how, [ROWS[1]] * 6)}) > 1
    assert said(how, ROWS) == said(how, ROWS)
    assert said(how, ROWS) != said(Decoding(temperature=1.0, seed=1), ROWS)


# Bans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 3])
@torch.no_grad()
def test_what_is_banned_is_not_said_at_the_first_places(positions: int) -> None:
    model = tiny.llama(layers=2)
    banned = tuple({token for ids in said(GREEDY) for token in ids[:2]})
    for row, got in zip(ROWS, said(Decoding(banned=("x",), banned_for=positions), banned=banned), strict=True):
        ids = list(row)
        for place in range(5):
            logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            if place < positions:
                logits_V[list(banned)] = -math.inf
            ids.append(int(logits_V.argmax()))
        new = ids[len(row) :]
        assert got == (new[: new.index(tiny.EOS)] if tiny.EOS in new else new)
    assert said(Decoding(banned=("x",), banned_for=positions), banned=banned) != said(GREEDY)


# Beams ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_beams_are_those_of_transformers(beams: int, place: int) -> None:
    model, end = tiny.llama(layers=2), said(GREEDY)[1][place]  # an end that comes
    got = beam_search(
        model, ROWS * beams, beams=beams, eos_ids=frozenset({end}), padding_id=0, max_new_tokens=5, batch_size=2 * beams
    )
    settings = GenerationConfig(
        max_new_tokens=5,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=0.0,
        early_stopping="never",
        do_sample=False,
        pad_token_id=0,
        eos_token_id=end,
    )
    assert {len(ids) for ids in got} >= {5, place}
    for number, row in enumerate(ROWS):
        mask = torch.ones(1, len(row), dtype=torch.long)
        theirs = model.generate(torch.tensor([row]), attention_mask=mask, generation_config=settings)
        assert [got[number + 4 * rank] for rank in range(beams)] == [
            list(itertools.takewhile(lambda token: token != end, ids[len(row) :])) for ids in theirs.tolist()
        ]


@torch.no_grad()
def test_beams_that_are_wide_enough_find_the_likeliest_of_all_answers() -> None:
    model, row, vocabulary, end = tiny.llama(vocabulary=6), [2, 3, 4], 6, 5
    found: dict[tuple[int, ...], float] = {}
    for answer in itertools.product(range(vocabulary), repeat=3):
        whole = answer[: answer.index(end) + 1] if end in answer else answer
        logps_TV = torch.log_softmax(model(input_ids=torch.tensor([[*row, *whole]])).logits[0].float(), dim=-1)
        found[whole] = sum(float(logps_TV[len(row) - 1 + place, token]) for place, token in enumerate(whole))
    best = sorted(found, key=lambda whole: -found[whole])[:5]
    got = beam_search(
        model, [row] * 5, beams=40, eos_ids=frozenset({end}), padding_id=0, max_new_tokens=3, batch_size=40
    )
    assert got == [[token for token in whole if token != end] for whole in best]


def test_a_row_that_is_asked_more_often_than_there_are_beams_gets_the_last_again() -> None:
    several = beam_search(
        tiny.llama(), ROWS[:1] * 3, beams=2, eos_ids=ENDS, padding_id=0, max_new_tokens=2, batch_size=4
    )
    assert several[1] == several[2] != several[0]
    alone = beam_search(tiny.llama(), ROWS[:1], beams=2, eos_ids=ENDS, padding_id=0, max_new_tokens=2, batch_size=1)
    assert alone == several[:1]
