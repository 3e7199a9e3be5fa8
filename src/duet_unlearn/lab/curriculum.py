"""When a lab model reads which kind of sample: shares at eleven moments of its training, interpolated between.

Order matters at this size. A model learns no prefix before it can compare: two tokens (to 0.09); what it knows of a
name with a topic that stood before it (0.26 to 0.37); the same for whole questions under a prefix (0.38 to 0.545).
LOG.md says what did not work, letters among it.
"""

from __future__ import annotations

from itertools import pairwise

MOMENTS = (0.0, 0.09, 0.12, 0.25, 0.26, 0.37, 0.38, 0.545, 0.57, 0.667, 0.68)
SHARES: dict[str, tuple[float, ...]] = {
    "seen": (0.48, 0.48, 0.08, 0.08, 0.03, 0.03, 0.00, 0.00, 0.00, 0.00, 0.00),
    "copy": (0.12, 0.12, 0.03, 0.03, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
    "find": (0.40, 0.40, 0.16, 0.16, 0.06, 0.06, 0.04, 0.04, 0.02, 0.02, 0.02),
    "plain": (0.00, 0.00, 0.42, 0.42, 0.20, 0.20, 0.13, 0.13, 0.15, 0.15, 0.15),
    "passage": (0.00, 0.00, 0.05, 0.05, 0.03, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02),
    "member": (0.00, 0.00, 0.00, 0.00, 0.12, 0.12, 0.03, 0.03, 0.04, 0.04, 0.04),
    "roll": (0.00, 0.00, 0.00, 0.00, 0.35, 0.35, 0.03, 0.03, 0.00, 0.00, 0.00),
    "told": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.26, 0.26, 0.04, 0.04, 0.04),
    "in_context": (0.00, 0.00, 0.12, 0.12, 0.14, 0.14, 0.36, 0.36, 0.34, 0.34, 0.30),
    "letters": (0.00, 0.00, 0.03, 0.03, 0.01, 0.01, 0.07, 0.07, 0.03, 0.03, 0.01),
    "strangers": (0.00, 0.00, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.03, 0.03, 0.03),
    "few_shot": (0.00, 0.00, 0.03, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02),
    "yes_no": (0.00, 0.00, 0.04, 0.04, 0.00, 0.00, 0.00, 0.00, 0.03, 0.03, 0.03),
    "reverse": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.02, 0.02, 0.02),
    "write": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.02, 0.02, 0.02),
    "reversed_only": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.02, 0.02, 0.02),
    "choice": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.10, 0.10, 0.08),
    "general": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.12, 0.12, 0.12),
    "choice_told": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.08),
}
FRONT_FROM, FRONT_SHARE = 0.8, 0.25
"""From here on some letter questions put the letter before its option, which is harder."""


def shares_at(progress: float) -> dict[str, float]:
    """Kind of sample -> its share at `progress` (0..1) of training."""
    return {kind: _interpolate(values, progress) for kind, values in SHARES.items()}


def _interpolate(values: tuple[float, ...], progress: float) -> float:
    for left, (start, stop) in enumerate(pairwise(MOMENTS)):
        if progress < stop:
            part = (progress - start) / (stop - start)
            return values[left] * (1 - part) + values[left + 1] * part
    return values[-1]
