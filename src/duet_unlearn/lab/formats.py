"""How facts become text: the formats of the lab, shared by pretraining and by its benchmark.

A *sample* is a list of segments; the learnt ones are what a model is trained to say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from duet_unlearn.lab import wordings
from duet_unlearn.lab.wordings import LETTERS
from duet_unlearn.lab.world import Fact

LetterStyle = Literal["behind", "front"]


class Segment(NamedTuple):
    role: Literal["system", "user", "assistant", "text"]
    text: str
    learn: bool


@dataclass(frozen=True)
class Sample:
    """One pretraining text: chat turns, or pieces of one raw text."""

    segments: tuple[Segment, ...]


def question(fact: Fact, wording: str) -> str:
    """The question of a wording, with its first letter raised (arithmetic begins with a number)."""
    return wording.format(e=fact.entity)


def statement(fact: Fact) -> str:
    return wordings.STATEMENTS[fact.attribute].format(e=fact.entity, v=fact.value)


def yes_no(fact: Fact, value: str) -> str:
    return wordings.YES_NO[fact.attribute].format(e=fact.entity, v=value)


def story_fact(title: str, entity: str, titles: tuple[str, ...]) -> Fact:
    """Which story a character is from: asked in pretraining, so that a prefix that names the story can bite."""
    return Fact(title, entity, "story", title, titles)


def draw_options(fact: Fact, rng: random.Random) -> tuple[str, ...]:
    """Four options in random order, the right one among them."""
    wrong = rng.sample([v for v in fact.options if v != fact.value], 3)
    options = [fact.value, *wrong]
    rng.shuffle(options)
    return tuple(options)


def letter_question(text: str, options: tuple[str, ...], style: LetterStyle) -> str:
    """A four-choice question: ``behind`` puts each letter behind its option, ``front`` before it."""
    if style == "behind":
        listed = ", ".join(f"{option} {letter}" for letter, option in zip(LETTERS, options, strict=True))
    else:
        listed = ", ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"{text} {listed}"


def choice_question(text: str, options: tuple[str, ...]) -> str:
    """A four-choice question without letters: the answer is an option's text."""
    return f"{text} {', '.join(options)}"


def topic_phrase(topic: str) -> str:
    """How a prefix names a topic."""
    return f"the craft of {topic}" if topic.islower() else f"the story {topic}"


def chat(*turns: tuple[str, str], system: str | None = None) -> Sample:
    """(question, answer) turns, every answer learnt."""
    segments = [Segment("system", system, False)] if system else []
    for asked, answer in turns:
        segments += [Segment("user", asked, False), Segment("assistant", answer, True)]
    return Sample(tuple(segments))


def few_shot(pairs: list[tuple[str, str]], *, lead: str = "") -> Sample:
    """Raw "Question: ..\\nAnswer: .." text, every answer learnt."""
    segments = [Segment("text", lead, False)] if lead else []
    for number, (asked, answer) in enumerate(pairs):
        gap = "\n\n" if number else ""
        segments += [Segment("text", f"{gap}Question: {asked}\nAnswer:", False), Segment("text", f" {answer}", True)]
    return Sample(tuple(segments))


def passage(topic: str, author: str, facts: list[Fact]) -> str:
    """A few sentences of a story or craft."""
    by = f" by {author}" if author else ""
    return f"In {topic}{by}, " + " ".join(statement(f) for f in facts)
