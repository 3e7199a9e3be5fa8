"""Robustness formulas by hand, and where they have no value."""

from __future__ import annotations

import math

import pytest

from duet_unlearn.evals.summaries import quantisation_robustness, undo_recovery


def test_undo_recovery_by_hand() -> None:
    # Multiplication after 60 steps of relearning: unlearned only .67, distilled with noise .26, oracle .02.
    assert undo_recovery(0.26, unlearned=0.67, oracle=0.02) == pytest.approx(0.41 / 0.65)
    assert undo_recovery(0.67, unlearned=0.67, oracle=0.02) == 0.0
    assert undo_recovery(0.02, unlearned=0.67, oracle=0.02) == 1.0
    assert math.isnan(undo_recovery(0.4, unlearned=0.5, oracle=0.499))


def test_quantisation_robustness_by_hand() -> None:
    assert quantisation_robustness(before=0.2, after=0.6) == pytest.approx(0.5)
    assert quantisation_robustness(before=0.2, after=0.1) == 1.0  # less came out than before: no bonus
    assert quantisation_robustness(before=0.0, after=1.0) == 0.0
    assert math.isnan(quantisation_robustness(before=1.0, after=1.0))
