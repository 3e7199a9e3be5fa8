"""Forget queries: ask for questions pass by pass, sort them, choose, until there are enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.queries.choose import Choice, choose
from duet_unlearn.queries.config import fill, packaged
from duet_unlearn.queries.filters import reason_against
from duet_unlearn.queries.notes import Ask
from duet_unlearn.queries.parse import parse_questions
from duet_unlearn.queries.work import Work


def forget_queries(work: Work) -> tuple[list[Query], Choice]:
    """The forget queries in the order of the corpus, and how they were chosen.

    Raises:
        UserError: not one usable question.
    """
    choice = Choice()
    for turn in range(work.config.passes):
        before = len(choice.kept)
        for start in range(0, len(work.order), work.config.count):
            _ask_for_questions(work, turn, work.order[start : start + work.config.count], kept=len(choice.kept))
            choice = _choose(work)
            if len(choice.kept) == work.config.count:
                return _queries(work, choice), choice
        if len(choice.kept) == before and turn + 1 >= len(work.config.wordings):
            break
    if not choice.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in work.dropped.most_common())
        raise UserError(
            f"the model wrote no usable question about {work.concept or 'the concepts'} ({reasons or 'no lines'})",
            "does the corpus speak of the concept? Else try a stronger model, or another --instruction",
        )
    return _queries(work, choice), choice


def _ask_for_questions(work: Work, turn: int, numbers: Sequence[int], *, kept: int) -> None:
    """Show the writer some chunks and sort what it writes."""
    config, numbers = work.config, [number for number in numbers if number not in work.silent]
    temperature = 0.0 if turn < len(config.wordings) else config.temperature
    asks = [
        Ask(
            fill(
                config.instruction(turn),
                n=str(config.per_chunk),
                concept=work.concept_of(number),
                passage=work.chunks[number].text,
            ),
            0 if temperature == 0 else turn,
            temperature,
        )
        for number in numbers
    ]
    answers = work.ask(asks, "ask", text=f"pass {turn + 1}, {kept} kept")
    for number, answer in zip(numbers, answers, strict=True):
        pool = work.written.setdefault(number, [])
        if answer.strip(" .").upper() == "NONE":
            work.silent.add(number)
            continue
        for question in parse_questions(answer):
            ground = work.grounds[work.concept_of(number)]
            if reason := reason_against(question, work.chunks[number].text, ground):
                work.dropped[reason] += 1
            elif question not in pool and (number, question) not in work.off:
                pool.append(question)


def _choose(work: Work) -> Choice:
    """Choose, and where the model checks, let it see what was chosen, until all that is chosen has passed."""
    while True:
        choice = choose(work.written, work.groups, count=work.config.count)
        if work.config.check == "words":
            return choice
        asks = [
            Ask(fill(packaged("check"), question=question, concept=work.concept_of(number)))
            for number, question in choice.kept
        ]
        answers = work.ask(asks, "check", max_new_tokens=8)
        off = [pair for pair, answer in zip(choice.kept, answers, strict=True) if answer.strip()[:2].lower() == "no"]
        if not off:
            return choice
        for number, question in off:
            work.written[number].remove(question)
        work.off.update(off)
        work.dropped["off the concept, says the model"] = len(work.off)


def _queries(work: Work, choice: Choice) -> list[Query]:
    """In the order of the corpus; ids count the questions of a chunk."""
    found, counts = [], Counter[int]()
    for number, question in sorted(choice.kept, key=lambda pair: pair[0]):
        counts[number] += 1
        chunk = work.chunks[number]
        query = Query(
            id=f"{chunk.source}#{counts[number]}",
            messages=({"role": "user", "content": question},),
            source=chunk.source,
            request=chunk.document.request,
            concept=chunk.document.concept,
        )
        found.append(query)
    return found
