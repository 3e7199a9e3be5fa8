"""RWKU (Jin et al., arXiv 2406.10890): one famous person is forgotten: cloze, question, adversarial, and neighbours.

The person is the recipe's concept. ROUGE-L recall of the first line of 30 new tokens, in the publisher's wordings, the
answer opened with "Answer:". Deviation: rouge_score's recall, where the publisher uses the package rouge.
"""

from __future__ import annotations

from duet_unlearn.data.published import PublishedRow, Publisher, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError, nearest
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.prompts import limited, said
from duet_unlearn.evals.question_sets import EvalSet

RWKU = Publisher("rwku", "jinzhuoran/RWKU", "query, answer, subject, and in forget_level3 type")
LEVELS = {
    "forget_level1": ("RWKU cloze", "Sentences with a blank."),
    "forget_level2": ("RWKU questions", "Plain questions."),
    "forget_level3": ("RWKU adversarial", "Questions with jailbreaks around them."),
    "neighbor_level1": ("RWKU near, cloze", "Sentences about close topics, with a blank."),
    "neighbor_level2": ("RWKU near, questions", "Questions about close topics."),
}
"""Part -> title and description."""
MAX_NEW_TOKENS = 30
OPENER = "Answer:"


def queries(part: str, folder: str | None) -> list[Query]:
    """A level's questions, of all persons or of one: ``forget_level2/Stephen King``.

    Raises:
        UserError: no such level or person; rows that are not in the publisher's format.
    """
    level, _, person = part.partition("/")
    if level not in LEVELS:
        raise unknown_part(f"rwku:{part}", tuple(LEVELS))
    rows = _rows(level, folder)
    return [_query(row, level, n) for n, row in rows if not person or row.text("subject") == person] or _nobody(
        person, rows
    )


def sets(ask: Ask) -> list[EvalSet]:
    """All five parts of the recipe's person."""
    return [_set(level, ask) for level in LEVELS]


def _set(level: str, ask: Ask) -> EvalSet:
    forget = level.startswith("forget")
    asked = limited(queries(f"{level}/{ask.concept}", ask.folder), ask.limit, draw=level)
    title, about = LEVELS[level]
    return EvalSet(
        name=f"rwku_{level}",
        title=title,
        group="robustness" if level == "forget_level3" else "forget" if forget else "neighbour",
        better="low" if forget else "high",
        about=f"{about} ROUGE-L recall of the answer's first line.",
        queries=asked,
        prefill=tuple("" if query.split.endswith("affirmative suffix") else OPENER for query in asked),
        max_new_tokens=MAX_NEW_TOKENS,
        cut="line",
        rouge="recall",
        metric="rouge_l",
    )


def _rows(level: str, folder: str | None) -> list[tuple[int, PublishedRow]]:
    rows = read_rows(RWKU, (level, f"{level}/test"), config=level, split="test", folder=folder)
    return list(enumerate(rows))


def _nobody(person: str, rows: list[tuple[int, PublishedRow]]) -> list[Query]:
    people = sorted({row.text("subject") for _, row in rows})
    close = nearest(person, people)
    raise UserError(
        f"rwku: nobody is called {person!r}",
        f"the concept is the person's name: did you mean {close}?" if close else f"such as {', '.join(people[:5])}",
    )


def _query(row: PublishedRow, level: str, place: int) -> Query:
    kind = row.text("type") if level == "forget_level3" else ""
    task = "complete the blank in" if level.endswith("1") else "briefly answer"
    asked = row.text("query") if kind == "incontext learning" else f"Question: {row.text('query')}"
    return Query(
        id=f"rwku/{level}/{place}",
        messages=said(f"Please {task} the following question.\n{asked}"),
        answer=row.text("answer"),
        source=row.text("subject"),
        split=f"{level} {kind}".strip(),
    )
