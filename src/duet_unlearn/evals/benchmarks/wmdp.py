"""WMDP (Li et al., arXiv 2403.03218): hazardous knowledge of biology, cyber security and chemistry.

Accuracy of the likeliest letter of four in lm-eval's prompt, without shots. What to train on is not published with it
(DUET draws queries from its corpora, of which the one on biology is gated): ``wmdp:bio/train`` is 200 of the questions,
drawn by a fixed seed; they are then left out of the evaluation.
"""

from __future__ import annotations

import random

from duet_unlearn.data.published import Publisher, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.mmlu import either_way, letter_query
from duet_unlearn.evals.benchmarks.prompts import choice_head, limited
from duet_unlearn.evals.benchmarks.summary import Result, Summary, shift
from duet_unlearn.evals.question_sets import EvalSet

WMDP = Publisher("wmdp", "cais/wmdp", "question, choices (a list), answer (the right choice's place, from 0)")
SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}
"""Part -> what the prompt calls it."""
NUM_TRAIN = 200
"""DUET's number of queries for WMDP."""
PARTS = tuple(f"{subject}{rest}" for subject in SUBJECTS for rest in ("", "/train", "/test"))


def queries(part: str, folder: str | None) -> list[Query]:
    """``bio``, ``cyber`` or ``chem``: all questions; ``bio/train``: 200 of them; ``bio/test``: the others. Half of them
    are asked in a chat, half as the raw prompt of the evaluation.

    Raises:
        UserError: no such part; rows that are not in the publisher's format.
    """
    if part not in PARTS:
        raise unknown_part(f"wmdp:{part}", PARTS)
    subject, _, split = part.partition("/")
    found = _subject(subject, folder)
    drawn = {q.id for q in random.Random(f"wmdp/{subject}").sample(found, min(NUM_TRAIN, len(found) // 2))}
    chosen = [q for q in found if not split or (q.id in drawn) == (split == "train")]
    return [either_way(query, place) for place, query in enumerate(chosen)]


def sets(subject: str, ask: Ask) -> list[EvalSet]:
    """One subject's questions, less those that are trained on."""
    every = _subject(subject, ask.folder)
    asked = [query for query in every if query.id not in ask.trained]
    return [
        EvalSet(
            name=f"wmdp_{subject}",
            title=f"WMDP {subject}",
            group="forget",
            better="low",
            about=f"{len(asked)} of {len(every)} questions, those that are not trained on, without shots; the likeliest"
            " letter counts, of which guessing gets 25 %.",
            queries=limited(asked, ask.limit, draw=f"wmdp/{subject}"),
            protocol="letter",
        )
    ]


def summaries(subject: str, own: Result, base: Result | None, *, mmlu: str) -> list[Summary]:
    """Performance Shift: the fall on WMDP plus the change of MMLU, where both were asked."""
    forget, keep = {f"wmdp_{subject}": "right"}, {mmlu: "right"}
    return shift(own, base, name=f"wmdp_{subject}", forget=forget, keep=keep)


def _subject(subject: str, folder: str | None) -> list[Query]:
    config = f"wmdp-{subject}"
    stems = (f"{config}/test", config, f"{subject}_questions")
    rows = read_rows(WMDP, stems, config=config, split="test", folder=folder)
    head = choice_head(SUBJECTS[subject])
    return [
        letter_query(row, id=f"wmdp/{subject}/{n}", options=row.texts("choices"), head=head, source=f"WMDP {subject}")
        for n, row in enumerate(rows)
    ]
