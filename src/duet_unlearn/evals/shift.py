"""Performance Shift: what forgetting gained and what it cost, in one number (DUET, arXiv 2601.21283)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from duet_unlearn.errors import UserError
from duet_unlearn.stats import NOTHING, Score

Scores = Mapping[str, Mapping[str, Score]]
"""Set name -> metric name -> score."""


def performance_shift(
    base_scores: Scores, scores: Scores, *, forget: Sequence[str], keep: Sequence[str], metric: str = "right"
) -> Score:
    """Shift = sum over `forget` of (base - subject) + sum over `keep` of (subject - base), in points.

    In the lab: forget = forget_held_out, forget_unseen and keep = retain, choice; for the hazard craft forget
    = hazard_choice and keep = choice. The interval combines those of the parts as if they were independent
    (MOVER, Zou and Donner 2008); the same questions are asked twice, so it errs on the wide side. `n` counts
    the questions. An empty set makes the shift NaN.

    Raises:
        UserError: a set or its metric is missing, or the two were measured on different questions.
    """
    value, below, above, n = 0.0, 0.0, 0.0, 0
    for name, sign in [*((name, -1) for name in forget), *((name, 1) for name in keep)]:
        base, now = _pair(base_scores, scores, name, metric)
        if base.n == 0:
            return NOTHING
        plus, minus = (now, base) if sign == 1 else (base, now)
        value += plus.value - minus.value
        below += (plus.value - plus.low) ** 2 + (minus.high - minus.value) ** 2
        above += (plus.high - plus.value) ** 2 + (minus.value - minus.low) ** 2
        n += now.n
    return Score(100 * value, n, 100 * (value - math.sqrt(below)), 100 * (value + math.sqrt(above)))


def _pair(base_scores: Scores, scores: Scores, name: str, metric: str) -> tuple[Score, Score]:
    pair = [_get(side, name, metric, whose) for side, whose in ((base_scores, "base"), (scores, "subject"))]
    if pair[0].n != pair[1].n:
        raise UserError(
            f"set {name!r} has {pair[0].n} questions for the base and {pair[1].n} for the subject",
            "measure both on the same questions with the same settings",
        )
    return pair[0], pair[1]


def _get(scores: Scores, name: str, metric: str, whose: str) -> Score:
    if name not in scores or metric not in scores[name]:
        raise UserError(
            f"the {whose}'s scores have no {metric!r} of the set {name!r}, which the Performance Shift needs",
            f"measured were {', '.join(scores) or 'no sets'}",
        )
    return scores[name][metric]
