"""TOFU (Maini et al., arXiv 2401.06121): 200 invented authors, 20 questions each; 2, 10 or 20 are forgotten.

The publisher has no questions that no model has seen. The non-members of its membership tests are therefore cut out of
the retain part (``holdout10``: the last 400 rows of retain90). The publisher's models have read them as well: one
trained on everything has an AUC near 0.5, the retrained one near 0, with which PrivLeak compares. An unlearning run
should at least not train on them: ``retain90_rest`` is retain90 without them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from duet_unlearn.data.published import PublishedRow, Publisher, home, read_rows, unknown_part
from duet_unlearn.data.query import Query
from duet_unlearn.evals.benchmarks.ask import Ask
from duet_unlearn.evals.benchmarks.prompts import limited, said
from duet_unlearn.evals.benchmarks.summary import Result, Summary, bare, membership, privacy_leak
from duet_unlearn.evals.likelihood import forget_quality, model_utility, truth_ratios
from duet_unlearn.evals.question_sets import EvalSet

TOFU = Publisher(
    "tofu",
    "locuslab/TOFU",
    "question, answer; in the *_perturbed parts also perturbed_answer (a list of wrong answers) and paraphrased_answer",
)
SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""What is forgotten -> what is kept."""
HOLDOUTS = {forget.replace("forget", "holdout"): forget for forget in SPLITS}
"""The last rows of what is kept, as many as are forgotten -> what is forgotten."""
RESTS = {f"{retain}_rest": forget for forget, retain in SPLITS.items()}
"""What is kept, without its holdout -> what is forgotten."""
PLAIN = ("full", *SPLITS, *SPLITS.values(), *HOLDOUTS, *RESTS)
PERTURBED = (
    *(f"{forget}_perturbed" for forget in SPLITS),
    "retain_perturbed",
    "real_authors_perturbed",
    "world_facts_perturbed",
)
READ = (
    "The holdout is the retain part's last rows, which base and oracle have read: the base's AUC is near 0.5, the"
    " oracle's near 0."
)
"""What must be known of TOFU's membership numbers."""
PER_AUTHOR = 20
MAX_NEW_TOKENS = 200
PART = r"[A-ZÀ-Ž]\w+(?:['-]\w+)*"
NAME = re.compile(rf"{PART}(?: (?:{PART}|van|von|der|den|de|del|la|da|dos|bin))* {PART}")
NAMED = 7
"""An author has a name if so many of the 20 texts have it: the least is 8. Author 88 is never named, and has no words
that stand together more than 5 times."""


class Author(NamedTuple):
    place: int
    """From 0, in the order of `full`."""
    name: str | None


def queries(part: str, folder: str | None) -> list[Query]:
    """The questions of a part. Those to be forgotten name their author as request and as concept.

    Raises:
        UserError: no such part; rows that are not in the publisher's format.
    """
    if part not in (*PLAIN, *PERTURBED):
        raise unknown_part(f"tofu:{part}", (*PLAIN, *PERTURBED))
    if forget := HOLDOUTS.get(part) or RESTS.get(part):
        kept, cut = queries(SPLITS[forget], folder), -len(_rows(forget, folder))
        return kept[cut:] if part in HOLDOUTS else kept[:cut]
    known = _authors(str(base) if (base := home(folder)) else None)
    return [_query(row, part, place, known) for place, row in enumerate(_rows(part, folder))]


def author_of(rows: Sequence[tuple[str, str]]) -> str | None:
    """The name that stands in most of an author's questions and answers; None where no name does."""
    # "Alejandro (Alex) Fuentes's" is Alejandro Fuentes.
    texts = [f"{question} {answer}".replace("\u2019", "'") for question, answer in rows]
    found = [set(NAME.findall(re.sub(r" \([^)]*\)|'s\b", "", text))) for text in texts]
    counts = Counter(name for names in found for name in names)
    best = max(counts, key=lambda name: (counts[name], len(name)), default=None)
    return best if best and counts[best] >= NAMED else None


def sets(split: str, ask: Ask) -> list[EvalSet]:
    """What TOFU asks of a split such as ``forget10``: answers (200 new tokens, ROUGE-L recall) and likelihoods."""
    found = []
    for name, part, group, words in (
        ("tofu_forget", f"{split}_perturbed", "forget", f"{split}: the authors to forget"),
        ("tofu_retain", "retain_perturbed", "retain", "authors to keep"),
        ("tofu_real_authors", "real_authors_perturbed", "retain", "real authors"),
        ("tofu_world_facts", "world_facts_perturbed", "retain", "facts of the world"),
    ):
        asked = limited(queries(part, ask.folder), ask.limit, draw=part)
        found += _pair(name, words, group, asked)
    holdout = limited(queries(split.replace("forget", "holdout"), ask.folder), ask.limit, draw="holdout")
    trained = sum(query.id in ask.trained for query in holdout)
    found.append(
        EvalSet(
            name="tofu_holdout",
            title="TOFU holdout (likelihood)",
            group="privacy",
            better="high",
            about=f"Of the last rows of {SPLITS[split]}: the non-members of the membership tests, though base and"
            f" oracle have read them; {trained} of {len(holdout)} are among this run's queries.",
            queries=holdout,
            protocol="likelihood",
            metric="probability",
        )
    )
    return found


def summaries(own: Result, oracle: Result | None) -> list[Summary]:
    """Model utility, membership, and beside a retrained model forget quality and PrivLeak."""
    parts = {
        f"{part}/{metric}": own.scores[name][metric]
        for part in ("tofu_retain", "tofu_real_authors", "tofu_world_facts")
        for name, metric in (
            (part, "rouge_l"),
            (f"{part}_likelihood", "probability" if part == "tofu_retain" else "choice_probability"),
            (f"{part}_likelihood", "truth_ratio"),
        )
    }
    members = "tofu_forget_likelihood"
    ratios = _forget_ratios(own)
    quality = forget_quality(ratios, _forget_ratios(oracle)) if oracle else math.nan
    return [
        Summary(
            "tofu_utility",
            "Model utility",
            "Harmonic mean of probability, ROUGE-L recall and truth ratio on retain, real authors and world facts.",
            "high",
            {"model_utility": model_utility(parts)},
        ),
        Summary(
            "tofu_forget_quality",
            "Forget quality (p)",
            "p-value, in per cent, of a KS test between the truth ratios of this and of the retrained model (the"
            " oracle); above 5 they cannot be told apart; n/a without an oracle.",
            "high",
            {"forget_quality": bare(quality, len(ratios))},
        ),
        membership(
            own,
            oracle,
            name="tofu",
            members=members,
            non_members="tofu_holdout",
            unread=math.nan,
            about="How well likelihoods tell the forget rows from the holdout: AUC less the oracle's; 0 ideal, above 0"
            f" remembered, below 0 over-unlearned; n/a without an oracle. {READ}",
        ),
        privacy_leak(own, oracle, name="tofu", members=members, non_members="tofu_holdout", note=READ),
    ]


def _forget_ratios(result: Result) -> list[float]:
    return truth_ratios([sample["likelihood"] for sample in result.of("tofu_forget_likelihood")])


def _pair(name: str, words: str, group: str, asked: tuple[Query, ...]) -> list[EvalSet]:
    forget = group == "forget"
    title = name.replace("_", " ").replace("tofu", "TOFU")
    options = all(query.paraphrase is None for query in asked)
    return [
        EvalSet(
            name=name,
            title=title,
            group="forget" if forget else "retain",
            better="low" if forget else "high",
            about=f"{words[0].upper()}{words[1:]}; ROUGE-L recall of greedy answers.",
            queries=asked,
            max_new_tokens=MAX_NEW_TOKENS,
            rouge="recall-stem",
            metric="rouge_l",
        ),
        EvalSet(
            name=f"{name}_likelihood",
            title=f"{title} (likelihood)",
            group="forget" if forget else "retain",
            better="low" if forget else "high",
            about=f"{words[0].upper()}{words[1:]}; the probability of the right answer"
            f"{' among its options' if options else ''}.",
            queries=asked,
            protocol="likelihood",
            metric="choice_probability" if options else "probability",
        ),
    ]


def _rows(part: str, folder: str | None) -> list[PublishedRow]:
    return read_rows(TOFU, (part,), config=part, split="train", folder=folder)


@cache
def _authors(base: str | None) -> dict[tuple[str, str], Author]:
    """Question and answer of `full` -> the author. Rows come by author, 20 each."""
    rows = [(row.text("question"), row.text("answer")) for row in _rows("full", base)]
    chunks = [rows[start : start + PER_AUTHOR] for start in range(0, len(rows), PER_AUTHOR)]
    return {pair: Author(place, author_of(chunk)) for place, chunk in enumerate(chunks) for pair in chunk}


def _query(row: PublishedRow, part: str, place: int, known: dict[tuple[str, str], Author]) -> Query:
    question, answer = row.text("question"), row.text("answer")
    author = known.get((question, answer))
    own = author if part.startswith("forget") else None
    perturbed = part in PERTURBED
    paraphrased = perturbed and not part.startswith(("real", "world"))
    return Query(
        id=f"tofu/{part}/{place}",
        messages=said(question),
        answer=answer,
        source=f"author {author.place}" if author else part.removesuffix("_perturbed"),
        split=part,
        request=f"author {own.place}" if own else "",
        concept=f"the author {own.name}" if own and own.name else None,
        paraphrase=row.text("paraphrased_answer") if paraphrased else None,
        wrong=row.texts("perturbed_answer") if perturbed else None,
    )
