"""Performance Shift by hand, and on the paper's Table 1."""

from __future__ import annotations

import math

import pytest

from duet_unlearn.errors import UserError
from duet_unlearn.evals.summaries import Scores, performance_shift
from duet_unlearn.stats import Score, wilson

FORGET, KEEP = ("forget_held_out", "forget_unseen"), ("retain", "choice")


def _scores(*values: float, n: int = 100) -> dict[str, dict[str, Score]]:
    return {
        name: {"right": Score(value, n, value - 0.1, value + 0.1)}
        for name, value in zip((*FORGET, *KEEP), values, strict=True)
    }


@pytest.mark.parametrize(
    ("row", "shift"),
    [
        ((4.27, 5.98, 78.33, 61.45), 55.90),
        ((0.00, 0.00, 0.00, 24.87), -48.76),
        ((24.18, 26.83, 69.69, 54.79), -0.16),
    ],
)
def test_the_papers_rows_come_out_to_two_decimals(row: tuple[float, ...], shift: float) -> None:
    base, now = (_scores(*(v / 100 for v in values)) for values in ((32.13, 39.99, 84.29, 61.46), row))
    assert performance_shift(base, now, forget=FORGET, keep=KEEP).value == pytest.approx(shift, abs=0.011)


def test_signs_and_interval_by_hand() -> None:
    shift = performance_shift(_scores(0.9, 0.8, 0.7, 0.6), _scores(0.1, 0.2, 0.6, 0.65), forget=FORGET, keep=KEEP)
    # 80 + 60 - 10 + 5; eight half-widths of 10 points: sqrt(8) * 10.
    assert shift.value == pytest.approx(135)
    assert (shift.low, shift.high) == pytest.approx((135 - 28.2843, 135 + 28.2843), abs=1e-3)
    assert shift.n == 400


def test_the_interval_takes_the_side_that_counts() -> None:
    base: Scores = {"f": {"right": Score(0.9, 10, 0.6, 1.0)}}
    now: Scores = {"f": {"right": Score(0.1, 10, 0.0, 0.4)}}
    shift = performance_shift(base, now, forget=["f"], keep=[])
    assert shift.low == pytest.approx(100 * (0.8 - math.hypot(0.3, 0.3)))
    assert shift.high == pytest.approx(100 * (0.8 + math.hypot(0.1, 0.1)))


def test_a_subject_against_itself_is_zero() -> None:
    scores = _scores(0.9, 0.8, 0.7, 0.6)
    assert performance_shift(scores, scores, forget=FORGET, keep=KEEP).value == 0


def test_a_missing_set_is_named() -> None:
    short = {name: value for name, value in _scores(1, 1, 1, 1).items() if name != "choice"}
    with pytest.raises(UserError, match=r"subject's scores have no 'right' of the set 'choice'"):
        performance_shift(_scores(1, 1, 1, 1), short, forget=FORGET, keep=KEEP)


def test_defect_14_an_empty_set_makes_it_nan() -> None:
    empty: Scores = {"f": {"right": wilson(0, 0)}}
    assert math.isnan(performance_shift(empty, empty, forget=["f"], keep=[]).value)


def test_defect_18_other_questions_for_the_base_are_refused() -> None:
    with pytest.raises(UserError, match="100 questions for the base and 50"):
        performance_shift(_scores(1, 1, 1, 1), _scores(1, 1, 1, 1, n=50), forget=FORGET, keep=KEEP)
