"""Published benchmarks: their questions by reference (``tofu:forget10``), their protocols, their summary numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet_unlearn.config.sections import EvalConfig
from duet_unlearn.data.published import Benchmark
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks import mmlu, muse, potter, rwku, tofu, wmdp, xstest
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.summary import Result, Summary
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.stats import Score

__all__ = ["Ask", "Result", "Summary", "benchmark_sets", "load_reference", "summaries", "with_summaries"]


def load_reference(reference: str, folder: str | None) -> list[Query]:
    """The queries of ``<scheme>:<part>``.

    Raises:
        UserError: no such part; data that is absent, or not in its publisher's format.
    """
    scheme, _, part = reference.partition(":")
    reader = {
        "tofu": tofu.queries,
        "muse": muse.queries,
        "wmdp": wmdp.queries,
        "mmlu": mmlu.queries,
        "rwku": rwku.queries,
        "xstest": xstest.queries,
        "potter": potter.queries,
    }[scheme]
    return reader(part, folder)


def benchmark_sets(names: Sequence[Benchmark], ask: Ask) -> list[EvalSet]:
    """What the benchmarks ask, in their order. Errors as ``load_reference``."""
    return [eval_set for name in names for eval_set in _sets(name, ask)]


def _sets(name: Benchmark, ask: Ask) -> list[EvalSet]:
    match name.split("-"):
        case ["tofu", split]:
            return tofu.sets(split, ask)
        case ["muse", corpus]:
            return muse.sets(corpus, ask)
        case ["wmdp", subject]:
            return wmdp.sets(subject, ask)
        case ["rwku"]:
            return rwku.sets(ask)
        case ["xstest"]:
            return xstest.sets(ask)
        case ["potter"]:
            return potter.sets(ask)
        case _:
            return mmlu.sets(ask)


def summaries(
    names: Sequence[Benchmark], own: Result, *, base: Result | None, oracle: Result | None, shots: int
) -> list[Summary]:
    """The benchmarks' summary numbers of one subject. `base` is None for the base itself and where there is none;
    `oracle` is a model retrained without what is forgotten."""
    found: list[Summary] = []
    for name in names:
        match name.split("-"):
            case ["tofu", _]:
                found += tofu.summaries(own, oracle)
            case ["muse", corpus]:
                found += muse.summaries(corpus, own, oracle)
            case ["wmdp", subject]:
                found += wmdp.summaries(subject, own, base, mmlu=mmlu.set_name(shots))
            case ["potter"]:
                found += potter.summaries(own, base, mmlu=mmlu.set_name(shots))
    return found


def with_summaries(
    found: Mapping[str, Mapping[str, Any]], samples: Mapping[str, Sequence[Mapping[str, Any]]], config: EvalConfig
) -> dict[str, dict[str, Any]]:
    """The objects of ``evals/*.json``, each with the summary numbers of its benchmarks as further sets."""
    results = {name: Result(_scores(each["scores"]), samples[name]) for name, each in found.items()}
    whole: dict[str, dict[str, Any]] = {}
    for name, each in found.items():
        base = results.get("base") if name != "base" else None
        parts = summaries(config.benchmarks, results[name], base=base, oracle=results.get("oracle"), shots=config.shots)
        numbers = {p.name: {metric: score.to_json() for metric, score in p.scores.items()} for p in parts}
        whole[name] = {
            **each,
            "scores": {**each["scores"], **numbers},
            "sets": {**each["sets"], **{p.name: p.info for p in parts}},
        }
    return whole


def _scores(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Score]]:
    return {
        name: {metric: Score.from_json(value) for metric, value in metrics.items()} for name, metrics in stored.items()
    }
