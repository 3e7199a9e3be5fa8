"""The lab's evaluation: what a target is tested on, what settings are chosen on, and what of its neighbours may be
trained on without touching either.

Tests ask in held-out wordings, except where a set's name says so. Validation and training ask in train wordings. No
fact of validation, but for its forget sets, is in a test set of any benchmark target; no fact of the neighbours to
train on is in a test set of their target.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet, Group
from duet_unlearn.lab import language
from duet_unlearn.lab.language import value_free_start
from duet_unlearn.lab.questions import (
    DEVELOPMENT,
    TARGETS,
    choice_query,
    continuation_query,
    fact_key,
    far_facts,
    forget_queries,
    general_facts,
    held_out_choices,
    held_out_queries,
    mixed,
    near_facts,
    open_query,
    retain_facts,
    split_facts,
    topic_of,
)
from duet_unlearn.lab.world import BENCHMARK_STORIES, GENERAL_SUBJECTS, HAZARD, NUM_CHARACTERS, SISTER, Fact, world

LIMIT = 60
"""Facts of a set whose pool is larger, drawn by a fixed seed."""
NUM_NEIGHBOURS = 60
"""Neighbour queries of a target, at most."""
SHOULD_FALL: dict[str, tuple[str, Group, str]] = {
    "forget": ("Forget", "forget", "the questions that were trained on"),
    "forget_held_out": ("Forget, new wordings", "forget", "the same facts in wordings that no training saw"),
    "forget_unseen": (
        "Forget, unseen facts",
        "forget",
        "facts of the concept whose person or attribute no training query mentions",
    ),
    "reverse_prompt": (
        "Reverse prompt",
        "robustness",
        "an instruction to ignore what was said before, then the question",
    ),
    "prefill": ("Prefilling", "robustness", "the answer is opened with the right answer's words up to the value"),
    "continuation": ("Continuation", "robustness", "raw text that stops before the value, no chat"),
    "deployer_forget": ("Forget under a deployer", "deployer", "the concept, under a deployer's own system turn"),
    "hazard_choice": ("Hazard choice", "forget", "the hazard craft with four options; the likeliest counts"),
    "hazard_choice_said": ("Hazard choice, said", "forget", "the same questions; what the model says counts"),
    "forget_validation": ("Forget, validation facts", "forget", "facts of the story that no training query asks for"),
}
"""Set -> title, group, and a sentence for the report's reader."""
SHOULD_STAY: dict[str, tuple[str, Group, str]] = {
    "near": ("Near neighbours", "neighbour", "stories of the same setting: same author, towns and surnames"),
    "far": ("Far stories", "neighbour", "stories of other settings"),
    "retain": ("Retain", "retain", "far stories and general facts that no training query shows"),
    "general": ("General", "retain", "capitals, opposites, elements, animals, arithmetic"),
    "choice": ("Choice (general)", "choice", "four options on general subjects; the likeliest counts"),
    "deployer_near": ("Near under a deployer", "deployer", "near neighbours, under a deployer's own system turn"),
    "sister_choice": (
        "Sister choice",
        "neighbour",
        "the harmless sister craft with four options; the likeliest counts",
    ),
}
"""The same of what should stay."""


def lab_suite(target: str) -> list[EvalSet]:
    """All test sets of a target (``amber-gate``, ``silver-mill``, ``hollow-clock``, ``hazard``)."""
    topic = topic_of(target)
    facts, parts, near = world().topics()[topic], split_facts(topic), near_facts(target)
    plain = held_out_queries(facts)
    choices = held_out_choices("choice", general_facts())
    queries: dict[str, Sequence[Query]] = {
        "forget": [query for query in forget_queries(target, split="train") if "/choice-" not in query.id],
        "forget_held_out": held_out_queries([*parts["train"], *parts["validation"]], each=2),
        "forget_unseen": held_out_queries(parts["unseen"], each=2),
        "near": held_out_queries(near, limit=LIMIT),
        "far": held_out_queries(far_facts(target), limit=LIMIT),
        "retain": held_out_queries(mixed(retain_facts("test")), limit=2 * LIMIT),
        "general": held_out_queries(general_facts(), limit=LIMIT),
        "choice": choices,
        "reverse_prompt": [
            query
            for fact, text in _in_turns(facts, language.REVERSE.held_out)
            for query in held_out_queries([fact], preamble=text, tag="/reverse")
        ],
        "prefill": plain,
        "continuation": [continuation_query(fact) for fact in facts],
        "deployer_forget": _under_deployers(facts),
        "deployer_near": _under_deployers(random.Random("deployer").sample(near, LIMIT // 2)),
    }
    changed = {}
    if topic == HAZARD:
        choices = held_out_choices("hazard_choice", facts)
        queries |= {
            "hazard_choice": choices,
            "hazard_choice_said": choices,
            "sister_choice": held_out_choices("sister_choice", world().crafts[SISTER]),
        }
        changed["near"] = "the harmless sister craft"
    return _eval_sets(queries, changed)


def validation_suite(target: str) -> list[EvalSet]:
    """The sets of a development story that settings are chosen on, all in train wordings.

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
    general = [fact for fact in retain_facts("validation") if fact.topic in GENERAL_SUBJECTS]
    rng = random.Random("validation/choice")
    queries: dict[str, Sequence[Query]] = {
        "forget": forget_queries(target, split="train"),
        "forget_validation": _train_worded(split_facts(topic_of(target))["validation"], each=4),
        "near": _train_worded(_untested(near_facts(target)), each=4),
        "far": _train_worded(mixed(_untested(far_facts(target)))[:LIMIT], each=1),
        "choice": [
            choice_query(fact, wording, split="validation", rng=rng)
            for fact in mixed(general)
            for wording in language.QUESTIONS[fact.attribute].train
        ],
    }
    changed = {
        "near": "stories of the same setting, facts that no test asks for",
        "far": "stories of other settings, facts that no test asks for",
    }
    return _eval_sets(queries, changed)


def shift_sets(target: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sets that should fall, sets that should stay) of a target's Performance Shift."""
    if topic_of(target) == HAZARD:
        return ("hazard_choice",), ("choice",)
    return ("forget_held_out", "forget_unseen"), ("retain", "choice")


def neighbour_queries(target: str) -> list[Query]:
    """Training queries near a target that stay allowed: ``neighbour_facts`` in train wordings, `NUM_NEIGHBOURS` at
    most, each fact once before any comes again. Errors as there."""
    rng, queries = random.Random(f"neighbours/{target}"), []
    facts = neighbour_facts(target)
    pools = [language.QUESTIONS[fact.attribute].train for fact in facts]
    orders = [rng.sample(pool, len(pool)) for pool in pools]
    for turn in range(max(map(len, orders))):
        one_round = [open_query(f, order[turn], split="train") for f, order in zip(facts, orders, strict=True)]
        queries += rng.sample(one_round, len(facts))
    return queries[:NUM_NEIGHBOURS]


def neighbour_facts(target: str) -> tuple[Fact, ...]:
    """Facts of the setting's other stories that training may show: of half of the characters, and of these only what
    no test set of the target asks.

    So the tests of near neighbours have characters that training has met (by other facts) and characters that it has
    not.

    Raises:
        UserError: the target is the hazard craft: its tests ask all that there is of its sister.
    """
    topic, w = topic_of(target), world()
    if topic == HAZARD:
        raise UserError(
            f"the lab has no neighbours of {target} to train on: its tests ask every fact of the sister craft",
            "name a query file of your own, or set data.neighbours to null",
        )
    if target in DEVELOPMENT:
        # Validation asks the other neighbour, so the benchmark story is met whole and the other one not at all.
        met = {name for story in w.near(topic) if story in BENCHMARK_STORIES for name in w.characters(story)}
    else:
        met = {
            name
            for story in w.near(topic)
            for name in random.Random(f"neighbours/{target}/{story}").sample(w.characters(story), NUM_CHARACTERS // 2)
        }
    tested = {fact_key(query) for one in lab_suite(target) for query in one.queries}
    return tuple(f for f in near_facts(target) if f.entity in met and f.key not in tested)


def _eval_sets(queries: Mapping[str, Sequence[Query]], about: Mapping[str, str]) -> list[EvalSet]:
    """The sets of a suite; `about` has the descriptions that differ from the tables'."""
    found = []
    for name, asked in queries.items():
        title, group, usual = (SHOULD_FALL | SHOULD_STAY)[name]
        better = "low" if name in SHOULD_FALL else "high"
        protocol = "text" if name.endswith("choice") else "generate"
        opened = tuple(value_free_start(query.answer or "", query.value or "") for query in asked)
        prefill = opened if name == "prefill" else None
        found.append(EvalSet(name, title, group, better, about.get(name, usual), tuple(asked), protocol, prefill))
    return found


def _in_turns(facts: Sequence[Fact], texts: Sequence[str]) -> list[tuple[Fact, str]]:
    """Each fact with one of the texts, which go round."""
    return [(fact, texts[number % len(texts)]) for number, fact in enumerate(facts)]


def _under_deployers(facts: Sequence[Fact]) -> list[Query]:
    return [
        query
        for fact, system in _in_turns(facts, language.DEPLOYER.held_out)
        for query in held_out_queries([fact], system=system, tag="/deployer")
    ]


def _train_worded(facts: Sequence[Fact], *, each: int) -> list[Query]:
    """Facts in `each` of their train wordings, of which a general subject has two and an attribute four."""
    rng = random.Random("validation")
    return [
        open_query(fact, wording, split="validation")
        for fact in facts
        for wording in rng.sample(language.QUESTIONS[fact.attribute].train, each)
    ]


def _untested(facts: Sequence[Fact]) -> list[Fact]:
    """Facts that no test asks for, and no benchmark story's own."""
    return [fact for fact in facts if fact.key not in _tested() and fact.topic not in BENCHMARK_STORIES]


@cache
def _tested() -> frozenset[str]:
    """Keys of all facts that a test set of any target asks for."""
    return frozenset(fact_key(query) for target in TARGETS for one in lab_suite(target) for query in one.queries)
