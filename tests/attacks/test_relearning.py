"""Relearning as an attack: every source begins anew, and what plain unlearning hides comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import tiny
from whitebox import GOAL, Lab, queries, tiny_subject, with_adapter

from duet_unlearn.attacks import NotApplicable, attack, finding
from duet_unlearn.attacks.plain import Plain
from duet_unlearn.attacks.relearn import answers_of
from duet_unlearn.attacks.relearning import Relearn, scaled, with_adapters
from duet_unlearn.evals.subject import ModelSubject

Kind = Callable[..., Relearn]
KINDS = pytest.mark.parametrize("kind", [partial(Relearn), partial(Relearn, rank=8)], ids=["weights", "adapters"])


def said(config: Relearn, subject: ModelSubject | None = None) -> dict[str, list[str]]:
    found = config.carry_out(subject or tiny_subject(), GOAL)
    return {one.name: [answer.output for answer in one.said] for one in found}


@KINDS
def test_an_instance_is_a_source_a_rate_and_a_step_and_the_source_its_family(kind: Kind) -> None:
    config = kind(sources=("known", "others"), rates=(1e-3, 2e-3), steps=(1, 3), batch_size=4)
    seen: list[tuple[int, int]] = []
    found = config.carry_out(tiny_subject(), GOAL, lambda done, total: seen.append((done, total)))
    # 128 / 32 times the rate
    assert [(one.family, one.name) for one in found[:4]] == [
        ("known", "known, rate 0.004, 1 steps"),
        ("known", "known, rate 0.004, 3 steps"),
        ("known", "known, rate 0.008, 1 steps"),
        ("known", "known, rate 0.008, 3 steps"),
    ]
    assert [one.family for one in found] == ["known"] * 4 + ["others"] * 4
    assert all(one.right is not None and len(one.right) == 4 for one in found)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@KINDS
@pytest.mark.parametrize("make", [tiny_subject, with_adapter])
def test_every_source_and_rate_begins_with_the_models_own_weights(kind: Kind, make: type) -> None:
    """Whatever went before, and a rate that diverges too."""
    settings = {"steps": (2,), "batch_size": 2}
    both = said(kind(sources=("known", "others"), rates=(1e30, 0.02), **settings), make())
    alone = said(kind(sources=("others",), rates=(0.02,), **settings), make())
    again = said(kind(sources=("known",), rates=(0.02,), **settings), make())
    assert both.items() >= (alone | again).items()
    assert alone["others, rate 0.08, 2 steps"] != again["known, rate 0.08, 2 steps"]


@KINDS
def test_it_learns_what_it_is_shown(kind: Kind) -> None:
    """Four answers by heart: with the wanted facts among the known ones all come out."""
    goal = replace(GOAL, known=GOAL.wanted, max_new_tokens=16)
    one = kind(sources=("known",), rates=(2e-3,), steps=(60,), batch_size=4).carry_out(tiny_subject(), goal)[0]
    assert one.score.value == 1.0


def test_rates_fall_with_the_width() -> None:
    assert scaled((1e-3, 3e-3), tiny.llama(hidden=256), at=128) == pytest.approx((5e-4, 1.5e-3))
    assert scaled((1e-3,), tiny.llama(hidden=128), at=128) == (1e-3,)
    assert scaled((1e-3,), tiny.llama(hidden=16), at=None) == (1e-3,)
    (one,) = Relearn(sources=("known",), rates=(1e-5,), rates_at=None, steps=(1,)).carry_out(tiny_subject(), GOAL)
    assert one.name == "known, rate 1e-05, 1 steps"


def test_no_more_rows_are_made_than_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        "duet_unlearn.attacks.relearning.answers_of",
        lambda tokenizer, shown: made.append(len(shown)) or answers_of(tokenizer, shown),
    )
    goal = replace(GOAL, others=queries(" ".join(f"N{number}" for number in range(50))))
    Relearn(sources=("others",), rates=(1e-3,), steps=(2, 3), batch_size=4).carry_out(tiny_subject(), goal)
    assert made == [12]


def test_a_source_without_questions_is_passed_over() -> None:
    bare = replace(GOAL, known=(), neighbours=())
    found = Relearn(rates=(1e-3,), steps=(1,)).carry_out(tiny_subject(), bare)
    assert [one.family for one in found] == ["others"]
    with pytest.raises(NotApplicable, match="no question with an answer to train on"):
        Relearn(sources=("known",)).carry_out(tiny_subject(), bare)


@pytest.mark.parametrize(
    "config",
    [Relearn(rates=(1e-3,), steps=(10,)), replace(with_adapters(), rates=(1e-2,), steps=(20,), sources=("known",))],
)
def test_relearning_restores_what_was_fine_tuned_away_and_gives_the_oracle_nothing(
    config: Relearn,
) -> None:
    goal, student, oracle = Lab.goal(), Lab.subject("refusing"), Lab.subject("oracle")
    assert attack(student, Plain(), goal).best_of_all.value < 0.15
    relearned, guessed = (attack(one, config, goal) for one in (student, oracle))
    found = finding(relearned, guessed)
    assert found is not None
    assert found.above.low > 0.5
    assert guessed.best_of_all.low < 0.08  # a town in ten by chance, an instrument in twenty
