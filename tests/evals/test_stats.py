"""Shares and means against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from duet_unlearn.stats import bootstrap_mean, wilson


def test_wilson_of_nine_in_ten_is_the_published_interval() -> None:
    score = wilson(9, 10)
    assert (score.value, score.n) == (0.9, 10)
    assert score.low == pytest.approx(0.5958, abs=1e-4)
    assert score.high == pytest.approx(0.9821, abs=1e-4)


@pytest.mark.parametrize(("k", "low", "high"), [(0, 0.0, 0.2775), (10, 0.7225, 1.0)])
def test_wilson_stays_within_a_share(k: int, low: float, high: float) -> None:
    score = wilson(k, 10)
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-4)


def test_defect_14_an_empty_set_is_nan_and_not_0_or_1() -> None:
    for score in (wilson(0, 0), bootstrap_mean([], groups=[])):
        assert math.isnan(score.value)
        assert score.n == 0
        assert json.dumps(score.to_json()) == '{"value": null, "n": 0, "low": null, "high": null}'


def test_a_bootstrap_draws_facts_and_not_wordings() -> None:
    two_facts = bootstrap_mean([0.0] * 50 + [1.0] * 50, groups=["a"] * 50 + ["b"] * 50)
    hundred_facts = bootstrap_mean([0.0] * 50 + [1.0] * 50, groups=list(range(100)))
    assert two_facts.value == hundred_facts.value == 0.5
    assert (two_facts.low, two_facts.high) == (0.0, 1.0)
    assert 0.3 < hundred_facts.low < 0.45
    assert 0.55 < hundred_facts.high < 0.7


def test_a_bootstrap_is_repeatable_and_its_seed_counts() -> None:
    values, groups = [0.1, 0.4, 0.45, 0.9, 0.93], list("abcde")
    assert bootstrap_mean(values, groups=groups) == bootstrap_mean(values, groups=groups)
    assert bootstrap_mean(values, groups=groups) != bootstrap_mean(values, groups=groups, seed=1)


def test_a_bootstrap_needs_a_group_for_every_value() -> None:
    with pytest.raises(ValueError, match="shorter"):
        bootstrap_mean([0.1, 0.2], groups=["a"])
