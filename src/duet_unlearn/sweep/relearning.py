"""After a test: show a model the answers of half of the forget facts, and ask it for the other half."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from duet_unlearn.attacks.fine_tuning import relearn
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import share_right
from duet_unlearn.evals.question_sets import fact
from duet_unlearn.job import Job, load_job
from duet_unlearn.stats import NOTHING, Score, wilson
from duet_unlearn.sweep.suite import Relearning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Halves(NamedTuple):
    """No fact is in both."""

    shown: tuple[Query, ...]
    asked: tuple[Query, ...]


def halves(job: Job, measure: str | None) -> Halves:
    """The forget queries of half of their facts, drawn by a fixed seed, the same for every method; and the questions
    about other facts, of the set `measure` or of the forget queries themselves.

    Raises:
        UserError: queries without answers; no such set; no question about another fact.
    """
    for query in job.train.forget:
        if not query.answer or not query.value:
            raise UserError(
                f"data.forget: query {query.id!r} has no answer or no value, and relearning needs both",
                'give every query an "answer" and a "value", or take after_tests.relearn out',
            )
    facts = sorted({fact(query) for query in job.train.forget})
    chosen = set(random.Random("relearn").sample(facts, len(facts) // 2))
    pool = job.train.forget if measure is None else _set(job, measure)
    asked = tuple(query for query in pool if query.value and fact(query) not in chosen)
    if not chosen or not asked:
        raise UserError(
            "relearning has nothing to show, or nothing to ask", "it needs two facts, and questions about both"
        )
    return Halves(tuple(query for query in job.train.forget if fact(query) in chosen), asked)


def _set(job: Job, name: str) -> tuple[Query, ...]:
    sets = {one.name: one.queries for one in job.suite()}
    if name not in sets:
        raise UserError(
            f"after_tests.relearn.measure names the set {name!r}, which is not asked", f"asked are {', '.join(sets)}"
        )
    return sets[name]


def relearned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    config: Relearning,
    *,
    seed: int,
) -> dict[str, Any]:
    """What ``attacks/relearn.json`` holds: the share right before, after the last step at each rate, and at the rate
    at which most comes back. A rate at which the loss is no number is left out."""
    half = halves(load_job(recipe), config.measure)

    def measure(one: PreTrainedModel) -> dict[str, float]:
        settings = recipe.evaluate
        share = share_right(
            one, tokenizer, half.asked, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
        )
        return {"right": share}

    curve = list(
        relearn(model, tokenizer, half.shown, measure=measure, rates=config.rates, steps=(0, config.steps), seed=seed)
    )
    scores = {(p.rate, p.step): wilson(round(p.knowledge["right"] * len(half.asked)), len(half.asked)) for p in curve}
    after = {rate: score for (rate, step), score in scores.items() if step == config.steps}
    worst = max(after, key=lambda rate: after[rate].value, default=math.nan)
    return {
        "steps": config.steps,
        "worst": after.get(worst, NOTHING).to_json(),
        "rate": worst if after else None,
        "before": _first(scores).to_json(),
        "rates": {f"{rate:g}": score.to_json() for rate, score in after.items()},
        "shown": len(half.shown),
        "asked": len(half.asked),
    }


def _first(scores: dict[tuple[float, int], Score]) -> Score:
    return next((score for (_, step), score in scores.items() if step == 0), NOTHING)
