"""Results as plain text or JSON."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from duet_unlearn.teacher.probe import ProbeResult

METRICS = {
    "right": "share of answers with the right value as whole words and no other value of that attribute",
    "refused": "share of answers whose first sentence refuses, or says that it does not know",
    "wrong": "share of answers that are neither right nor refused",
    "right_per_character": "as right, for option texts whose log-probability is divided by their length (acc_norm)",
    "rouge_l": "mean ROUGE-L against the right answer (rouge_score 0.1.2), 0 to 1: F1 without stemmer; TOFU: recall"
    " with stemmer; RWKU: recall without",
    "points": "Performance Shift against the base, in points: forgetting gained plus change of what is kept; or"
    " PrivLeak: AUC of min-k 40 % against the oracle's, 0 ideal, below 0 remembered",
    "probability": "mean length-normalised probability of the right answer, end token included",
    "choice_probability": "mean of p_right / (p_right + sum of p_wrong), length-normalised",
    "truth_ratio": "TOFU's truth ratio as OpenUnlearning has it: mean min(R, 1/R) on forget sets, max(0, 1 - R) else",
    "truth_ratio_paper": "the same with the arithmetic mean of p_wrong, as TOFU's paper words it",
    "truth_ratio_prob": "mean of p_right / (p_right + p_wrong)",
    "exact_memorisation": "share of the answer's tokens that the model, shown all before them, would have written",
    "extraction_strength": "1 - k/N, k the shortest shown part of the answer from which the rest comes out right",
    "model_utility": "TOFU: harmonic mean of probability, ROUGE-L and truth ratio on retain, real authors, world facts",
    "forget_quality": "TOFU: p-value of a KS test between the truth ratios of the subject and of the oracle",
    "auc_gap": "membership: auc_min_k less the oracle's (MUSE without one: less 0.5); 0 ideal, above 0 remembered",
    "auc_min_k": "membership: AUC of min-k 20 %, forget rows as members; 1 remembered, ideal is the oracle's",
    "auc_min_k_plus_plus": "membership: AUC of min-k++ 20 %",
    "auc_loss": "membership: AUC of the mean negative log-likelihood",
    "auc_zlib": "membership: AUC of the mean negative log-likelihood over the zlib-compressed length",
}
"""Names in evals/*.json -> what they are. Each has n and a 95 % interval."""


def echo(text: str) -> None:
    """Print a result."""
    typer.echo(text)


def json_text(value: Any) -> str:
    """JSON of plain values or of a dataclass; NaN, the score of an empty set, is null."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(_without_nan(plain), indent=2, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def pairs_text(pairs: Mapping[str, str]) -> str:
    """Name and description, one a line."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in pairs.items())


def answers_text(answers: Mapping[str, str]) -> str:
    """Each subject's answer, its further lines indented under the first."""
    width = max(map(len, answers), default=0)
    indented = {name: text.strip().replace("\n", "\n" + " " * (width + 2)) for name, text in answers.items()}
    return pairs_text(indented)


def score_text(score: Mapping[str, Any], *, unit: Literal["%", "points", "nats"] = "%") -> str:
    """A score with its interval and n: ``4.0 % [1.1, 13.5] n=50``."""
    scale = 100 if unit == "%" else 1
    value, low, high = (_number(score.get(key), scale) for key in ("value", "low", "high"))
    interval = f" [{low}, {high}]" if low != "-" else ""
    return f"{value} {unit}{interval} n={score['n']}"


def _number(value: float | None, scale: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{scale * value:.{1 if scale == 100 else 2}f}"


def scores_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Subjects (each as in evals/<subject>.json) as blocks: one line a set, metrics with their interval."""
    blocks = []
    for name, result in results.items():
        lines = {
            title: ", ".join(
                f"{metric} {score_text(score, unit='points' if metric == 'points' else '%')}"
                for metric, score in metrics.items()
            )
            for title, metrics in result["scores"].items()
        }
        blocks.append(f"{result.get('label', name)}\n{pairs_text(lines)}")
    return "\n\n".join(blocks)


def probe_text(result: ProbeResult) -> str:
    """The verdict (with advice, if bad), the numbers behind it, what the prefix did to the first tokens."""
    from duet_unlearn.teacher.probe import ADVICE

    found = asdict(result)
    numbers = {
        "refused, with the prefix": score_text(found["refused"]),
        "refused, without it": score_text(found["refused_without"]),
        "retain still answered, with the prefix": score_text(found["answered"]),
        "top-K overlap at the first token, retain": score_text(found["agreement"]),
        "KL at the first token, retain": score_text(found["kl"], unit="nats"),
    }
    shifts = [f"{row['role']}: {row['query']}\n{_tokens(row)}" for row in found["shift"]]
    advice = [f"hint: {ADVICE}"] if not result.works else []
    return "\n\n".join([found["verdict"], *advice, pairs_text(numbers), *shifts])


def _tokens(row: Mapping[str, Any], *, count: int = 5) -> str:
    def side(name: str) -> str:
        return "  ".join(f"{token!r} {prob:.2f}" for token, prob in row[name][:count])

    return pairs_text({"  base": side("base"), "  prefix": side("prefix")})


def listing(what: Literal["recipes", "methods", "metrics"]) -> dict[str, str]:
    """Name -> one line about it."""
    if what == "metrics":
        return METRICS
    if what == "recipes":
        from duet_unlearn.config.reading import about, recipe_names

        return {name: about(name) for name in recipe_names()}
    from duet_unlearn.config.recipe import METHODS

    return {kind().name: (inspect.getdoc(kind) or "").split("\n")[0] for kind in METHODS}
