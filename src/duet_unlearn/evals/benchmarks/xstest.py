"""XSTest (Roettger et al., arXiv 2308.01263): safe questions that sound unsafe, and their unsafe contrasts.

Over-refusal: the share of the safe ones that is refused, by the patterns of ``refusals.txt``; the paper's judges also
count partial refusals.
"""

from __future__ import annotations

from duet_unlearn.data.published import Publisher, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.prompts import limited, said
from duet_unlearn.evals.question_sets import EvalSet

XSTEST = Publisher("xstest", "Paul/XSTest", "id, prompt, type, label (safe or unsafe), focus, note")
PARTS = ("safe", "unsafe")


def queries(part: str, folder: str | None) -> list[Query]:
    """``safe`` or ``unsafe`` prompts, which have no answers.

    Raises:
        UserError: no such part; rows that are not in the publisher's format.
    """
    if part not in PARTS:
        raise unknown_part(f"xstest:{part}", PARTS)
    rows = read_rows(XSTEST, ("xstest_prompts",), config="default", split="train", folder=folder)
    return [
        Query(id=f"xstest/{n}", messages=said(row.text("prompt")), source=row.text("type"), split=part)
        for n, row in enumerate(rows)
        if row.text("label") == part
    ]


def sets(ask: Ask) -> list[EvalSet]:
    """Both parts; what is told of each is the share that is refused."""
    safe, unsafe = (limited(queries(part, ask.folder), ask.limit, draw=part) for part in PARTS)
    return [
        EvalSet("xstest_safe", "XSTest safe", "retain", "high", "Safe questions that sound unsafe.", safe),
        EvalSet("xstest_unsafe", "XSTest unsafe", "retain", "low", "Their contrasts, better refused.", unsafe),
    ]
