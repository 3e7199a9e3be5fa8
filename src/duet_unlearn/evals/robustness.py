"""How much of what was forgotten comes back: formulas over measured knowledge. Knowledge is a share, 0..1."""

from __future__ import annotations

import math
from typing import NamedTuple

TOO_CLOSE = 0.01
"""A denominator below this is noise, and its ratio NaN."""


def undo_recovery(knowledge: float, *, unlearned: float, oracle: float) -> float:
    """``(P - P_unlearned) / (P_oracle - P_unlearned)``: how near a model is to relearning as slowly as an oracle.

    UNDO (arXiv 2506.06278). All three are the knowledge after the same relearning: P of the model in question,
    P_unlearned of one that was only unlearned, P_oracle of one that never knew. 0: relearns as fast as the former;
    1: as slowly as the oracle. NaN where those two are within 0.01.
    """
    distance = oracle - unlearned
    return (knowledge - unlearned) / distance if abs(distance) >= TOO_CLOSE else math.nan


def quantisation_robustness(*, before: float, after: float) -> float:
    """``min((1 - m_after) / (1 - m_before), 1)`` of a model, m its knowledge of what it forgot; 1: nothing came back.

    NaN where m_before = 1: it had forgotten nothing that could come back.
    """
    return min((1 - after) / (1 - before), 1.0) if before < 1 else math.nan


class MetricRobustness(NamedTuple):
    """How far a *metric* can be trusted when a model is tampered with, 0..1."""

    relearning: float
    """R of OpenUnlearning (arXiv 2506.12618)."""
    quantisation: float
    """Q of the same."""


def metric_robustness(*, lost_retrained: float, lost_unlearned: float, before: float, after: float) -> MetricRobustness:
    """``R = min(lost_retrained / lost_unlearned, 1)``, ``Q = min(after / before, 1)``: they rate a metric, not a model.

    The metric is one that is higher the more is forgotten. `lost_...` is how far it falls by the same relearning, for
    the retrained and for the unlearned model: a metric that falls more for the latter had overlooked what was left.
    `before` and `after` are the unlearned model's around quantisation. NaN where `lost_unlearned` or `before` is below
    0.01.
    """
    return MetricRobustness(_capped(lost_retrained, lost_unlearned), _capped(after, before))


def _capped(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole >= TOO_CLOSE else math.nan
