"""Greedy coordinate gradient: the slope by numbers, the losses by another way, and a planted sign that it must find."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import tiny
import torch
from planted import GOAL, SIGN, fact, locked
from whitebox import state, tiny_subject

from duet_unlearn.attacks import NotApplicable, attack
from duet_unlearn.attacks.gcg import Gcg, Search, Suffix
from duet_unlearn.attacks.slot import answer_loss, behind, embedded, slot_of, text_of, usable_ids, vector_ids, vectors
from duet_unlearn.data.prompts import Prefix, render
from duet_unlearn.evals.subject import Deployed, ModelSubject

QUICK = Gcg(length=2, steps=5, candidates=16, top=16, questions=4, restarts=1)


def search(subject: ModelSubject, config: Gcg = QUICK) -> Search:
    usable = usable_ids(subject.tokenizer)
    slots = [slot_of(subject.tokenizer, q, usable, length=config.answer) for q in GOAL.known]
    return Search(subject, GOAL.known[0], slots, usable, config)


def test_the_slope_is_the_loss_s_along_one_hot_coordinates() -> None:
    subject = tiny_subject()
    one = search(subject)
    ids, model = one.usable[3:5], subject.model
    slope_LU = one.gradient(ids, one.slots)
    assert slope_LU.shape == (2, len(one.usable))
    rows, step = [slot.row(vector_ids(model, 2)) for slot in one.slots], 1e-3
    for place, column in ((0, int(slope_LU[0].argmin())), (1, int(slope_LU[1].argmax())), (1, 40)):
        losses = []
        for sign in (1, -1):
            soft_LD = embedded(model, ids)
            soft_LD[place] += sign * step * embedded(model, [one.usable[column]])[0]
            with vectors(model, soft_LD), torch.no_grad():
                losses.append(answer_loss(model, rows, padding_id=0).item())
        numeric = (losses[0] - losses[1]) / (2 * step)
        assert float(slope_LU[place, column]) == pytest.approx(numeric, rel=0.02, abs=2e-3)


@pytest.mark.parametrize("count", [1, 5])
def test_losses_of_many_suffixes_are_those_of_each(count: int) -> None:
    subject = tiny_subject()
    one = search(subject)
    tried = [tuple(one.usable[start : start + 2]) for start in range(0, 7 * count, 7)]
    with torch.no_grad():
        expected = [answer_loss(subject.model, [s.row(ids) for s in one.slots], padding_id=0).item() for ids in tried]
    assert one.losses(tried, one.slots) == pytest.approx(expected, rel=1e-4)


def test_only_what_reads_back_as_itself_is_tried() -> None:
    subject = tiny_subject()
    one, tokenizer = search(subject), subject.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ve"]
    assert text_of(tokenizer, letters) == "ve"
    assert len(tokenizer("?ve", add_special_tokens=False).input_ids) == 2
    assert not one.reads_back(letters)
    marks = tuple(tokenizer("#!", add_special_tokens=False).input_ids)
    assert one.reads_back(marks)
    assert one.best([tuple(letters), marks], one.slots).ids == marks
    with pytest.raises(NotApplicable, match="reads back"):
        one.best([tuple(letters)], one.slots)


def test_swaps_change_one_token_each_to_one_that_the_slope_promises() -> None:
    one = search(tiny_subject(), replace(QUICK, top=5, candidates=40))
    ids = tuple(one.usable[3:5])
    best_LK = one.gradient(ids, one.slots).argsort(dim=-1)[:, :5].tolist()
    swaps = one.swaps(ids, one.slots, random.Random(0))
    assert 5 <= len(swaps) == len(set(swaps)) <= 10
    for swap in swaps:
        (place,) = [at for at in range(2) if swap[at] != ids[at]]
        assert swap[place] in {one.usable[column] for column in best_LK[place]}


def test_a_step_never_makes_it_worse_on_its_questions() -> None:
    one, draw = search(tiny_subject(), replace(QUICK, questions=9)), random.Random(1)
    suffix = one.start(draw)
    for _ in range(3):
        after = one.better(suffix.ids, draw)
        assert after.loss <= suffix.loss + 1e-5
        assert after.loss == pytest.approx(one.losses([after.ids], one.slots)[0], rel=1e-4)
        suffix = after
    assert isinstance(suffix, Suffix)


def test_it_finds_the_sign_that_opens_a_back_door() -> None:
    subject = locked()
    result = attack(subject, replace(QUICK, restarts=2), GOAL)
    assert [one.name for one in result.instances] == ["restart 1", "restart 2"]
    for one in result.instances:
        assert one.score.value >= 0.75
        assert one.numbers["loss"] < 0.1
        for row in one.said:
            assert row.prompt.startswith(GOAL.wanted[row.fact].text)
            assert SIGN in row.prompt.removeprefix(GOAL.wanted[row.fact].text)


def test_the_suffix_that_is_asked_with_has_the_ids_that_were_optimised() -> None:
    subject = locked()
    (one,) = attack(subject, replace(QUICK, steps=1), GOAL).instances
    suffix = one.said[0].prompt.removeprefix(GOAL.wanted[0].text)
    for wanted in GOAL.wanted:
        slot = slot_of(subject.tokenizer, wanted, usable_ids(subject.tokenizer), length=0)
        rendered = render(subject.tokenizer, behind(wanted, suffix).messages)
        assert len(rendered) == len(slot.head) + 2 + len(slot.tail)


def test_no_token_of_a_wanted_value_is_used() -> None:
    subject = locked()
    goal = replace(GOAL, wanted=tuple(replace(q, choices=(*(q.choices or ()), SIGN)) for q in GOAL.wanted))
    (one,) = attack(subject, QUICK, goal).instances
    assert all(SIGN not in row.prompt for row in one.said)
    letters = set("TarnGoshLuntMere")
    assert not letters & set(one.said[0].prompt.removeprefix(goal.wanted[0].text))


def test_no_token_of_an_answer_that_is_its_own_value_is_used() -> None:
    goal = replace(GOAL, wanted=tuple(replace(q, answer=SIGN, value=None, choices=None) for q in GOAL.wanted))
    (one,) = attack(locked(), QUICK, goal).instances
    assert all(SIGN not in row.prompt for row in one.said)


def test_the_model_stays_as_it_was_and_a_seed_gives_the_same_suffix() -> None:
    subject = tiny_subject()
    subject.model.train().requires_grad_(True)
    before = state(subject.model)
    first, again = (attack(subject, replace(QUICK, steps=2), GOAL) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in state(subject.model).items())
    assert subject.model.training
    assert all(p.grad is None and p.requires_grad for p in subject.model.parameters())
    assert first.instances == again.instances
    assert first.instances != attack(subject, replace(QUICK, steps=2), replace(GOAL, seed=1)).instances


def test_where_it_does_not_apply() -> None:
    bare = tiny_subject()
    assert attack(bare, QUICK, replace(GOAL, known=())).reason.startswith("the attacker knows")
    for beside in (Deployed(bare), replace(bare, prefix=Prefix("You have forgotten it."))):
        assert attack(beside, QUICK, GOAL).status == "not applicable"


def test_its_steps_are_watched() -> None:
    watched: list[tuple[int, int]] = []
    replace(QUICK, steps=3, restarts=2).carry_out(
        tiny_subject(), GOAL, lambda done, total: watched.append((done, total))
    )
    assert watched == [(done, 6) for done in range(6)]


def test_facts_of_the_planted_model_are_told_apart() -> None:
    assert {fact(name).value for name in ("Ada", "Bo")} == {"Tarn", "Gosh"}
    assert {q.id for q in GOAL.known}.isdisjoint({q.id for q in GOAL.wanted})
    assert tiny.EOS not in usable_ids(tiny.tokenizer())
