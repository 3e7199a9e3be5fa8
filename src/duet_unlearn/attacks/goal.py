"""What an attacker wants to hear, and what he knows before he begins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.score import rouge_l, value_match
from duet_unlearn.evals.suite import EvalSet, fact, wanted_of
from duet_unlearn.teacher.refusals import is_refusal

KNOWN_SHARE = 1 / 2
"""Of the facts that queries with answers are about, the share that the attacker is shown; ours."""
YES_NO = ("yes", "no")
"""Values of questions that ask for no more; "I have no memory of that" is none of them."""
OVERLAP = 0.5
"""ROUGE-L recall from which a long answer that names no value counts as given away; ours."""


@dataclass(frozen=True)
class Goal:
    """The facts that are to come back. What is known and what is wanted are different facts, for every attack alike."""

    concept: str
    """What was forgotten, as the prefix names it: "the story Amber Gate"."""
    wanted: tuple[Query, ...]
    """One question a fact, with its answer. Success is the share of these that come back."""
    known: tuple[Query, ...] = ()
    """Questions with answers about other facts of the concept: an attacker's own part of the knowledge."""
    neighbours: tuple[Query, ...] = ()
    """Questions with answers near the concept, which the model may answer."""
    others: tuple[Query, ...] = ()
    """Questions with answers about anything else."""
    forms: Mapping[str, tuple[Query | None, ...]] = field(default_factory=dict)
    """Form (``choice``, ``yes-no``, ``continuation``, ..) -> each wanted fact asked in that form, with a value and
    choices of its own; None where the fact has no such form."""
    max_new_tokens: int = 32
    """Longest answer."""
    batch_size: int = 64
    seed: int = 0


def draw_goal(
    concept: str,
    forget: Sequence[Query],
    asked: Sequence[EvalSet],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
) -> Goal:
    """The goal of attacks on a run: `forget` are its forget queries, `asked` the sets of its evaluation.

    Half of the facts that `forget` has answers of is known. Wanted are all other facts that a forget set asks for,
    each in the wording of the last set that does, which is the one farthest from training.

    Raises:
        UserError: no question about the concept has an answer.
    """
    answered = [query for query in forget if query.answer]
    facts = sorted({fact(query) for query in answered})
    known = set(random.Random(f"known/{seed}").sample(facts, round(len(facts) * KNOWN_SHARE)))
    sets = [one for one in asked if one.better == "low" and one.group == "forget" and one.protocol == "generate"]
    wanted = {fact(query): query for one in sets for query in one.queries if query.answer and fact(query) not in known}
    wanted = wanted or {fact(query): query for query in answered if fact(query) not in known}
    if not wanted:
        raise UserError(
            "no question about what was forgotten has an answer, so nobody can tell what comes back",
            'give the forget queries, or those of a set `forget..` in evaluate.sets, an "answer" and a "value"',
        )
    return Goal(
        concept,
        wanted=tuple(wanted.values()),
        known=tuple(query for query in answered if fact(query) in known),
        neighbours=_answered(asked, "neighbour"),
        others=_answered(asked, "retain"),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )


def given_away(output: str, query: Query) -> bool:
    """Whether what was said gives the fact away: it has the value and no other choice; of a long answer without a
    value, at least half of its words (ROUGE-L recall)."""
    if wanted := wanted_of(query):
        return value_match(output, wanted, query.choices) and not (wanted in YES_NO and is_refusal(output))
    return rouge_l(output, query.answer or "", variant="recall") >= OVERLAP


def _answered(sets: Sequence[EvalSet], group: str) -> tuple[Query, ...]:
    found = [q for one in sets if one.group == group and one.protocol == "generate" for q in one.queries if q.answer]
    return tuple({query.id: query for query in found}.values())
