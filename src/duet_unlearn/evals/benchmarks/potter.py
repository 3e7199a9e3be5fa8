"""Harry Potter as in DUET's Table 1 (arXiv 2601.21283): R-Forget, R-Forget-500, R-Retain, MMLU and their Shift.

ROUGE-L F1 of 32 new tokens behind 3 solved examples, cut at the first blank line or "Question". DUET's questions are
not public. In their place stand JSON lines {"query", "answer"} in the folder ``potter``: ``forget``, ``forget500``,
``retain`` and ``shots`` (3). Where there is no such folder, MUSE-Books' questions on the books serve as R-Forget and
R-Retain, and R-Forget-500 is left out. Either way the numbers stand beside the paper's, not for them.
"""

from __future__ import annotations

from duet_unlearn.data.published import Publisher, has_folder, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks import muse
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.prompts import examples_head, limited, raw, said
from duet_unlearn.evals.benchmarks.summary import Result, Summary, shift
from duet_unlearn.evals.question_sets import EvalSet

POTTER = Publisher("potter", None, 'a line is {"query": "..", "answer": ".."}')
TITLES = {"forget": "R-Forget", "forget500": "R-Forget-500", "retain": "R-Retain"}
PARTS = (*TITLES, "shots")
INSTEAD = {"forget": "forget_qa", "retain": "retain_qa", "shots": "forget_qa_icl"}
"""Part -> MUSE-Books' split."""
NUM_SHOTS = 3
MAX_NEW_TOKENS = 32


def queries(part: str, folder: str | None) -> list[Query]:
    """The questions of ``forget``, ``forget500`` or ``retain`` in a chat.

    Raises:
        UserError: no such part; files that are missing or not in the format.
    """
    if part not in PARTS:
        raise unknown_part(f"potter:{part}", PARTS)
    return [
        Query(id=f"potter/{part}/{n}", messages=said(question), answer=answer, source="Harry Potter")
        for n, (question, answer) in enumerate(_pairs(part, folder))
    ]


def sets(ask: Ask) -> list[EvalSet]:
    """The paper's three question sets, less R-Forget-500 where MUSE's questions stand in."""
    head = examples_head(_pairs("shots", ask.folder)[:NUM_SHOTS])
    parts = TITLES if has_folder(POTTER, ask.folder) else INSTEAD.keys() & TITLES.keys()
    return [_set(part, head, ask) for part in TITLES if part in parts]


def summaries(own: Result, base: Result | None, *, mmlu: str) -> list[Summary]:
    """Performance Shift over what was asked of the paper's four."""
    forget = {f"potter_{part}": "rouge_l" for part in ("forget", "forget500") if f"potter_{part}" in own.scores}
    return shift(own, base, name="potter", forget=forget, keep={"potter_retain": "rouge_l", mmlu: "right"})


def _set(part: str, head: str, ask: Ask) -> EvalSet:
    asked = [
        Query(
            id=f"potter/{part}/{n}",
            messages=raw(f"{head}Question: {question}\nAnswer:"),
            answer=answer,
            source="Harry Potter",
        )
        for n, (question, answer) in enumerate(_pairs(part, ask.folder))
    ]
    whose = "own questions" if has_folder(POTTER, ask.folder) else "MUSE-Books' questions"
    return EvalSet(
        name=f"potter_{part}",
        title=TITLES[part],
        group="retain" if part == "retain" else "forget",
        better="high" if part == "retain" else "low",
        about=f"ROUGE-L F1 behind {NUM_SHOTS} solved examples; {whose}, for the paper's are not public.",
        queries=limited(asked, ask.limit, draw=part),
        max_new_tokens=MAX_NEW_TOKENS,
        metric="rouge_l",
    )


def _pairs(part: str, folder: str | None) -> list[tuple[str, str]]:
    if not has_folder(POTTER, folder) and part in INSTEAD:
        return muse.question_pairs("books", INSTEAD[part], folder)
    rows = read_rows(POTTER, (part,), config=part, split="train", folder=folder)
    return [(row.text("query"), row.text("answer")) for row in rows]
