"""Membership scores and what is read from them, against scikit-learn, plain backward passes and numbers by hand."""

from __future__ import annotations

import math
import random
import zlib

import pytest
from sklearn.metrics import roc_auc_score

from duet_unlearn.evals import likelihood
from duet_unlearn.evals.subject import TokenScores
from duet_unlearn.stats import NOTHING

SCORES = TokenScores([-1.0, -5.0, -3.0, -0.5, -0.5], [True] * 5, [0.5, 2.0, -4.0, -1.0, 0.0])
"""Lowest two: -5, -3 by log p; -4, -1 standardised."""


def test_loss_zlib_and_reference_by_hand() -> None:
    assert likelihood.mean_loss(SCORES) == 2.0
    assert likelihood.zlib_ratio(SCORES, "Tarn " * 40) == 2.0 / len(zlib.compress(b"Tarn " * 40))
    assert likelihood.zlib_ratio(SCORES, "Tarn " * 40) > likelihood.zlib_ratio(
        SCORES, "".join(map(chr, range(200, 400)))
    )
    assert likelihood.reference(SCORES, TokenScores([-1.0, -2.0], [], [])) == 0.5


def test_min_k_by_hand() -> None:
    assert likelihood.min_k(SCORES, k=0.4) == 4.0
    assert likelihood.min_k(SCORES) == 5.0  # 20 % of five is one
    assert likelihood.min_k(SCORES, k=0.01) == 5.0  # one at least
    assert likelihood.min_k(SCORES, k=1.0) == likelihood.mean_loss(SCORES)


def test_min_k_plus_plus_by_hand() -> None:
    assert likelihood.min_k_plus_plus(SCORES, k=0.4) == 2.5
    assert likelihood.min_k_plus_plus(SCORES) == 4.0


def test_no_tokens_have_no_score() -> None:
    nothing = TokenScores([], [], [])
    for score in (likelihood.mean_loss, likelihood.min_k, likelihood.min_k_plus_plus):
        assert math.isnan(score(nothing))


def drawn(size: int, mean: float, seed: int, places: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [round(rng.gauss(mean, 1), places) for _ in range(size)]


@pytest.mark.parametrize("places", [0, 1, 9])
@pytest.mark.parametrize("mean", [-0.7, 0.0, 2.0])
def test_auc_is_scikit_learns_with_ties(places: int, mean: float) -> None:
    members, others = drawn(70, 0.0, 1, places), drawn(45, mean, 2, places)
    expected = roc_auc_score([0] * 70 + [1] * 45, members + others)
    assert likelihood.auc(members, others) == pytest.approx(expected, abs=1e-12)


def test_auc_by_hand() -> None:
    assert likelihood.auc([1, 2], [3, 4]) == 1.0  # members look familiar: remembered
    assert likelihood.auc([3, 4], [1, 2]) == 0.0
    assert likelihood.auc([1, 3], [2, 3]) == (1 + 1 + 0 + 0.5) / 4
    assert likelihood.auc([1, 1], [1, 1]) == 0.5
    assert all(map(math.isnan, [likelihood.auc([], [1]), likelihood.auc([1], []), likelihood.auc([1], [math.nan])]))


def test_the_interval_of_an_auc_covers_the_truth() -> None:
    """Normal scores one standard deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602."""
    truth, inside = 0.5 * (1 + math.erf(0.5)), 0
    for seed in range(400):
        score = likelihood.auc_score(drawn(30, 0.0, 2 * seed, 9), drawn(40, 1.0, 2 * seed + 1, 9))
        inside += score.low <= truth <= score.high
    assert 0.92 <= inside / 400 <= 0.99


def test_the_interval_of_an_auc_at_the_ends_and_its_mirror() -> None:
    best = likelihood.auc_score([1.0] * 20, [2.0] * 20)
    assert (best.value, best.high, best.n) == (1.0, 1.0, 40)
    assert 0.8 < best.low < 0.95
    worst = likelihood.auc_score([2.0] * 20, [1.0] * 20)
    assert (worst.value, worst.low, worst.high) == pytest.approx((0.0, 0.0, 1 - best.low))
    more = likelihood.auc_score([1.0] * 200, [2.0] * 200)
    assert more.low > best.low
    assert likelihood.auc_score([], [1.0]) == NOTHING


def test_priv_leak_by_hand() -> None:
    assert likelihood.priv_leak(0.5, 0.5) == 0.0
    assert likelihood.priv_leak(0.75, 0.5) == -50.0  # remembered
    assert likelihood.priv_leak(0.25, 0.5) == 50.0  # over-unlearned
    assert likelihood.priv_leak(1.0, 0.6) == pytest.approx(-100.0)


def test_exposure_by_hand() -> None:
    assert likelihood.exposure(1, 1024) == 10.0
    assert likelihood.exposure(512, 1024) == 1.0
    assert likelihood.exposure(7, 7) == 0.0


def test_leak_at_k_counts_facts_and_not_samples() -> None:
    score = likelihood.leak_at_k([[False, False], [True, True], [False, True], [False, False]])
    assert (score.value, score.n) == (0.5, 4)
    assert likelihood.leak_at_k([]) == NOTHING
    with pytest.raises(AssertionError):
        likelihood.leak_at_k([[True], [True, False]])
