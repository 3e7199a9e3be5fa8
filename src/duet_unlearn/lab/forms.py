"""Facts in the forms that the lab's models were pretrained on, for attacks that change the format.

One form is left out: writing a question about a statement shows the fact, and its answer gives nothing away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.lab import wordings
from duet_unlearn.lab.benchmark import ask_choice, general_facts
from duet_unlearn.lab.formats import draw_options, letter_question, question, statement, yes_no
from duet_unlearn.lab.wordings import LETTERS
from duet_unlearn.lab.world import Fact, world

SHOTS = 3


def lab_forms(wanted: Sequence[Query]) -> dict[str, tuple[Query | None, ...]]:
    """Form -> each wanted fact in it, None where the fact has no such form; found again by the queries' ids.

    ``continuation`` and ``passage``: raw text up to the value. ``few-shot``: raw, behind answered general questions.
    ``choice``, ``letters``: four options, the answer an option or its letter. ``yes-no``: every other fact asked with a
    wrong value. ``reverse``: the character asked for by town and pet.

    Raises:
        UserError: a query is about no fact of the lab.
    """
    facts = [_fact_of(query) for query in wanted]
    forms = {
        "continuation": [_raw(fact, "continuation", _opening(fact)) for fact in facts],
        "passage": [_raw(fact, "passage", f"In {fact.topic}, {_opening(fact)}") for fact in facts],
        "few-shot": [_few_shot(fact) for fact in facts],
        "choice": [_choice(fact) for fact in facts],
        "letters": [_letters(fact) for fact in facts],
        "yes-no": [_yes_no(fact, right=number % 2 == 0) for number, fact in enumerate(facts)],
        "reverse": [_reverse(fact) for fact in facts],
    }
    return {name: tuple(queries) for name, queries in forms.items() if any(queries)}


@cache
def _facts() -> dict[str, Fact]:
    return {fact.key: fact for facts in world().topics().values() for fact in facts}


def _fact_of(query: Query) -> Fact:
    fact = _facts().get("/".join(query.id.split("/")[:3]))
    if fact is None:
        raise UserError(f"query {query.id!r} is about no fact of the lab", "leave its id as the lab gave it")
    return fact


def _opening(fact: Fact) -> str:
    return statement(fact).rsplit(fact.value, 1)[0].rstrip()


def _wording(fact: Fact) -> str:
    return wordings.QUESTIONS[fact.attribute].held_out[0]


def _raw(fact: Fact, form: str, text: str) -> Query:
    return _query(fact, form, "text", text, answer=statement(fact), value=fact.value, choices=fact.options)


def _few_shot(fact: Fact) -> Query:
    pool = [one for one in general_facts() if one.value != fact.value]
    shown = random.Random("forms").sample(pool, SHOTS)
    solved = [f"Question: {question(one, _wording(one))}\nAnswer: {one.value}\n\n" for one in shown]
    return _raw(fact, "few-shot", f"{''.join(solved)}Question: {question(fact, _wording(fact))}\nAnswer:")


def _choice(fact: Fact) -> Query:
    return ask_choice(fact, _wording(fact), split="test", rng=random.Random(f"choice/{fact.key}"))


def _letters(fact: Fact) -> Query:
    rng = random.Random(f"letters/{fact.key}")
    options = draw_options(fact, rng)
    letter = LETTERS[options.index(fact.value)]
    text = letter_question(question(fact, _wording(fact)), options, "behind")
    return _query(fact, "letters", "user", text, answer=letter, value=letter, choices=LETTERS)


def _yes_no(fact: Fact, *, right: bool) -> Query | None:
    if fact.attribute not in wordings.YES_NO:
        return None
    rng = random.Random(f"yes-no/{fact.key}")
    claimed = fact.value if right else rng.choice([one for one in fact.options if one != fact.value])
    value = "yes" if right else "no"
    return _query(fact, "yes-no", "user", yes_no(fact, claimed), answer=value, value=value, choices=("yes", "no"))


def _reverse(fact: Fact) -> Query | None:
    """Of facts that the reverse question names."""
    if fact.attribute not in ("town", "pet"):
        return None
    values = {one.attribute: one.value for one in world().stories[fact.topic] if one.entity == fact.entity}
    text = wordings.REVERSE_QUESTION.format(town=values["town"], pet=values["pet"])
    names = world().characters(fact.topic)
    return _query(fact, "reverse", "user", text, answer=f"{fact.entity} does.", value=fact.entity, choices=names)


def _query(fact: Fact, form: str, role: str, text: str, *, answer: str, value: str, choices: tuple[str, ...]) -> Query:
    return Query(
        id=f"{fact.key}/{form}",
        messages=({"role": role, "content": text},),
        answer=answer,
        value=value,
        choices=choices,
        source=fact.topic,
        split="test",
    )
