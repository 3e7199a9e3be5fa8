"""What likelihoods give away: against scikit-learn, by hand, and what they find."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
from sklearn.metrics import roc_auc_score
from whitebox import GOAL, TOWNS, Lab, query, said, tiny_subject

from duet_unlearn.attacks import AttackResult, Instance, NotApplicable, attack
from duet_unlearn.attacks.privacy import LEAK, Exposure, Membership, leaked, mean_exposure
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.evals.likelihood import exposure, priv_leak
from duet_unlearn.methods.guarded import Refusing
from duet_unlearn.stats import Score

EVERY = Membership(non_members=3)


def test_membership_is_the_auc_of_true_answers_against_all_others() -> None:
    subject = tiny_subject()
    pairs = [(q, said(q.id, town), town == q.value) for q in GOAL.wanted for town in TOWNS]
    taken = subject.token_scores([q.messages for q, _, _ in pairs], [text for _, text, _ in pairs], batch_size=3)
    scores = [sum(one.logps) / len(one.logps) for one in taken]
    found = {one.name: one for one in EVERY.carry_out(subject, GOAL)}
    assert list(found) == ["loss", "zlib", "min-k 20 %", "min-k 40 %", "min-k++ 20 %"]
    assert found["loss"].score.value == pytest.approx(roc_auc_score([true for *_, true in pairs], scores))
    assert found["loss"].score.n == 16
    assert found["loss"].right is None
    mine = [-score for score, (*_, true) in zip(scores, pairs, strict=True) if true]
    assert found["loss"].numbers["members"] == pytest.approx(sum(mine) / 4)


def test_non_members_are_drawn_by_the_goals_seed() -> None:
    def of(seed: int) -> float:
        (one, *_) = Membership(non_members=1).carry_out(tiny_subject(), replace(GOAL, seed=seed))
        return one.numbers["non_members"]

    assert of(0) == of(0)
    assert len({of(seed) for seed in range(4)}) > 1


def test_wrong_answers_that_a_query_brings_are_the_non_members() -> None:
    one = replace(GOAL.wanted[0], choices=None, wrong=("Ada is a fish.", "Ada is a bird."))
    subject = tiny_subject()
    (found, *_) = Membership().carry_out(subject, replace(GOAL, wanted=(one,)))
    taken = subject.token_scores([one.messages] * 2, one.wrong or (), batch_size=2)
    expected = sum(-sum(t.logps) / len(t.logps) for t in taken) / 2
    assert found.numbers["non_members"] == pytest.approx(expected)
    assert found.score.n == 3


def test_exposure_by_hand() -> None:
    assert mean_exposure(0, 1, 8) == 3.0
    assert mean_exposure(3, 1, 8) == 1.0
    assert mean_exposure(2, 2, 4) == pytest.approx((2 - math.log2(3) + 0) / 2)  # rank 3 or 4 of 4
    assert mean_exposure(0, 20, 20) == pytest.approx(1.268, abs=1e-3)
    assert mean_exposure(0, 10_000, 10_000) == pytest.approx(1 / math.log(2), abs=2e-3)


def test_bits_are_those_of_the_values_rank() -> None:
    subject = tiny_subject()
    bits, firsts = [], 0
    for q in GOAL.wanted:
        logps = subject.logps([q.messages] * 4, [said(q.id, town) for town in TOWNS], batch_size=4)
        rank = 1 + sum(value > logps[TOWNS.index(str(q.value))] for value in logps)
        bits.append(exposure(rank, 4))
        firsts += rank == 1
    (found,) = Exposure().carry_out(subject, GOAL)
    assert found.score.value == pytest.approx(sum(bits) / 4)
    assert found.numbers == {"first": firsts / 4, "chance": pytest.approx(2 - math.log2(24) / 4)}


def test_who_says_nothing_is_exposed_by_chance() -> None:
    """Choices of as many tokens each: to a model that refuses everything all are alike."""
    choices = ("QQQ", "XXX", "ZZZ")
    words, one = tiny.tokenizer(), query("Ada", "XXX", choices)
    assert len({len(words(text).input_ids) for text in choices}) == 1
    (found,) = Exposure().carry_out(Refusing("guard", words, 300, ("No.",)), replace(GOAL, wanted=(one,)))
    assert found.score.value == pytest.approx(math.log2(3) - math.log2(6) / 3)
    assert found.numbers == {"first": 0.0, "chance": found.score.value}


def test_a_prefix_is_asked_like_any_other() -> None:
    subject = replace(tiny_subject(), prefix=Prefix("You have forgotten {concept}.", concept="Mira"))
    (found,) = Exposure().carry_out(subject, GOAL)
    (bare,) = Exposure().carry_out(tiny_subject(), GOAL)
    assert found.numbers["chance"] == bare.numbers["chance"]
    assert EVERY.carry_out(subject, GOAL) != EVERY.carry_out(tiny_subject(), GOAL)


@pytest.mark.parametrize("config", [Membership(), Exposure()], ids=["membership", "exposure"])
def test_without_choices_there_is_nothing_to_compare(config: Membership | Exposure) -> None:
    bare = replace(GOAL, wanted=tuple(replace(one, choices=None) for one in GOAL.wanted))
    with pytest.raises(NotApplicable):
        config.carry_out(tiny_subject(), bare)


def test_priv_leak_is_relative_to_the_oracle() -> None:
    def result(value: float) -> AttackResult:
        instances = (Instance("loss", Score(0.9, 5, 0.1, 1.0)), Instance(LEAK, Score(value, 5, 0.1, 1.0)))
        return AttackResult("membership", "x", "done", metric="auc", instances=instances)

    assert leaked(result(0.9), result(0.5)) == pytest.approx(-80.0)
    assert leaked(result(0.9), result(0.5)) == priv_leak(0.9, 0.5)
    assert math.isnan(leaked(result(0.9), AttackResult("membership", "oracle", "failed")))


def test_the_base_gives_everything_away_and_the_oracle_guesses() -> None:
    goal = Lab.goal()
    for name in ("base", "oracle"):
        members, exposed = (attack(Lab.subject(name), one, goal) for one in (Membership(), Exposure()))
        (bits,) = exposed.instances
        for one in members.instances:
            if name == "base":
                assert one.score.low > 0.95
            else:
                assert one.score.low < 0.5 < one.score.high
        if name == "base":
            assert bits.score.value > 4
            assert bits.numbers["first"] == 1.0
        else:
            assert bits.score.low < bits.numbers["chance"] < bits.score.high
