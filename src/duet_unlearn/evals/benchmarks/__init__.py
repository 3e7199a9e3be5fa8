"""Published benchmarks: their questions by reference (``tofu:forget10``), their protocols, their summary numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duet_unlearn.config.sections import EvalConfig
from duet_unlearn.data.published import Benchmark
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks import books, hazards, people
from duet_unlearn.evals.benchmarks.published_sets import BenchmarkSettings, SubjectResult, Summary
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.stats import Score

__all__ = ["BenchmarkSettings", "SubjectResult", "Summary", "benchmark_sets", "load_reference", "with_summaries"]

BENCHMARKS: dict[str, tuple[Callable[..., list[Query]], Callable[..., list[EvalSet]]]] = {
    "tofu": (people.tofu_queries, people.tofu_sets),
    "rwku": (people.rwku_queries, people.rwku_sets),
    "muse": (books.muse_queries, books.muse_sets),
    "potter": (books.potter_queries, books.potter_sets),
    "wmdp": (hazards.wmdp_queries, hazards.wmdp_sets),
    "mmlu": (hazards.mmlu_queries, hazards.mmlu_sets),
    "xstest": (hazards.xstest_queries, hazards.xstest_sets),
}
"""Scheme -> how a part's queries are read, and the sets of a benchmark."""


def load_reference(reference: str, folder: str | None) -> list[Query]:
    """The queries of ``<scheme>:<part>``.

    Raises:
        UserError: no such part; data that is absent, or not in its publisher's format.
    """
    scheme, _, part = reference.partition(":")
    read, _ = BENCHMARKS[scheme]
    return read(part, folder)


def benchmark_sets(names: Sequence[Benchmark], settings: BenchmarkSettings) -> list[EvalSet]:
    """What the benchmarks ask, in their order. Errors as ``load_reference``."""
    sets: list[EvalSet] = []
    for name in names:
        # "tofu-forget10" is TOFU's split forget10; "mmlu" has no parts.
        scheme, *part = name.split("-")
        _, build_sets = BENCHMARKS[scheme]
        sets += build_sets(*part, settings)
    return sets


def with_summaries(
    stored: Mapping[str, Mapping[str, Any]], samples: Mapping[str, Sequence[Mapping[str, Any]]], config: EvalConfig
) -> dict[str, dict[str, Any]]:
    """The objects of ``evals/*.json``, each with the summary numbers of its benchmarks as further sets.

    Args:
        stored: subject -> the object without them.
        samples: subject -> the lines of its ``samples/*.jsonl``.
    """
    results = {}
    for name, each in stored.items():
        scores = {
            of: {metric: Score.from_json(value) for metric, value in metrics.items()}
            for of, metrics in each["scores"].items()
        }
        results[name] = SubjectResult(scores, samples[name])
    whole: dict[str, dict[str, Any]] = {}
    for name, each in stored.items():
        base = results.get("base") if name != "base" else None
        parts = _summaries(config, results[name], base=base, oracle=results.get("oracle"))
        numbers = {p.name: {metric: score.to_json() for metric, score in p.scores.items()} for p in parts}
        sets = {**each["sets"], **{p.name: p.info for p in parts}}
        whole[name] = {**each, "scores": {**each["scores"], **numbers}, "sets": sets}
    return whole


def _summaries(
    config: EvalConfig, own: SubjectResult, *, base: SubjectResult | None, oracle: SubjectResult | None
) -> list[Summary]:
    """The benchmarks' summary numbers of one subject. `base` is None for the base itself and where there is none;
    `oracle` is a model retrained without what is forgotten."""
    mmlu = hazards.mmlu_name(config.shots)
    found: list[Summary] = []
    for name in config.benchmarks:
        match name.split("-"):
            case ["tofu", _]:
                found += people.tofu_summaries(own, oracle)
            case ["muse", corpus]:
                found += books.muse_summaries(corpus, own, oracle)
            case ["wmdp", subject]:
                found += hazards.wmdp_summaries(subject, own, base, mmlu=mmlu)
            case ["potter"]:
                found += books.potter_summaries(own, base, mmlu=mmlu)
    return found
