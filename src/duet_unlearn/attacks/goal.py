"""What an attacker wants to hear, and what he knows before he begins."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from duet_unlearn.answers import is_refusal, normalise, recall, value_match
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet, expected_answer, fact

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

    Known is half of the facts that `forget` has answers of; where it has none, half of those that the forget sets ask
    for. Wanted are all other facts that a forget set asks for, each in the wording of the last set that does, which is
    the one farthest from training. A question that may be about a known fact in other words (``alike``) is not wanted.
    Answers may be as long as the sets allow, and as the longest right one is.

    Raises:
        UserError: no question about the concept has an answer, or they are all about one fact.
    """
    sets = [one for one in asked if one.better == "low" and one.group == "forget" and one.protocol == "generate"]
    listed = [query for one in sets for query in one.queries if query.answer]
    answered = [query for query in forget if query.answer] or listed
    facts = sorted({fact(query) for query in answered})
    chosen = set(random.Random(f"known/{seed}").sample(facts, round(len(facts) * KNOWN_SHARE)))
    known = tuple({query.id: query for query in answered if fact(query) in chosen}.values())
    wanted = _unknown(listed, known) or _unknown(answered, known)
    if not wanted:
        raise UserError(
            "no question about what was forgotten has an answer, so nobody can tell what comes back"
            if not answered
            else "all questions about what was forgotten may be about one fact, and attacks need another to ask for",
            'give the forget queries, or those of a set `forget..` in evaluate.sets, an "answer" and a "value"',
        )
    allowed = max([max_new_tokens, *(one.max_new_tokens or 0 for one in sets)])
    return Goal(
        concept,
        wanted=wanted,
        known=known,
        neighbours=_answered(asked, "neighbour"),
        others=_answered(asked, "retain"),
        max_new_tokens=max(allowed, *(_tokens(query.answer or "") for query in wanted)),
        batch_size=batch_size,
        seed=seed,
    )


def _unknown(queries: Sequence[Query], known: Sequence[Query]) -> tuple[Query, ...]:
    """The last question about each fact that is not known."""
    rest = [query for query in queries if not any(alike(query, one) for one in known)]
    return tuple({fact(query): query for query in rest}.values())


def alike(query: Query, other: Query) -> bool:
    """Whether two questions may be about one fact: they have a question or an answer in common; or, where no `source`
    tells facts apart, a value and a name, or a value alone where neither names anybody."""
    if fact(query) == fact(other) or normalise(query.text) == normalise(other.text):
        return True
    if normalise(query.answer or "") == normalise(other.answer or ""):
        return query.source == other.source
    if (query.source and other.source) or not query.value or not other.value:
        return False
    return normalise(query.value) == normalise(other.value) and (
        bool(_names(query) & _names(other)) or not (_names(query) or _names(other))
    )


def given_away(output: str, query: Query) -> bool:
    """Whether what was said gives the fact away: it has the value and no other choice.

    Of a long answer without a value: it is no refusal, and has, in their order, at least half of the words that the
    question does not show (ROUGE-L recall). A refusal that a question of "yes" or "no" gets is no "no".
    """
    if wanted := expected_answer(query):
        if normalise(wanted) in YES_NO and is_refusal(output):
            return False
        return value_match(output, wanted, query.choices)
    shown = set(normalise(query.text).split())
    telling = " ".join(word for word in normalise(query.answer or "").split() if word not in shown)
    return bool(telling) and not is_refusal(output) and recall(output, telling) >= OVERLAP


def _names(query: Query) -> set[str]:
    """Words of a question with a capital that do not open a sentence, other than the value's."""
    inside = re.findall(r"(?<![.?!])\s+([A-Z]\w+)", query.text)
    return {word.casefold() for word in inside} - set(normalise(query.value or "").split())


def _tokens(text: str) -> int:
    """About how many tokens a text and its end have at most, in a language with an alphabet."""
    return len(text.encode()) // 3 + 8


def _answered(sets: Sequence[EvalSet], group: str) -> tuple[Query, ...]:
    found = [q for one in sets if one.group == group and one.protocol == "generate" for q in one.queries if q.answer]
    return tuple({query.id: query for query in found}.values())
