"""MUSE (Shi et al., arXiv 2407.06460): news or books, of which a part is forgotten.

Its numbers: verbatim, knowledge, PrivLeak, utility. Deviations: a raw prompt ends with "Answer:", without the space
behind it that the publisher's has: the space belongs to the answer's first token; a passage is compared with the
first 96 words of what follows in the original, where the publisher takes its first 128 tokens, which depend on the
tokeniser; of a text whose membership is tested the first word is given, not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from duet_unlearn.data.published import PublishedRow, Publisher, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.prompts import examples_head, limited, raw, said
from duet_unlearn.evals.benchmarks.summary import Result, Summary, membership, privacy_leak
from duet_unlearn.evals.question_sets import EvalSet

Corpus = Literal["news", "books"]
MUSE: dict[str, Publisher] = {
    corpus: Publisher(
        "muse",
        f"muse-bench/MUSE-{corpus.capitalize()}",
        "knowmem: question, answer; verbmem: prompt, gt; raw and privleak: text",
        f"muse/{corpus}",
    )
    for corpus in ("news", "books")
}
RAW = ("forget", "retain1", "retain2", "holdout")
KNOWLEDGE = ("forget_qa", "retain_qa")
PARTS = tuple(f"{corpus}/{part}" for corpus in MUSE for part in (*RAW, *KNOWLEDGE))
NUM_WORDS = 96
"""Three words are about four tokens: MUSE's 128."""
PASSAGE_TOKENS, ANSWER_TOKENS = 128, 32


def queries(part: str, folder: str | None) -> list[Query]:
    """``books/forget_qa``: questions in a chat; ``books/forget``: raw passages of 96 words, each to be gone on with the
    next 96.

    Raises:
        UserError: no such part; rows that are not in the publisher's format.
    """
    corpus, _, name = part.partition("/")
    if part not in PARTS:
        raise unknown_part(f"muse:{part}", PARTS)
    if name in RAW:
        return [q for row in rows(corpus, "raw", name, folder) for q in _passages(row, f"muse/{part}")]
    pairs = question_pairs(corpus, name, folder)
    return [
        Query(id=f"muse/{part}/{n}", messages=said(question), answer=answer, source=f"MUSE {corpus}")
        for n, (question, answer) in enumerate(pairs)
    ]


def rows(corpus: str, config: str, split: str, folder: str | None) -> list[PublishedRow]:
    """A split of one of MUSE's subsets (`raw`, `verbmem`, `knowmem`, `privleak`)."""
    return read_rows(MUSE[corpus], (f"{config}/{split}",), config=config, split=split, folder=folder)


def question_pairs(corpus: str, split: str, folder: str | None) -> list[tuple[str, str]]:
    """Questions and answers of `knowmem`."""
    return [(row.text("question"), row.text("answer")) for row in rows(corpus, "knowmem", split, folder)]


def sets(corpus: str, ask: Ask) -> list[EvalSet]:
    """MUSE's four, and the texts of its membership test."""
    passages = [
        Query(
            id=f"muse/{corpus}/verbmem/{n}",
            messages=raw(row.text("prompt").rstrip()),
            answer=" ".join(row.text("gt").split()[:NUM_WORDS]),
            source=f"MUSE {corpus}",
        )
        for n, row in enumerate(rows(corpus, "verbmem", "forget", ask.folder))
    ]
    verbatim = EvalSet(
        name=f"muse_{corpus}_verbatim",
        title="Verbatim",
        group="forget",
        better="low",
        about="A passage's opening; ROUGE-L F1 of what follows with the original.",
        queries=limited(passages, ask.limit, draw="verbmem"),
        max_new_tokens=PASSAGE_TOKENS,
        until="length",
        metric="rouge_l",
    )
    return [
        verbatim,
        _knowledge(corpus, "forget_qa", ask),
        _knowledge(corpus, "retain_qa", ask),
        _texts(corpus, "forget", ask),
        _texts(corpus, "holdout", ask),
    ]


def summaries(corpus: str, own: Result, oracle: Result | None) -> list[Summary]:
    """Membership, and PrivLeak beside a retrained model."""
    members, others = f"muse_{corpus}_privacy_forget", f"muse_{corpus}_privacy_holdout"
    about = (
        "How well likelihoods tell the texts to forget from texts that no model has read: AUC less the oracle's"
        " (without one: less 0.5); 0 ideal, above 0 remembered, below 0 over-unlearned."
    )
    return [
        membership(own, oracle, name=f"muse_{corpus}", members=members, non_members=others, unread=0.5, about=about),
        privacy_leak(own, oracle, name=f"muse_{corpus}", members=members, non_members=others),
    ]


def _knowledge(corpus: str, split: str, ask: Ask) -> EvalSet:
    """Questions behind ten solved ones of the publisher's."""
    head = examples_head(question_pairs(corpus, f"{split}_icl", ask.folder))
    asked = [
        Query(
            id=f"muse/{corpus}/{split}/{n}",
            messages=raw(f"{head}Question: {question}\nAnswer:"),
            answer=answer,
            source=f"MUSE {corpus}",
        )
        for n, (question, answer) in enumerate(question_pairs(corpus, split, ask.folder))
    ]
    forget = split == "forget_qa"
    return EvalSet(
        name=f"muse_{corpus}_{'knowledge' if forget else 'utility'}",
        title="Knowledge" if forget else "Utility",
        group="forget" if forget else "retain",
        better="low" if forget else "high",
        about=f"Questions about the part to {'forget' if forget else 'keep'}, behind solved ones; ROUGE-L F1.",
        queries=limited(asked, ask.limit, draw=split),
        max_new_tokens=ANSWER_TOKENS,
        until="length",
        cut="muse",
        metric="rouge_l",
    )


def _texts(corpus: str, split: str, ask: Ask) -> EvalSet:
    texts = [row.text("text").strip().partition(" ") for row in rows(corpus, "privleak", split, ask.folder)]
    asked = [
        Query(id=f"muse/{corpus}/privleak/{split}/{n}", messages=raw(first), answer=rest, source=f"MUSE {corpus}")
        for n, (first, _, rest) in enumerate(texts)
    ]
    return EvalSet(
        name=f"muse_{corpus}_privacy_{split}",
        title=f"Texts: {split} (likelihood)",
        group="privacy",
        better="low" if split == "forget" else "high",
        about="Whole texts of the membership test: how likely they are, and what of them is memorised.",
        queries=limited(asked, ask.limit, draw=split),
        protocol="likelihood",
        metric="probability",
    )


def _passages(row: PublishedRow, part: str) -> list[Query]:
    words: Sequence[str] = row.text("text").split()
    line = row.place.rsplit(":", 1)[-1]
    return [
        Query(
            id=f"{part}/{line}/{start}",
            messages=raw(" ".join(words[start : start + NUM_WORDS])),
            answer=" ".join(words[start + NUM_WORDS : start + 2 * NUM_WORDS]),
            source=part,
        )
        for start in range(0, len(words) - NUM_WORDS, 2 * NUM_WORDS)
    ]
