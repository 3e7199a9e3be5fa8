"""The protocol ``likelihood``: how a subject takes given answers. What is stored suffices to score again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.likelihood import (
    Toward,
    TruthVariant,
    choice_probability,
    exact_memorisation,
    extraction_strength,
    probability,
    truth_ratio,
    truth_score,
)
from duet_unlearn.evals.privacy import PRIV_LEAK_K, loss, min_k, min_k_plus_plus, zlib_ratio
from duet_unlearn.evals.subject import Subject, TokenScores
from duet_unlearn.stats import Score, bootstrap_mean

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
    own, rest = scores[0], [_mean(each.logps) for each in scores[1:]]
    numbers = {
        "logp": _mean(own.logps),
        "loss": loss(own),
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


def _mean(logps: Sequence[float]) -> float:
    return round(sum(logps) / len(logps), DIGITS)
