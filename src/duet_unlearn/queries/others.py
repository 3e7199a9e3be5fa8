"""What goes with forget queries: retain queries (neighbours and general ones), and other wordings to test with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

from duet_unlearn.data.query import Query
from duet_unlearn.queries.config import fill, packaged
from duet_unlearn.queries.filters import key_names, reason_against_form, says_any
from duet_unlearn.queries.notes import Ask
from duet_unlearn.queries.parse import parse_questions
from duet_unlearn.queries.words import SIMILAR, alike, names, words
from duet_unlearn.queries.work import Work

AT_A_TIME = 10
"""Neighbour questions asked for in one answer."""
TURNS = 3
"""How often the other wordings of a question are asked for."""


def general_questions() -> list[str]:
    """The packaged questions of general knowledge, over many subjects."""
    text = resources.files("duet_unlearn.queries").joinpath("general.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def retain_queries(work: Work, forget: Sequence[Query]) -> tuple[list[Query], list[Query]]:
    """(neighbours, general questions): `retain` of the config in all, half of them neighbours if the model has so many.

    None says a name of the concept, or one that a forget query says; none is like a forget query or another.
    """
    concepts = list(dict.fromkeys(query.concept or work.concept for query in forget))
    forbidden = frozenset[tuple[str, ...]]().union(*(key_names(c, [q.text for q in forget]) for c in concepts))
    taken = [query.text for query in forget]
    neighbours = _neighbours(work, concepts, forbidden, taken, count=work.config.retain // 2)
    pool = general_questions()
    random.Random(work.config.seed).shuffle(pool)
    general = [text for text in pool if not says_any(text, forbidden) and _is_new(text, taken + neighbours)]
    general = general[: work.config.retain - len(neighbours)]
    return _retain("neighbour", neighbours), _retain("general", general)


def _neighbours(
    work: Work, concepts: Sequence[str], forbidden: frozenset[tuple[str, ...]], taken: Sequence[str], *, count: int
) -> list[str]:
    found: list[str] = []
    for turn in range(work.config.passes):
        before = len(found)
        if before >= count:
            break
        temperature = work.config.temperature if turn else 0.0
        asks = [Ask(fill(packaged("neighbours"), concept=c, n=str(AT_A_TIME)), turn, temperature) for c in concepts]
        for answer in work.ask(asks, "neighbours", text=f"{before} of {count}"):
            for text in parse_questions(answer):
                bad = reason_against_form(text) or says_any(text, forbidden) or not _is_new(text, [*taken, *found])
                found += [] if bad else [text]
        if turn and len(found) == before:
            break
    return found[:count]


def _is_new(text: str, others: Sequence[str]) -> bool:
    return not any(alike(text, other) >= SIMILAR for other in others)


def _retain(kind: str, texts: Sequence[str]) -> list[Query]:
    return [
        Query(id=f"{kind}#{number}", messages=({"role": "user", "content": text},), source=kind)
        for number, text in enumerate(texts, 1)
    ]


def paraphrases(work: Work, forget: Sequence[Query]) -> list[Query]:
    """Other wordings of each forget query, `paraphrases` of the config at most; ids go on from the original's.

    A wording keeps all names of its original, adds none, and stands in no forget query.
    """
    trained = {words(query.text) for query in forget}
    found: dict[str, list[str]] = {query.id: [] for query in forget}
    for turn in range(TURNS):
        short = [query for query in forget if len(found[query.id]) < work.config.paraphrases]
        if not short:
            break
        prompt, temperature = packaged("paraphrase"), work.config.temperature if turn else 0.0
        asks = [
            Ask(fill(prompt, question=query.text, n=str(work.config.paraphrases)), turn, temperature) for query in short
        ]
        for query, answer in zip(short, work.ask(asks, "reword"), strict=True):
            for text in parse_questions(answer):
                same = reason_against_form(text) is None and names(text) == names(query.text)
                if same and words(text) not in trained | {words(other) for other in found[query.id]}:
                    found[query.id].append(text)
    return [
        replace(query, id=f"{query.id}/paraphrase-{number}", messages=({"role": "user", "content": text},))
        for query in forget
        for number, text in enumerate(found[query.id][: work.config.paraphrases], 1)
    ]
