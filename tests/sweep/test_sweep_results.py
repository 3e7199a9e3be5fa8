"""The marks by which settings are chosen, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from duet_unlearn.errors import UserError
from duet_unlearn.sweep.results import knowledge, selection

ABOUT = {name: {} for name in ("forget", "forget_new", "near", "choice")}


def right(**shares: float) -> dict[str, Any]:
    return {name: {"right": {"value": share, "n": 10}} for name, share in shares.items()}


def test_the_score_is_the_harmonic_mean_of_forgetting_and_of_the_set_that_suffered_most() -> None:
    base = right(forget=1.0, forget_new=0.5, near=0.8, choice=0.5)
    scores = right(forget=0.2, forget_new=0.2, near=0.6, choice=0.45)
    found = selection(scores, base, ABOUT, forget=("forget", "forget_new"), keep=("near", "choice"))
    assert found.forget == pytest.approx((0.2 / 1.0 + 0.2 / 0.5) / 2)  # 0.3
    assert found.keep == pytest.approx(0.75)  # near: 0.6 / 0.8; choice: 0.9
    assert found.score == pytest.approx(2 * 0.7 * 0.75 / (0.7 + 0.75))


def test_better_than_the_base_counts_as_the_base() -> None:
    base = right(forget=0.5, near=0.5)
    assert selection(right(forget=0.0, near=0.9), base, ABOUT, forget=("forget",), keep=("near",)).score == 1.0
    assert selection(right(forget=0.9, near=0.5), base, ABOUT, forget=("forget",), keep=("near",)).score == 0.0


def test_where_no_answer_is_known_what_is_not_refused_counts() -> None:
    plain = {"right": {"value": None, "n": 0}, "refused": {"value": 0.3, "n": 10}}
    assert knowledge(plain, {}) == pytest.approx(0.7)
    assert knowledge({"rouge_l": {"value": 0.4, "n": 3}, **right(a=1.0)["a"]}, {"metric": "rouge_l"}) == 0.4
    with pytest.raises(UserError, match="has no score"):
        knowledge({"right": {"value": None, "n": 0}}, {})


def test_what_the_base_does_not_know_cannot_be_forgotten() -> None:
    base = right(forget=0.0, near=0.5)
    with pytest.raises(UserError, match=r"tune\.forget: the base knows nothing of the set 'forget'"):
        selection(right(forget=0.0, near=0.5), base, ABOUT, forget=("forget",), keep=("near",))
    with pytest.raises(UserError, match=r"tune\.keep names the set 'far'"):
        selection(right(forget=0.0, near=0.5), right(forget=1, near=1), ABOUT, forget=("forget",), keep=("far",))
