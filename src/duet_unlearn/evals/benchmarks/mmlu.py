"""MMLU (Hendrycks et al., arXiv 2009.03300): 57 subjects, four options a question, in lm-eval's prompt.

The likeliest letter counts; the score is the mean over all questions. Shots are the first rows of the subject's `dev`
file, in its order.
"""

from __future__ import annotations

from dataclasses import replace

from duet_unlearn.data.published import PublishedRow, Publisher, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.prompts import choice_head, choice_prompt, limited, raw, said
from duet_unlearn.evals.question_sets import LETTERS, EvalSet

MMLU = Publisher(
    "mmlu",
    "cais/mmlu",
    "dev/<subject>_dev.csv and test/<subject>_test.csv without a header line: question, four choices, letter",
)
HEADER = ("question", "A", "B", "C", "D", "answer")
SUBJECTS = (
    "abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry"
    " college_computer_science college_mathematics college_medicine college_physics computer_security"
    " conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts"
    " high_school_biology high_school_chemistry high_school_computer_science high_school_european_history"
    " high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics"
    " high_school_microeconomics high_school_physics high_school_psychology high_school_statistics"
    " high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence"
    " logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes"
    " moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine"
    " professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions"
).split()
ASK = "Answer with the letter of the right option."


def queries(part: str, folder: str | None) -> list[Query]:
    """``dev``, ``test`` (also what an empty part is) or one subject's: ``test/anatomy``. Half of them are asked in a
    chat, half as the raw prompt of the evaluation without shots.

    Raises:
        UserError: no such part; rows that are not in the publisher's format.
    """
    split, _, subject = (part or "test").partition("/")
    if split not in ("dev", "test") or (subject and subject not in SUBJECTS):
        raise unknown_part(f"mmlu:{part}", [f"{s}{rest}" for s in ("dev", "test") for rest in ("", *_slashed())])
    chosen = [subject] if subject else SUBJECTS
    return [
        either_way(query, place)
        for subject in chosen
        for place, query in enumerate(_subject(subject, split, folder, shots=0))
    ]


def sets(ask: Ask) -> list[EvalSet]:
    """All subjects as one set, named after its shots; a limit is of questions a subject.

    Raises:
        UserError: as ``queries``; more shots than a subject has solved examples.
    """
    asked = [
        query
        for subject in SUBJECTS
        for query in limited(_subject(subject, "test", ask.folder, shots=ask.shots), ask.limit, draw=f"mmlu/{subject}")
        if query.id not in ask.trained
    ]
    return [
        EvalSet(
            name=set_name(ask.shots),
            title=f"MMLU ({ask.shots} shots)",
            group="choice",
            better="high",
            about=f"57 subjects, {ask.shots} solved examples before each question; the likeliest letter counts.",
            queries=tuple(asked),
            protocol="letter",
        )
    ]


def set_name(shots: int) -> str:
    """The set's name."""
    return f"mmlu_{shots}shot"


def letter_query(
    row: PublishedRow, *, id: str, options: tuple[str, ...], head: str, source: str, split: str = "test"
) -> Query:
    """A row as a letter question in lm-eval's raw prompt."""
    right = row.index("answer", options)
    return Query(
        id=id,
        messages=raw(head + choice_prompt(row.text("question"), options)),
        answer=LETTERS[right],
        value=options[right],
        choices=options,
        source=source,
        split=split,
    )


def either_way(query: Query, place: int) -> Query:
    """Every other letter question as a chat's."""
    if place % 2:
        return query
    question = query.text.partition("\n\n")[2].removesuffix("\nAnswer:")
    return replace(query, messages=said(f"{question}\n{ASK}"))


def _slashed() -> list[str]:
    return [f"/{subject}" for subject in SUBJECTS]


def _rows(subject: str, split: str, folder: str | None) -> list[PublishedRow]:
    stems = (f"{split}/{subject}_{split}", f"{subject}/{split}")
    rows = read_rows(MMLU, stems, config="all", split=split, folder=folder, header=HEADER)
    return [row for row in rows if row.values.get("subject", subject) == subject]


def _options(row: PublishedRow) -> tuple[str, ...]:
    """The hub has a list of choices, the first release a column each."""
    return row.texts("choices") if "choices" in row.values else tuple(row.text(letter) for letter in "ABCD")


def _solved(subject: str, folder: str | None, shots: int) -> list[PublishedRow]:
    """The rows that are shown with their answers; fewer than `shots` are a UserError."""
    rows = _rows(subject, "dev", folder) if shots else []
    if len(rows) < shots:
        raise UserError(
            f"evaluate.shots is {shots}, but MMLU's {subject} has {len(rows)} solved examples",
            f"set evaluate.shots to at most {len(rows)}",
        )
    return rows[:shots]


def _subject(subject: str, split: str, folder: str | None, *, shots: int) -> list[Query]:
    head = choice_head(subject) + "".join(
        f"{choice_prompt(row.text('question'), _options(row))} {LETTERS[row.index('answer', _options(row))]}\n\n"
        for row in _solved(subject, folder, shots)
    )
    return [
        letter_query(
            row, id=f"mmlu/{split}/{subject}/{place}", options=_options(row), head=head, source=subject, split=split
        )
        for place, row in enumerate(_rows(subject, split, folder))
    ]
