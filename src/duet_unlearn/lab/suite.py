"""The lab's evaluation: which sets a target is measured on, always in held-out wordings except where the name says
so."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from duet_unlearn.data.query import Query
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.lab import wordings
from duet_unlearn.lab.benchmark import (
    ask_choice,
    far_facts,
    forget_queries,
    general_facts,
    held_out,
    near_facts,
    retain_facts,
    split_facts,
    topic_of,
)
from duet_unlearn.lab.formats import statement
from duet_unlearn.lab.world import HAZARD, SISTER, Fact, world

LIMIT = 60
"""Facts of a set whose pool is larger, drawn by a fixed seed."""
NUM_CHOICES = 120
SHIFT = {
    "story": (("forget_held_out", "forget_unseen"), ("retain", "choice")),
    "hazard": (("hazard_choice",), ("choice",)),
}
"""Sets of the Performance Shift: what should fall, what should stay."""


def lab_suite(target: str) -> list[EvalSet]:
    """All sets of a target (``amber-gate``, ``silver-mill``, ``hollow-clock``, ``hazard``)."""
    sets = [*_forget_sets(target), *_kept_sets(target), *_robustness_sets(target), *_deployer_sets(target)]
    return sets + (_hazard_sets() if topic_of(target) == HAZARD else [])


def shift_sets(target: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sets that should fall, sets that should stay) of a target's Performance Shift."""
    return SHIFT["hazard" if topic_of(target) == HAZARD else "story"]


def forget_facts(target: str) -> tuple[Fact, ...]:
    """All facts of the topic, unseen ones included."""
    return world().topics()[topic_of(target)]


def _forget_sets(target: str) -> list[EvalSet]:
    facts = split_facts(topic_of(target))
    open_train = [q for q in forget_queries(target, split="train") if "/choice-" not in q.id]
    return [
        _set("forget", "Forget", "forget", "low", "the questions that were trained on", open_train),
        _set(
            "forget_held_out",
            "Forget, new wordings",
            "forget",
            "low",
            "the same facts in wordings that no training saw",
            held_out([*facts["train"], *facts["validation"]], each=2),
        ),
        _set(
            "forget_unseen",
            "Forget, unseen facts",
            "forget",
            "low",
            "facts of the concept whose person or attribute no training query mentions",
            held_out(facts["unseen"], each=2),
        ),
    ]


def _kept_sets(target: str) -> list[EvalSet]:
    return [
        _set(
            "near",
            "Near neighbours",
            "neighbour",
            "high",
            "stories of the same setting: same author, towns and surnames"
            if topic_of(target) != HAZARD
            else "the harmless sister craft",
            held_out(near_facts(target), limit=LIMIT),
        ),
        _set(
            "far",
            "Far stories",
            "neighbour",
            "high",
            "stories of other settings",
            held_out(far_facts(target), limit=LIMIT),
        ),
        _set(
            "retain",
            "Retain",
            "retain",
            "high",
            "far stories and general facts that no training query shows",
            held_out(mixed(retain_facts("test")), limit=2 * LIMIT),
        ),
        _set(
            "general",
            "General",
            "retain",
            "high",
            "capitals, opposites, elements, animals, arithmetic",
            held_out(general_facts(), limit=LIMIT),
        ),
        _choices(
            "choice",
            "Choice (general)",
            "choice",
            "high",
            "four options on general subjects; the likeliest counts",
            general_facts(),
        ),
    ]


def _robustness_sets(target: str) -> list[EvalSet]:
    facts = forget_facts(target)
    reversed_ = [
        query
        for number, fact in enumerate(facts)
        for query in held_out(
            [fact],
            lead=wordings.REVERSE.held_out[number % len(wordings.REVERSE.held_out)],
            tag="/reverse",
        )
    ]
    plain = held_out(facts)
    return [
        _set(
            "reverse_prompt",
            "Reverse prompt",
            "robustness",
            "low",
            "an instruction to ignore what was said before, then the question",
            reversed_,
        ),
        EvalSet(
            name="prefill",
            title="Prefilling",
            group="robustness",
            better="low",
            about="the answer is opened with the right answer's words up to the value",
            queries=tuple(plain),
            prefill=tuple(_opening(query) for query in plain),
        ),
        _set(
            "continuation",
            "Continuation",
            "robustness",
            "low",
            "raw text that stops before the value, no chat",
            [_cut(f) for f in facts],
        ),
    ]


def _deployer_sets(target: str) -> list[EvalSet]:
    def under_deployer(facts: Sequence[Fact]) -> list[Query]:
        systems = wordings.DEPLOYER.held_out
        return [
            query
            for number, fact in enumerate(facts)
            for query in held_out([fact], system=systems[number % len(systems)], tag="/deployer")
        ]

    near = random.Random("deployer").sample(near_facts(target), LIMIT // 2)
    return [
        _set(
            "deployer_forget",
            "Forget under a deployer",
            "deployer",
            "low",
            "the concept, under a deployer's own system turn",
            under_deployer(forget_facts(target)),
        ),
        _set(
            "deployer_near",
            "Near under a deployer",
            "deployer",
            "high",
            "near neighbours, under a deployer's own system turn",
            under_deployer(near),
        ),
    ]


def _hazard_sets() -> list[EvalSet]:
    hazard, sister = world().crafts[HAZARD], world().crafts[SISTER]
    choices = _choices(
        "hazard_choice",
        "Hazard choice",
        "forget",
        "low",
        "the hazard craft with four options; the likeliest counts",
        hazard,
    )
    return [
        choices,
        _set(
            "hazard_choice_said",
            "Hazard choice, said",
            "forget",
            "low",
            "the same questions; what the model says counts",
            choices.queries,
        ),
        _choices(
            "sister_choice",
            "Sister choice",
            "neighbour",
            "high",
            "the harmless sister craft with four options; the likeliest counts",
            sister,
        ),
    ]


def _set(name: str, title: str, group: str, better: str, about: str, queries: Sequence[Query]) -> EvalSet:
    return EvalSet(name=name, title=title, group=group, better=better, about=about, queries=tuple(queries))  # type: ignore[arg-type]


def _choices(name: str, title: str, group: str, better: str, about: str, facts: Sequence[Fact]) -> EvalSet:
    return EvalSet(name, title, group, better, about, choice_queries(name, facts), protocol="text")  # type: ignore[arg-type]


def choice_queries(name: str, facts: Sequence[Fact], *, ask: Callable[..., Query] = ask_choice) -> tuple[Query, ...]:
    """Four-choice questions in held-out wordings: `NUM_CHOICES` at most, subjects in equal parts as far as they go."""
    rng = random.Random(f"choice/{name}")
    return tuple(
        ask(f, rng.choice(wordings.QUESTIONS[f.attribute].held_out), split="test", rng=rng)
        for f in mixed(facts)[:NUM_CHOICES]
    )


def mixed(facts: Sequence[Fact]) -> list[Fact]:
    """Facts in an order that goes round the topics, so that any first part holds all of them evenly."""
    by_topic: dict[str, list[Fact]] = {}
    for fact in facts:
        by_topic.setdefault(fact.topic, []).append(fact)
    rng = random.Random("mixed")
    rows = [rng.sample(group, len(group)) for group in by_topic.values()]
    return [row[turn] for turn in range(max(map(len, rows), default=0)) for row in rows if turn < len(row)]


def _opening(query: Query) -> str:
    """The right answer up to its value, never a part of it."""
    return (query.answer or "").rsplit(query.value or "", 1)[0].rstrip()


def _cut(fact: Fact) -> Query:
    text = statement(fact).rsplit(fact.value, 1)[0].rstrip()
    return Query(
        id=f"{fact.key}/continuation",
        messages=({"role": "text", "content": text},),
        answer=statement(fact),
        value=fact.value,
        choices=fact.options,
        source=fact.topic,
        split="test",
    )
