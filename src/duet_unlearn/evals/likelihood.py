"""Metrics of an answer's likelihood, as pure functions of the numbers of ``Subject.token_scores``.

`logps` are the log-probabilities (nats) of all T tokens of an answer, the end token among them; `greedy` says of each
whether the model, shown what comes before it, would have written it. An answer's *probability* is length-normalised
throughout, ``p = exp(sum logps / T)``. An empty set is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from duet_unlearn.stats import NOTHING, Score

TruthVariant = Literal["ou", "paper-arithmetic", "ou-prob"]
"""Which published truth ratio: ``ou`` and ``ou-prob`` are OpenUnlearning's (arXiv 2506.12618), ``paper-arithmetic`` is
TOFU's as its text words it (arXiv 2401.06121)."""
Toward = Literal["forget", "keep"]
"""Whether the questions are to be forgotten or kept."""
MAX_EXP = 709.0
"""The largest exponent of a finite double."""


def probability(logps: Sequence[float]) -> float:
    """``exp(sum logps / T)``, 0..1: TOFU's probability of an answer (arXiv 2401.06121)."""
    return math.exp(_mean(logps))


def choice_probability(right: Sequence[float], wrong: Sequence[Sequence[float]]) -> float:
    """``p_right / (p_right + sum p_wrong)``, 0..1: TOFU's probability where there are options.

    Taken in logarithms, so that it is right where every p underflows.
    """
    own = _mean(right)
    return 1 / (1 + math.fsum(_exp(_mean(logps) - own) for logps in wrong))


def truth_ratio(
    right_logps: Sequence[float], wrong_logps_list: Sequence[Sequence[float]], *, variant: TruthVariant
) -> float:
    """How wrong answers fare against the paraphrased right one (real authors, world facts: the answer itself).

    ``ou``: ``R = exp(mean over wrong of log p_wrong) / p_right``, 0 to infinity. ``paper-arithmetic``: ``R = mean of
    p_wrong / p_right``. ``ou-prob``: ``p_right / (p_right + p_wrong)``, 0..1, with the mean p_wrong of ``ou``. Without
    a wrong answer NaN. OpenUnlearning adds 1e-10 to each denominator; here logarithms keep it from 0.
    """
    own, others = _mean(right_logps), [_mean(logps) for logps in wrong_logps_list]
    if variant == "paper-arithmetic":
        return _mean([_exp(other - own) for other in others])
    ratio = _exp(_mean(others) - own)
    return 1 / (1 + ratio) if variant == "ou-prob" else ratio


def truth_score(ratio: float, *, variant: TruthVariant, toward: Toward) -> float:
    """What one truth ratio R adds to the mean that is published, 0..1.

    ``forget``: ``min(R, 1/R)``, 1 where right and wrong are as likely. ``keep``: ``max(0, 1 - R)``. The ratio of
    ``ou-prob`` is averaged as it is, for either.
    """
    if math.isnan(ratio) or variant == "ou-prob":
        return ratio
    if toward == "keep":
        return max(0.0, 1 - ratio)
    return min(ratio, 1 / ratio) if ratio else 0.0


def forget_quality(student_ratios: Sequence[float], retrained_ratios: Sequence[float]) -> float:
    """The p-value of the two-sample Kolmogorov-Smirnov test between two models' truth ratios: 1 cannot tell them apart.

    TOFU (arXiv 2401.06121); SciPy's ``ks_2samp``, two-sided. `ratios` are R of the forget questions, one a question,
    of the unlearned model and of one retrained without them. NaN where either is empty.
    """
    from scipy.stats import ks_2samp

    if not student_ratios or not retrained_ratios:
        return math.nan
    return float(ks_2samp(student_ratios, retrained_ratios).pvalue)


def model_utility(parts: Mapping[str, Score]) -> Score:
    """The harmonic mean of nine: {retain, real authors, world facts} x {probability, ROUGE-L recall, truth ratio}.

    TOFU (arXiv 2401.06121). A part of 0 makes it 0; an empty part, or none at all, makes it NaN. It rises with each
    part, so the interval goes from the mean of the low ends to that of the high ends, which errs on the wide side.
    `n` counts all measurements.
    """
    scores = list(parts.values())
    if not scores or any(score.n == 0 for score in scores):
        return NOTHING
    value, low, high = (_harmonic([getattr(s, end) for s in scores]) for end in ("value", "low", "high"))
    return Score(value, sum(score.n for score in scores), low, high)


def exact_memorisation(greedy: Sequence[bool]) -> float:
    """The share of tokens that the model, shown all before them, would have written (arXiv 2205.10770)."""
    return _mean(greedy)


def extraction_strength(greedy: Sequence[bool]) -> float:
    """``1 - k / N``: k is the shortest shown part of the answer from which the rest comes out right (arXiv 2012.07805).

    Nothing right at the end is k = N and 0; published code stops at k = N - 1, and so never falls below 1 / N.
    """
    if not greedy:
        return math.nan
    last_wrong = max((place for place, right in enumerate(greedy, start=1) if not right), default=0)
    return 1 - last_wrong / len(greedy)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _exp(exponent: float) -> float:
    return math.inf if exponent > MAX_EXP else math.exp(exponent)


def _harmonic(values: Sequence[float]) -> float:
    return len(values) / math.fsum(1 / value for value in values) if all(value > 0 for value in values) else 0.0
