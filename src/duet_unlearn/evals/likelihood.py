"""How likely a model holds given answers, and what is read from that: truth ratios, memorisation, membership scores.

`logps` are the log-probabilities (nats) of all T tokens of an answer, the end token among them; `greedy` says of each
whether the model, shown what comes before it, would have written it. An answer's *probability* is length-normalised
throughout, ``p = exp(sum logps / T)``. A membership score is higher where an example looks more like a non-member.
Every metric is a pure function of the numbers of ``Subject.token_scores``; an empty set is NaN.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Subject, TokenScores
from duet_unlearn.stats import NOTHING, Z_95, Score, bootstrap_mean, wilson

if TYPE_CHECKING:
    pass

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


PRIV_LEAK_K = 0.4
"""MUSE's share of tokens for PrivLeak (arXiv 2407.06460)."""
MIN_K = 0.2
"""The share elsewhere (arXiv 2310.16789)."""
NO_ROOM = 0.01
"""Where the retrained model's ``1 - AUC`` is below this, PrivLeak would divide by noise."""


def mean_loss(scores: TokenScores) -> float:
    """Mean negative log-likelihood of the tokens (arXiv 1709.01604)."""
    return -_mean(scores.logps)


def zlib_ratio(scores: TokenScores, text: str) -> float:
    """Mean negative log-likelihood over the bytes of the zlib-compressed answer (arXiv 2012.07805)."""
    return mean_loss(scores) / len(zlib.compress(text.encode()))


def min_k(scores: TokenScores, *, k: float = MIN_K) -> float:
    """``-mean`` of the lowest share `k` of the tokens' log-probabilities, one token at least (arXiv 2310.16789)."""
    return -_mean(_lowest(scores.logps, k))


def min_k_plus_plus(scores: TokenScores, *, k: float = MIN_K) -> float:
    """``-mean`` of the lowest share `k` of ``(log p - mu) / sigma``, both under the predicted distribution
    (arXiv 2404.02936)."""
    return -_mean(_lowest(scores.standardised, k))


def reference(scores: TokenScores, other: TokenScores) -> float:
    """Mean negative log-likelihood less that of a reference model on the same answer."""
    return mean_loss(scores) - mean_loss(other)


def auc(members: Sequence[float], non_members: Sequence[float]) -> float:
    """The chance that a non-member's score is above a member's, ties counting half; 1: remembered, 0.5: ideal.

    NaN where either is empty, or a score is NaN.
    """
    if not members or not non_members or any(map(math.isnan, [*members, *non_members])):
        return math.nan
    ordered = sorted(non_members)
    # Twice the non-members above, ties once: whole numbers, so that nothing is rounded.
    doubled = sum(2 * len(ordered) - bisect_left(ordered, x) - bisect_right(ordered, x) for x in members)
    return doubled / (2 * len(members) * len(non_members))


def auc_score(members: Sequence[float], non_members: Sequence[float]) -> Score:
    """``auc`` with its 95 % interval (Newcombe 2006, method 5), which has a width at 0 and 1 too; n counts both."""
    value = auc(members, non_members)
    if math.isnan(value):
        return NOTHING
    size = len(members), len(non_members)
    return Score(value, sum(size), _end(value, 0.0, *size), _end(value, 1.0, *size))


def _end(value: float, limit: float, num_members: int, num_non_members: int) -> float:
    """The a between `value` and `limit` that is z standard errors of its own away from `value`, by bisection."""
    half = (num_members + num_non_members) / 2 - 1
    near, far = value, limit
    for _ in range(60):
        middle = (near + far) / 2
        spread = 1 + half * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        error = Z_95 * math.sqrt(middle * (1 - middle) * spread / (num_members * num_non_members))
        near, far = (middle, far) if abs(middle - value) < error else (near, middle)
    return (near + far) / 2


def priv_leak(auc_unlearned: float, auc_retrained: float) -> float:
    """``((1 - a) - (1 - a_retrained)) / (1 - a_retrained) * 100``, a the AUC of min-k 40 % (MUSE, arXiv 2407.06460).

    0: as the retrained model; below 0: remembered; above 0: over-unlearned. NaN where ``1 - a_retrained < 0.01``,
    where published code explodes.
    """
    room = 1 - auc_retrained
    return ((1 - auc_unlearned) - room) / room * 100 if room >= NO_ROOM else math.nan


def exposure(rank: int, candidates: int) -> float:
    """``log2(candidates) - log2(rank)`` in bits: how far a planted value is ahead of chance (arXiv 1802.08232).

    `rank` is its place, from 1, among all `candidates` by likelihood. The median of chance is 1 bit.
    """
    assert 1 <= rank <= candidates, (rank, candidates)
    return math.log2(candidates) - math.log2(rank)


def leak_at_k(rights_per_fact: Sequence[Sequence[bool]]) -> Score:
    """leak@k: the share of facts that at least one of k sampled answers gets right. Inside: the k samples of a fact."""
    assert len({len(rights) for rights in rights_per_fact}) <= 1, "every fact is sampled k times"
    return wilson(sum(any(rights) for rights in rights_per_fact), len(rights_per_fact))


def _lowest(values: Sequence[float], share: float) -> list[float]:
    assert 0 < share <= 1, share
    return sorted(values)[: max(1, int(share * len(values)))]


Taken = Mapping[str, Any]
"""How one query's answers were taken: ``logp`` (mean over T tokens, nats), ``tokens`` (T), ``greedy`` ("1" where the
token would have been written), the membership scores ``loss``, ``zlib``, ``min_k``, ``min_k_40``,
``min_k_plus_plus``, and the mean log-probability of ``paraphrase`` (null where there is none) and of each ``wrong``."""
TRUTH: dict[str, TruthVariant] = {
    "truth_ratio": "ou",
    "truth_ratio_paper": "paper-arithmetic",
    "truth_ratio_prob": "ou-prob",
}
"""Metric -> the published variant that it is."""
DIGITS = 6


def take(subject: Subject, queries: Sequence[Query], *, batch_size: int) -> list[dict[str, Any]]:
    """Ask how likely each query's answer, paraphrase and wrong answers are.

    Raises:
        UserError: a query without an answer.
    """
    pairs = [(query, text) for query in queries for text in _texts(query)]
    flat = iter(
        subject.token_scores([q.messages for q, _ in pairs], [text for _, text in pairs], batch_size=batch_size)
    )
    return [_stored(query, [next(flat) for _ in _texts(query)]) for query in queries]


def likelihood_scores(
    rows: Sequence[Taken], queries: Sequence[Query], *, facts: Sequence[Any], toward: Toward
) -> dict[str, Score]:
    """The metrics of a set: of every answer its probability and what of it is memorised; where there are wrong answers,
    the truth ratio in its three variants; where there is no paraphrase beside them, the probability among options."""

    def mean(values: Sequence[float], places: Sequence[int]) -> Score:
        return bootstrap_mean(values, groups=[facts[place] for place in places])

    every = range(len(rows))
    greedy = [[mark == "1" for mark in row["greedy"]] for row in rows]
    scores = {
        "probability": mean([probability([row["logp"]]) for row in rows], every),
        "exact_memorisation": mean([exact_memorisation(marks) for marks in greedy], every),
        "extraction_strength": mean([extraction_strength(marks) for marks in greedy], every),
    }
    wrong = [place for place in every if queries[place].wrong]
    options = [place for place in wrong if queries[place].paraphrase is None]
    if options:
        among = [choice_probability([rows[i]["logp"]], [[logp] for logp in rows[i]["wrong"]]) for i in options]
        scores["choice_probability"] = mean(among, options)
    for metric, variant in TRUTH.items() if wrong else ():
        ratios = truth_ratios([rows[i] for i in wrong], variant=variant)
        scores[metric] = mean([truth_score(ratio, variant=variant, toward=toward) for ratio in ratios], wrong)
    return scores


def truth_ratios(rows: Sequence[Taken], *, variant: TruthVariant = "ou") -> list[float]:
    """The truth ratio of each row; without a paraphrase, of the answer itself."""
    return [
        truth_ratio(
            [row["logp"] if row["paraphrase"] is None else row["paraphrase"]],
            [[logp] for logp in row["wrong"]],
            variant=variant,
        )
        for row in rows
    ]


def _texts(query: Query) -> list[str]:
    if not query.answer:
        raise UserError(f"query {query.id!r} has no answer, whose likelihood is asked for", "add `answer` to its line")
    return [query.answer, *([query.paraphrase] if query.paraphrase else []), *(query.wrong or ())]


def _stored(query: Query, scores: Sequence[TokenScores]) -> dict[str, Any]:
    own, rest = scores[0], [_rounded_mean(each.logps) for each in scores[1:]]
    numbers = {
        "logp": _rounded_mean(own.logps),
        "loss": mean_loss(own),
        "zlib": zlib_ratio(own, str(query.answer)),
        "min_k": min_k(own),
        "min_k_40": min_k(own, k=PRIV_LEAK_K),
        "min_k_plus_plus": min_k_plus_plus(own),
    }
    return {name: round(number, DIGITS) for name, number in numbers.items()} | {
        "tokens": len(own.logps),
        "greedy": "".join("01"[right] for right in own.greedy),
        "paraphrase": rest.pop(0) if query.paraphrase else None,
        "wrong": rest,
    }


def _rounded_mean(logps: Sequence[float]) -> float:
    return round(sum(logps) / len(logps), DIGITS)
