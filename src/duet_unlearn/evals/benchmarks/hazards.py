"""Hazards that are forgotten, and what must stay next to them: WMDP (Li et al., arXiv 2403.03218), MMLU (Hendrycks et
al., arXiv 2009.03300) and XSTest (Roettger et al., arXiv 2308.01263).

WMDP: hazardous knowledge of biology, cyber security and chemistry, accuracy of the likeliest letter of four in
lm-eval's prompt, without shots. What to train on is not published with it (DUET draws queries from its corpora, of
which the one on biology is gated): ``wmdp:bio/train`` is 200 of the questions, drawn by a fixed seed; they are then
left out of the evaluation.

MMLU: 57 subjects in the same prompt; the score is the mean over all questions. Shots are the first rows of the
subject's `dev` file, in its order.

XSTest: safe questions that sound unsafe, and their unsafe contrasts. Over-refusal is the share of the safe ones that is
refused, by the patterns of ``refusals.txt``; the paper's judges also count partial refusals.
"""

from __future__ import annotations

import random
from dataclasses import replace

from duet_unlearn.data.published import PublishedRow, Publisher, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks.published_sets import (
    FALL,
    BenchmarkSettings,
    SubjectResult,
    Summary,
    chat_question,
    choice_head,
    choice_prompt,
    limited,
    raw_text,
    shift,
)
from duet_unlearn.evals.question_sets import LETTERS, EvalSet

WMDP = Publisher("wmdp", "cais/wmdp", "question, choices (a list), answer (the right choice's place, from 0)")
WMDP_SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}
"""Part -> what the prompt calls it."""
WMDP_PARTS = tuple(f"{subject}{rest}" for subject in WMDP_SUBJECTS for rest in ("", "/train", "/test"))
NUM_TRAIN = 200
"""DUET's number of queries for WMDP."""
MMLU = Publisher(
    "mmlu",
    "cais/mmlu",
    "dev/<subject>_dev.csv and test/<subject>_test.csv without a header line: question, four choices, letter",
)
MMLU_HEADER = ("question", "A", "B", "C", "D", "answer")
MMLU_SUBJECTS = (
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
XSTEST = Publisher("xstest", "Paul/XSTest", "id, prompt, type, label (safe or unsafe), focus, note")
XSTEST_PARTS = ("safe", "unsafe")


# WMDP ---------------------------------------------------------------------------------------------------------------


def wmdp_queries(part: str, folder: str | None) -> list[Query]:
    """``bio``, ``cyber`` or ``chem``: all questions; ``bio/train``: 200 of them; ``bio/test``: the others. Half of them
    are asked in a chat, half as the raw prompt of the evaluation."""
    if part not in WMDP_PARTS:
        raise unknown_part(f"wmdp:{part}", WMDP_PARTS)
    subject, _, split = part.partition("/")
    every = _wmdp_subject(subject, folder)
    drawn = {q.id for q in random.Random(f"wmdp/{subject}").sample(every, min(NUM_TRAIN, len(every) // 2))}
    return _half_in_chat([q for q in every if not split or (q.id in drawn) == (split == "train")])


def wmdp_sets(subject: str, settings: BenchmarkSettings) -> list[EvalSet]:
    """One subject's questions, less those that are trained on."""
    every = _wmdp_subject(subject, settings.folder)
    untrained = [query for query in every if query.id not in settings.trained]
    about = (
        f"{len(untrained)} of {len(every)} questions, those that are not trained on, without shots; the likeliest"
        " letter counts, of which guessing gets 25 %."
    )
    queries = limited(untrained, settings.limit, draw=f"wmdp/{subject}")
    return [EvalSet(f"wmdp_{subject}", f"WMDP {subject}", *FALL, about, queries, protocol="letter")]


def wmdp_summaries(subject: str, own: SubjectResult, base: SubjectResult | None, *, mmlu: str) -> list[Summary]:
    """Performance Shift: the fall on WMDP plus the change of MMLU, where both were asked."""
    name = f"wmdp_{subject}"
    return shift(own, base, name=name, forget={name: "right"}, keep={mmlu: "right"})


def _wmdp_subject(subject: str, folder: str | None) -> list[Query]:
    config = f"wmdp-{subject}"
    stems = (f"{config}/test", config, f"{subject}_questions")
    rows = read_rows(WMDP, stems, config=config, split="test", folder=folder)
    head = choice_head(WMDP_SUBJECTS[subject])
    return [
        _letter_row(row, id=f"wmdp/{subject}/{n}", options=row.texts("choices"), head=head, source=f"WMDP {subject}")
        for n, row in enumerate(rows)
    ]


# MMLU ---------------------------------------------------------------------------------------------------------------


def mmlu_queries(part: str, folder: str | None) -> list[Query]:
    """``dev``, ``test`` (also what an empty part is) or one subject's: ``test/anatomy``. Half of them are asked in a
    chat, half as the raw prompt of the evaluation without shots."""
    split, _, subject = (part or "test").partition("/")
    if split not in ("dev", "test") or (subject and subject not in MMLU_SUBJECTS):
        rests = ("", *(f"/{one}" for one in MMLU_SUBJECTS))
        raise unknown_part(f"mmlu:{part}", [f"{one}{rest}" for one in ("dev", "test") for rest in rests])
    chosen = [subject] if subject else MMLU_SUBJECTS
    return [query for one in chosen for query in _half_in_chat(_mmlu_subject(one, split, folder, shots=0))]


def mmlu_sets(settings: BenchmarkSettings) -> list[EvalSet]:
    """All subjects as one set, named after its shots; a limit is of questions a subject."""
    shots, queries = settings.shots, []
    for subject in MMLU_SUBJECTS:
        every = _mmlu_subject(subject, "test", settings.folder, shots=shots)
        queries += limited(every, settings.limit, draw=f"mmlu/{subject}")
    asked = tuple(query for query in queries if query.id not in settings.trained)
    about = f"57 subjects, {shots} solved examples before each question; the likeliest letter counts."
    title = f"MMLU ({shots} shots)"
    return [EvalSet(mmlu_name(shots), title, "choice", "high", about, asked, protocol="letter")]


def mmlu_name(shots: int) -> str:
    """The set's name."""
    return f"mmlu_{shots}shot"


def _mmlu_subject(subject: str, split: str, folder: str | None, *, shots: int) -> list[Query]:
    solved = _mmlu_rows(subject, "dev", folder)[:shots] if shots else []
    if len(solved) < shots:
        raise UserError(
            f"evaluate.shots is {shots}, but MMLU's {subject} has {len(solved)} solved examples",
            f"set evaluate.shots to at most {len(solved)}",
        )
    head = choice_head(subject) + "".join(
        f"{choice_prompt(row.text('question'), options)} {LETTERS[row.index('answer', options)]}\n\n"
        for row in solved
        for options in [_mmlu_options(row)]
    )
    return [
        _letter_row(
            row, id=f"mmlu/{split}/{subject}/{n}", options=_mmlu_options(row), head=head, source=subject, split=split
        )
        for n, row in enumerate(_mmlu_rows(subject, split, folder))
    ]


def _mmlu_rows(subject: str, split: str, folder: str | None) -> list[PublishedRow]:
    stems = (f"{split}/{subject}_{split}", f"{subject}/{split}")
    rows = read_rows(MMLU, stems, config="all", split=split, folder=folder, header=MMLU_HEADER)
    return [row for row in rows if row.values.get("subject", subject) == subject]


def _mmlu_options(row: PublishedRow) -> tuple[str, ...]:
    """The hub has a list of choices, the first release a column each."""
    return row.texts("choices") if "choices" in row.values else tuple(row.text(letter) for letter in "ABCD")


# Letter questions of both -------------------------------------------------------------------------------------------


def _letter_row(
    row: PublishedRow, *, id: str, options: tuple[str, ...], head: str, source: str, split: str = "test"
) -> Query:
    """A row as a letter question in lm-eval's raw prompt."""
    right = row.index("answer", options)
    messages = raw_text(head + choice_prompt(row.text("question"), options))
    return Query(id, messages, LETTERS[right], options[right], options, source, split)


def _half_in_chat(queries: list[Query]) -> list[Query]:
    """Every other letter question as a chat's, so that what is trained on is not one format alone."""
    mixed = list(queries)
    for place in range(0, len(queries), 2):
        question = queries[place].text.partition("\n\n")[2].removesuffix("\nAnswer:")
        text = f"{question}\nAnswer with the letter of the right option."
        mixed[place] = replace(queries[place], messages=chat_question(text))
    return mixed


# XSTest -------------------------------------------------------------------------------------------------------------


def xstest_queries(part: str, folder: str | None) -> list[Query]:
    """``safe`` or ``unsafe`` prompts, which have no answers."""
    if part not in XSTEST_PARTS:
        raise unknown_part(f"xstest:{part}", XSTEST_PARTS)
    rows = read_rows(XSTEST, ("xstest_prompts",), config="default", split="train", folder=folder)
    return [
        Query(id=f"xstest/{n}", messages=chat_question(row.text("prompt")), source=row.text("type"), split=part)
        for n, row in enumerate(rows)
        if row.text("label") == part
    ]


def xstest_sets(settings: BenchmarkSettings) -> list[EvalSet]:
    """Both parts; what is reported of each is the share that is refused."""
    safe, unsafe = (limited(xstest_queries(part, settings.folder), settings.limit, draw=part) for part in XSTEST_PARTS)
    return [
        EvalSet("xstest_safe", "XSTest safe", "retain", "high", "Safe questions that sound unsafe.", safe),
        EvalSet("xstest_unsafe", "XSTest unsafe", "retain", "low", "Their contrasts, better refused.", unsafe),
    ]
