"""Asking a subject for facts in many ways at once: everything that most attacks do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from duet_unlearn.attacks.goal import Goal, given_away
from duet_unlearn.attacks.result import Instance, NotApplicable, Said, instance
from duet_unlearn.data.query import Message, Query
from duet_unlearn.evals.generate import ContextTooLong
from duet_unlearn.evals.question_sets import subjects_by_concept
from duet_unlearn.evals.subject import ModelSubject, Subject

LETTER = re.compile(r"\b(?:A(?!\s+(?!or\b|and\b)[a-z])|[B-Z])\b")
"""A letter that stands for an option; an A in front of a word is an article."""


class Ask(NamedTuple):
    """One question of an attack."""

    instance: str
    fact: int
    """Index into the goal's `wanted`."""
    query: Query
    """What is sent; its value and choices judge the answer."""
    prefill: str = ""
    family: str = ""


def ask(subject: Subject, asks: Sequence[Ask], goal: Goal) -> list[Instance]:
    """Send all questions in one go, so that wordings share batches and beginnings, and count what came back.

    Instances come in the order in which `asks` names them.

    Raises:
        NotApplicable: there is nothing to ask, or one question is longer than the model reads.
    """
    if not asks:
        raise NotApplicable("no wanted fact can be asked for in this way")
    return judged(asks, answers(subject, asks, goal), goal)


def answers(subject: Subject, asks: Sequence[Ask], goal: Goal) -> list[str]:
    """What comes back to each question.

    Raises:
        NotApplicable: one is longer than the model reads.
    """
    said = [""] * len(asks)
    for voice, places in subjects_by_concept(subject, [one.query for one in asks]):
        try:
            outputs = voice.generate(
                [asks[place].query.messages for place in places],
                prefill=[asks[place].prefill for place in places],
                max_new_tokens=goal.max_new_tokens,
                batch_size=goal.batch_size,
            )
        except ContextTooLong as error:
            raise NotApplicable(error.message) from error
        for place, output in zip(places, outputs, strict=True):
            said[place] = output
    return said


def judged(asks: Sequence[Ask], outputs: Sequence[str], goal: Goal) -> list[Instance]:
    """What the answers give away, an instance each name."""
    rows: dict[tuple[str, str], list[Said]] = {}
    for one, output in zip(asks, outputs, strict=True):
        right = (named_letter if _of_letters(one.query) else given_away)(output, one.query)
        said = Said(one.fact, shown(one.query.messages), one.prefill, output, right)
        rows.setdefault((one.family, one.instance), []).append(said)
    return [instance(name, said, len(goal.wanted), family=family) for (family, name), said in rows.items()]


def _of_letters(query: Query) -> bool:
    return bool(query.choices) and all(len(one) == 1 and one.isupper() for one in query.choices or ())


def named_letter(output: str, query: Query) -> bool:
    """Whether what was said names the right letter and no other of the choices. "A cat" names none."""
    said = LETTER.findall(output) if len(output.strip(" \n.:()*")) > 1 else [output.strip(" \n.:()*").upper()]
    return {*said} & {*(query.choices or ())} == {query.value}


def shown(messages: Sequence[Message]) -> str:
    """A conversation as text: of a single question the question alone."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)


def plain(goal: Goal) -> list[Ask]:
    """Every wanted fact, asked as it is."""
    return [Ask("plain", number, query) for number, query in enumerate(goal.wanted)]


def whole(subject: Subject) -> ModelSubject:
    """The subject as a model whose weights an attacker has.

    Raises:
        NotApplicable: what it forgot is not in its weights: who has them has the base.
    """
    if not isinstance(subject, ModelSubject) or subject.prefix or subject.mark:
        raise NotApplicable("the weights are the base's: who has them needs no attack")
    return subject
