"""Books and news that are forgotten: MUSE (Shi et al., arXiv 2407.06460), and Harry Potter as in DUET's Table 1 (arXiv
2601.21283).

MUSE's numbers are verbatim, knowledge, PrivLeak and utility. Deviations: a raw prompt ends with "Answer:", without the
space behind it that the publisher's has: the space belongs to the answer's first token; a passage is compared with the
first 96 words of what follows in the original, where the publisher takes its first 128 tokens, which depend on the
tokeniser; of a text whose membership is tested the first word is given, not scored.

Potter's numbers are R-Forget, R-Forget-500, R-Retain, MMLU and their Shift: ROUGE-L F1 of 32 new tokens behind 3 solved
examples, cut at the first blank line or "Question". DUET's questions are not public. In their place stand JSON lines
{"query", "answer"} in the folder ``potter``: ``forget``, ``forget500``, ``retain`` and ``shots`` (3). Where there is no
such folder, MUSE-Books' questions on the books serve as R-Forget and R-Retain, and R-Forget-500 is left out. Either way
the numbers are shown next to the paper's, not in their place.
"""

from __future__ import annotations

from duet_unlearn.data.published import PublishedRow, Publisher, has_folder, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks.published_sets import (
    FALL,
    STAY,
    BenchmarkSettings,
    MembershipTest,
    SubjectResult,
    Summary,
    examples_head,
    limited,
    pair_queries,
    raw_text,
    shift,
)
from duet_unlearn.evals.question_sets import EvalSet

MUSE_COLUMNS = "knowmem: question, answer; verbmem: prompt, gt; raw and privleak: text"
MUSE = {
    corpus: Publisher("muse", f"muse-bench/MUSE-{corpus.capitalize()}", MUSE_COLUMNS, f"muse/{corpus}")
    for corpus in ("news", "books")
}
RAW_PARTS = ("forget", "retain1", "retain2", "holdout")
MUSE_PARTS = tuple(f"{corpus}/{part}" for corpus in MUSE for part in (*RAW_PARTS, "forget_qa", "retain_qa"))
NUM_WORDS = 96
"""Three words are about four tokens: MUSE's 128."""
PASSAGE_TOKENS, ANSWER_TOKENS = 128, 32
POTTER = Publisher("potter", None, 'a line is {"query": "..", "answer": ".."}')
POTTER_TITLES = {"forget": "R-Forget", "forget500": "R-Forget-500", "retain": "R-Retain"}
POTTER_PARTS = (*POTTER_TITLES, "shots")
STAND_INS = {"forget": "forget_qa", "retain": "retain_qa", "shots": "forget_qa_icl"}
"""Part of Potter -> the split of MUSE-Books that serves where Potter's own questions are absent."""
NUM_SHOTS = 3


def muse_queries(part: str, folder: str | None) -> list[Query]:
    """``books/forget_qa``: questions in a chat; ``books/forget``: raw passages of 96 words, each to be gone on with the
    next 96."""
    corpus, _, name = part.partition("/")
    if part not in MUSE_PARTS:
        raise unknown_part(f"muse:{part}", MUSE_PARTS)
    if name not in RAW_PARTS:
        pairs = _question_pairs(corpus, name, folder)
        return pair_queries(pairs, name=f"muse/{part}", source=f"MUSE {corpus}")
    queries = []
    for row in _muse_rows(corpus, "raw", name, folder):
        words, line = row.text("text").split(), row.place.rsplit(":", 1)[-1]
        for start in range(0, len(words) - NUM_WORDS, 2 * NUM_WORDS):
            middle = start + NUM_WORDS
            passage, rest = " ".join(words[start:middle]), " ".join(words[middle : middle + NUM_WORDS])
            queries.append(Query(f"muse/{part}/{line}/{start}", raw_text(passage), rest, source=f"muse/{part}"))
    return queries


def muse_sets(corpus: str, settings: BenchmarkSettings) -> list[EvalSet]:
    """MUSE's four, and the texts of its membership test."""
    passages = []
    for number, row in enumerate(_muse_rows(corpus, "verbmem", "forget", settings.folder)):
        prompt, rest = raw_text(row.text("prompt").rstrip()), " ".join(row.text("gt").split()[:NUM_WORDS])
        passages.append(Query(f"muse/{corpus}/verbmem/{number}", prompt, rest, source=f"MUSE {corpus}"))
    about = "A passage's opening; ROUGE-L F1 of what follows with the original."
    queries = limited(passages, settings.limit, draw="verbmem")
    name = f"muse_{corpus}_verbatim"
    verbatim = EvalSet(
        name, "Verbatim", *FALL, about, queries, max_new_tokens=PASSAGE_TOKENS, until="length", metric="rouge_l"
    )
    knowledge = [_muse_knowledge(corpus, split, settings) for split in ("forget_qa", "retain_qa")]
    return [verbatim, *knowledge, *(_muse_texts(corpus, split, settings) for split in ("forget", "holdout"))]


def muse_summaries(corpus: str, own: SubjectResult, oracle: SubjectResult | None) -> list[Summary]:
    """Membership, and PrivLeak against a retrained model."""
    about = (
        "How well likelihoods tell the texts to forget from texts that no model has read: AUC less the oracle's"
        " (without one: less 0.5); 0 ideal, above 0 remembered, below 0 over-unlearned."
    )
    name = f"muse_{corpus}"
    return MembershipTest(name, f"{name}_privacy_forget", f"{name}_privacy_holdout", 0.5, about).summaries(own, oracle)


def potter_queries(part: str, folder: str | None) -> list[Query]:
    """The questions of ``forget``, ``forget500`` or ``retain`` in a chat."""
    if part not in POTTER_PARTS:
        raise unknown_part(f"potter:{part}", POTTER_PARTS)
    return pair_queries(_potter_pairs(part, folder), name=f"potter/{part}", source="Harry Potter")


def potter_sets(settings: BenchmarkSettings) -> list[EvalSet]:
    """The paper's three question sets, less R-Forget-500 where MUSE's questions stand in."""
    head = examples_head(_potter_pairs("shots", settings.folder)[:NUM_SHOTS])
    own = has_folder(POTTER, settings.folder)
    sets = []
    for part, title in POTTER_TITLES.items():
        if not own and part not in STAND_INS:
            continue
        pairs = _potter_pairs(part, settings.folder)
        queries = pair_queries(pairs, name=f"potter/{part}", source="Harry Potter", head=head)
        whose = "own questions" if own else "MUSE-Books' questions"
        about = f"ROUGE-L F1 behind {NUM_SHOTS} solved examples; {whose}, for the paper's are not public."
        toward = STAY if part == "retain" else FALL
        name, asked = f"potter_{part}", limited(queries, settings.limit, draw=part)
        sets.append(EvalSet(name, title, *toward, about, asked, max_new_tokens=ANSWER_TOKENS, metric="rouge_l"))
    return sets


def potter_summaries(own: SubjectResult, base: SubjectResult | None, *, mmlu: str) -> list[Summary]:
    """Performance Shift over what was asked of the paper's four."""
    forget = {f"potter_{part}": "rouge_l" for part in ("forget", "forget500") if f"potter_{part}" in own.scores}
    return shift(own, base, name="potter", forget=forget, keep={"potter_retain": "rouge_l", mmlu: "right"})


def _muse_knowledge(corpus: str, split: str, settings: BenchmarkSettings) -> EvalSet:
    """Questions behind ten solved ones of the publisher's."""
    forget, folder = split == "forget_qa", settings.folder
    head = examples_head(_question_pairs(corpus, f"{split}_icl", folder))
    pairs = _question_pairs(corpus, split, folder)
    queries = pair_queries(pairs, name=f"muse/{corpus}/{split}", source=f"MUSE {corpus}", head=head)
    about = f"Questions about the part to {'forget' if forget else 'keep'}, behind solved ones; ROUGE-L F1."
    name, title, toward = ("knowledge", "Knowledge", FALL) if forget else ("utility", "Utility", STAY)
    asked = limited(queries, settings.limit, draw=split)
    return EvalSet(
        f"muse_{corpus}_{name}",
        title,
        *toward,
        about,
        asked,
        max_new_tokens=ANSWER_TOKENS,
        until="length",
        cut="muse",
        metric="rouge_l",
    )


def _muse_texts(corpus: str, split: str, settings: BenchmarkSettings) -> EvalSet:
    rows = _muse_rows(corpus, "privleak", split, settings.folder)
    # A model gives no likelihood to the first token of all, so the first word is the prompt.
    texts = [row.text("text").strip().partition(" ") for row in rows]
    name, source = f"muse/{corpus}/privleak/{split}", f"MUSE {corpus}"
    queries = [Query(f"{name}/{n}", raw_text(word), rest, source=source) for n, (word, _, rest) in enumerate(texts)]
    name, title = f"muse_{corpus}_privacy_{split}", f"Texts: {split} (likelihood)"
    better = "low" if split == "forget" else "high"
    about = "Whole texts of the membership test: how likely they are, and what of them is memorised."
    asked = limited(queries, settings.limit, draw=split)
    return EvalSet(name, title, "privacy", better, about, asked, protocol="likelihood", metric="probability")


def _muse_rows(corpus: str, config: str, split: str, folder: str | None) -> list[PublishedRow]:
    """A split of one of MUSE's subsets (`raw`, `verbmem`, `knowmem`, `privleak`)."""
    return read_rows(MUSE[corpus], (f"{config}/{split}",), config=config, split=split, folder=folder)


def _question_pairs(corpus: str, split: str, folder: str | None) -> list[tuple[str, str]]:
    return [(row.text("question"), row.text("answer")) for row in _muse_rows(corpus, "knowmem", split, folder)]


def _potter_pairs(part: str, folder: str | None) -> list[tuple[str, str]]:
    if not has_folder(POTTER, folder) and part in STAND_INS:
        return _question_pairs("books", STAND_INS[part], folder)
    rows = read_rows(POTTER, (part,), config=part, split="train", folder=folder)
    return [(row.text("query"), row.text("answer")) for row in rows]
