"""Numbers with their interval: shares, means, and what an empty set is."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A measured number with its 95 % interval."""

    value: float
    n: int
    """Questions that were measured; 0 leaves the three others NaN."""
    low: float
    high: float

    def to_json(self) -> dict[str, float | int | None]:
        """As a JSON object; NaN becomes null."""
        parts = {"value": self.value, "n": self.n, "low": self.low, "high": self.high}
        return {name: None if math.isnan(part) else part for name, part in parts.items()}

    @staticmethod
    def from_json(stored: Mapping[str, float | int | None]) -> Score:
        """What ``to_json`` wrote."""
        value, low, high = (math.nan if stored[k] is None else float(stored[k] or 0) for k in ("value", "low", "high"))
        return Score(value, int(stored["n"] or 0), low, high)


NOTHING = Score(math.nan, 0, math.nan, math.nan)
"""The score of an empty set: neither good nor bad."""


def wilson(k: int, n: int) -> Score:
    """The share k / n with Wilson's score interval (Wilson 1927); 0 of 0 is ``NOTHING``."""
    if n == 0:
        return NOTHING
    assert 0 <= k <= n, (k, n)
    share, square = k / n, Z_95**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return Score(share, n, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap_mean(values: Sequence[float], *, groups: Sequence[Hashable], seed: int = 0) -> Score:
    """The mean, with a percentile interval from resampling `groups`.

    A group is a fact: its wordings stand or fall together, so they are drawn together, and more wordings of
    the same facts do not make the interval narrower.
    """
    if not values:
        return NOTHING
    totals: dict[Hashable, tuple[float, int]] = {}
    for value, group in zip(values, groups, strict=True):
        total, count = totals.get(group, (0.0, 0))
        totals[group] = (total + value, count + 1)
    pairs, rng = list(totals.values()), random.Random(seed)
    means = sorted(_mean(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]
    return Score(math.fsum(values) / len(values), len(values), low, high)


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    return math.fsum(total for total, _ in pairs) / sum(count for _, count in pairs)
