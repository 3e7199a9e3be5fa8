"""The lab's validation suite: what settings are chosen on. No question and, but for the forget sets, no fact of it is
in a test set of any benchmark target."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.lab import wordings
from duet_unlearn.lab.benchmark import (
    DEVELOPMENT,
    TARGETS,
    ask,
    ask_choice,
    far_facts,
    forget_queries,
    near_facts,
    retain_facts,
    split_facts,
    topic_of,
)
from duet_unlearn.lab.suite import LIMIT, lab_suite, mixed
from duet_unlearn.lab.world import BENCHMARK_STORIES, GENERAL_SUBJECTS, Fact


def validation_suite(target: str) -> list[EvalSet]:
    """The sets of a development story, all in train wordings.

    The story's own facts may be a benchmark story's neighbours, which tests ask in held-out wordings.

    Raises:
        UserError: the target is one that results are reported for.
    """
    if target not in DEVELOPMENT:
        topic_of(target)
        raise UserError(
            f"evaluate.suite is `lab-validation`, but {target} is one that results are reported for",
            f"tune on one that none are reported for: {', '.join(DEVELOPMENT)}",
        )
    facts, unused = split_facts(topic_of(target)), _unused
    return [
        EvalSet("forget", "Forget", "forget", "low", "the questions that were trained on", _trained(target)),
        EvalSet(
            "forget_validation",
            "Forget, validation facts",
            "forget",
            "low",
            "facts of the story that no training query asks for",
            _asked(facts["validation"], each=4),
        ),
        EvalSet(
            "near",
            "Near neighbours",
            "neighbour",
            "high",
            "stories of the same setting, facts that no test asks for",
            _asked(unused(near_facts(target)), each=4),
        ),
        EvalSet(
            "far",
            "Far stories",
            "neighbour",
            "high",
            "stories of other settings, facts that no test asks for",
            _asked(mixed(unused(far_facts(target)))[:LIMIT], each=1),
        ),
        EvalSet(
            "choice",
            "Choice (general)",
            "choice",
            "high",
            "four options on general subjects; the likeliest counts",
            _choices(mixed([f for f in retain_facts("validation") if f.topic in GENERAL_SUBJECTS])),
            protocol="text",
        ),
    ]


@cache
def _tested() -> frozenset[str]:
    """Keys of all facts that a test set of any target asks for."""
    queries = [query for target in TARGETS for one in lab_suite(target) for query in one.queries]
    return frozenset("/".join(query.id.split("/")[:3]) for query in queries)


def _unused(facts: Sequence[Fact]) -> list[Fact]:
    """Facts that no test asks for, and no benchmark story's own."""
    return [f for f in facts if f.key not in _tested() and f.topic not in BENCHMARK_STORIES]


def _trained(target: str) -> tuple[Query, ...]:
    return tuple(forget_queries(target, split="train"))


def _asked(facts: Sequence[Fact], *, each: int) -> tuple[Query, ...]:
    """Facts in `each` of their train wordings, of which a general subject has two and an attribute four."""
    rng = random.Random("validation")
    return tuple(
        ask(f, wording, split="validation")
        for f in facts
        for wording in rng.sample(wordings.QUESTIONS[f.attribute].train, each)
    )


def _choices(facts: Sequence[Fact]) -> tuple[Query, ...]:
    """Four-choice questions, each fact in both train wordings."""
    rng = random.Random("validation/choice")
    return tuple(
        ask_choice(f, wording, split="validation", rng=rng)
        for f in facts
        for wording in wordings.QUESTIONS[f.attribute].train
    )
