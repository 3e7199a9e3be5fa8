"""Question sets: generate, store, score, by text or by choice. What was generated can be scored again later."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from duet_unlearn.answers import RougeVariant, cut_muse, is_refusal, outcome, rouge_l, value_match
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import Until
from duet_unlearn.evals.likelihood import likelihood_scores, take
from duet_unlearn.evals.subject import Subject
from duet_unlearn.stats import Score, bootstrap_mean, wilson
from duet_unlearn.teacher.probe import asks_letter

Group = Literal["forget", "neighbour", "retain", "choice", "robustness", "deployer", "privacy", "summary"]
Protocol = Literal["generate", "letter", "text", "likelihood"]
Cut = Literal["none", "line", "muse"]
"""Where an answer ends before it is scored: nowhere, at its first line break, or as MUSE's (`cut_muse`)."""
Sample = dict[str, Any]
"""A line of ``samples/<subject>.jsonl``: set, id, prompt, answer, value, outcome, rouge_l, and what was said (`output`,
with `logps` of a choice) or how the answer was taken (`likelihood`)."""
ANSWERED_LETTER = re.compile(r"(?:.*\b[Aa]nswer(?: is|:))?[\s*(]*([A-Z])(?:[).:,*]|\s*$)")
"""An answer that opens with a letter, or says that it is the answer: "B", "(B) fish", "The answer is **B**."; but not
"A cat"."""
VALUE_WORDS = 4
"""An answer of at most so many words is its own value; a sentence is not, for nobody repeats it word by word."""
Progress = Callable[[str, int, int], None]
"""Called with a set's name, and how many of how many sets are done."""


@dataclass(frozen=True)
class EvalSet:
    """Questions that are asked in one way and scored together.

    Raises:
        UserError: `prefill` does not fit the queries, or gives a value away.
    """

    name: str
    title: str
    group: Group
    better: Literal["low", "high"]
    about: str
    """One sentence for the reader of a report."""
    queries: tuple[Query, ...]
    protocol: Protocol = "generate"
    """``generate``: a greedy answer. ``letter``: the likeliest letter. ``text``: the likeliest option.
    ``likelihood``: how likely the given answers are."""
    prefill: tuple[str, ...] | None = None
    """The opening of each answer, which the model goes on from; it is not scored."""
    max_new_tokens: int | None = None
    """Longest answer, where the benchmark prescribes one; None: the run's."""
    until: Until = "example"
    """Where an answer to raw text ends: with its example, or only with its length."""
    cut: Cut = "none"
    rouge: RougeVariant = "f1"
    metric: str | None = None
    """The metric that stands for the set in a table; None: right, or refused where no answer is known."""

    def __post_init__(self) -> None:
        if self.prefill is None:
            return
        if self.protocol != "generate" or len(self.prefill) != len(self.queries):
            raise UserError(
                f"set {self.name!r}: {len(self.prefill)} prefills for {len(self.queries)} queries",
                "a set that generates may have one prefill per query",
            )
        for query, prefill in zip(self.queries, self.prefill, strict=True):
            if query.value and value_match(prefill, query.value):
                raise UserError(f"set {self.name!r}: the prefill of {query.id!r} gives its value away", "shorten it")


class SuiteResult(NamedTuple):
    scores: dict[str, dict[str, Score]]
    """Set name -> metric -> score."""
    samples: list[Sample]
    seconds: float
    """Time to generate; 0 where stored samples were scored."""


def run_suite(
    subject: Subject,
    sets: Sequence[EvalSet],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> SuiteResult:
    """Ask a subject every set and score its answers."""
    started, samples = time.perf_counter(), []
    for number, eval_set in enumerate(sets):
        if on_progress:
            on_progress(eval_set.name, number, len(sets))
        samples += answer_set(subject, eval_set, max_new_tokens=max_new_tokens, batch_size=batch_size)
    seconds = time.perf_counter() - started
    if on_progress:
        on_progress("", len(sets), len(sets))
    return score_samples(samples, sets)._replace(seconds=seconds)


def answer_set(subject: Subject, eval_set: EvalSet, *, max_new_tokens: int, batch_size: int) -> list[Sample]:
    """One set's answers, unscored. A subject with a prefix names each query's own concept."""
    queries = eval_set.queries
    samples: list[Sample] = [
        {"set": eval_set.name, "id": q.id, "prompt": _shown(q), "answer": q.answer, "value": q.value} for q in queries
    ]
    for about_concept, indices in subjects_by_concept(subject, queries):
        part = replace(
            eval_set,
            queries=tuple(queries[i] for i in indices),
            prefill=tuple(eval_set.prefill[i] for i in indices) if eval_set.prefill is not None else None,
        )
        found = _outputs(about_concept, part, max_new_tokens=max_new_tokens, batch_size=batch_size)
        for index, output in zip(indices, found, strict=True):
            samples[index] |= output
    return samples


def _shown(query: Query) -> str:
    """The prompt as it is stored: of raw text the last paragraph, without the solved examples that all share."""
    return query.text.rsplit("\n\n", 1)[-1] if query.messages[-1]["role"] == "text" else query.text


def subjects_by_concept(subject: Subject, queries: Sequence[Query]) -> list[tuple[Subject, list[int]]]:
    """The subject about each concept, with the indices of the queries that it is asked so."""
    subjects_by_concept: list[tuple[Subject, list[int]]] = []
    for index, query in enumerate(queries):
        about_concept = subject.about(query.concept)
        same = next((indices for known, indices in subjects_by_concept if known == about_concept), None)
        if same is None:
            subjects_by_concept.append((about_concept, [index]))
        else:
            same.append(index)
    return subjects_by_concept


def _outputs(subject: Subject, eval_set: EvalSet, *, max_new_tokens: int, batch_size: int) -> list[Sample]:
    """What a subject says to each query: `output`, and `logps` of the options where it is asked to choose; or how it
    takes the answers: `likelihood`."""
    queries = eval_set.queries
    if eval_set.protocol == "likelihood":
        return [{"likelihood": taken} for taken in take(subject, queries, batch_size=batch_size)]
    if eval_set.protocol == "generate":
        messages, longest = [q.messages for q in queries], eval_set.max_new_tokens or max_new_tokens
        if eval_set.until == "example":
            outputs = subject.generate(
                messages, prefill=eval_set.prefill, max_new_tokens=longest, batch_size=batch_size
            )
        else:  # only a subject that is asked for passages need know of `until`
            outputs = subject.generate(
                messages, prefill=eval_set.prefill, max_new_tokens=longest, batch_size=batch_size, until=eval_set.until
            )
        return [{"output": _cut(output, eval_set.cut)} for output in outputs]
    ask, options = (letter_logps, letters_of) if eval_set.protocol == "letter" else (text_logps, options_of)
    logps = ask(subject, queries, batch_size=batch_size)
    return [{"output": pick(v, options(q)), "logps": v} for v, q in zip(logps, queries, strict=True)]


def _cut(output: str, where: Cut) -> str:
    if where == "line":
        return output.strip().partition("\n")[0].strip()
    return cut_muse(output) if where == "muse" else output


def score_samples(samples: Sequence[Sample], sets: Sequence[EvalSet]) -> SuiteResult:
    """Outcomes and scores of answers that were generated now or stored earlier.

    Raises:
        UserError: the samples of a set are not the answers to its queries, in their order.
    """
    by_set: dict[str, list[Sample]] = {eval_set.name: [] for eval_set in sets}
    for sample in samples:
        by_set.get(sample["set"], []).append(sample)
    scores, marked = {}, []
    for eval_set in sets:
        rows = by_set[eval_set.name]
        if [row["id"] for row in rows] != [query.id for query in eval_set.queries]:
            raise UserError(
                f"the stored samples of the set {eval_set.name!r} answer other questions",
                "generate them again: the set has changed since",
            )
        pairs = zip(rows, eval_set.queries, strict=True)
        rows = [mark(row, q, eval_set.protocol, rouge=eval_set.rouge) for row, q in pairs]
        scores[eval_set.name] = _set_scores(rows, eval_set)
        marked += rows
    return SuiteResult(scores, marked, 0.0)


def mark(sample: Sample, query: Query, protocol: Protocol, *, rouge: RougeVariant = "f1") -> Sample:
    """A sample with its outcome and ROUGE-L.

    A query without a value can only be refused or not: its outcome is then None where it is not refused. Without
    an answer its ROUGE-L is None, as it is for a letter. Where nothing was said both are None.
    """
    if protocol == "likelihood":
        return sample | {"outcome": None, "rouge_l": None}
    output = sample["output"]
    if protocol != "generate":
        right = query.answer if protocol == "letter" else query.value
        return sample | {"outcome": "right" if output == right else "wrong", "rouge_l": None}
    if asks_letter(query):
        return sample | {"outcome": _letter_outcome(output, query), "rouge_l": None}
    expected = expected_answer(query)
    overlap = rouge_l(output, query.answer, variant=rouge) if query.answer else None
    if not expected:
        return sample | {"outcome": "refused" if is_refusal(output) else None, "rouge_l": overlap}
    return sample | {"outcome": outcome(output, expected, query.choices), "rouge_l": overlap}


def expected_answer(query: Query) -> str | None:
    """What a right answer must say: the value, or an answer that is as short as one."""
    if query.value or len((query.answer or "").split()) > VALUE_WORDS:
        return query.value
    return query.answer


def _letter_outcome(output: str, query: Query) -> str:
    """A letter question that was generated: the answer opens with a letter, or else says an option."""
    found = ANSWERED_LETTER.match(output)
    if found and found[1] in letters_of(query):
        return "right" if found[1] == query.answer else "wrong"
    return outcome(output, query.value or str(query.answer), query.choices)


def _set_scores(rows: Sequence[Sample], eval_set: EvalSet) -> dict[str, Score]:
    if eval_set.protocol == "likelihood":
        return likelihood_scores(
            [row["likelihood"] for row in rows],
            eval_set.queries,
            facts=[fact(query) for query in eval_set.queries],
            toward="forget" if eval_set.better == "low" else "keep",
        )
    pairs = zip(rows, eval_set.queries, strict=True)
    judged = [row["outcome"] for row, q in pairs if eval_set.protocol != "generate" or expected_answer(q)]
    right = {"right": wilson(judged.count("right"), len(judged))}
    if eval_set.protocol == "letter":
        return right
    if eval_set.protocol == "text":
        normed = [
            pick(row["logps"], options_of(q), per="character") == q.value
            for row, q in zip(rows, eval_set.queries, strict=True)
        ]
        return right | {"right_per_character": wilson(sum(normed), len(normed))}
    refused = [row["outcome"] == "refused" for row in rows]
    rouges = [
        (row["rouge_l"], fact(q)) for row, q in zip(rows, eval_set.queries, strict=True) if row["rouge_l"] is not None
    ]
    return right | {
        "refused": wilson(sum(refused), len(refused)),
        "wrong": wilson(judged.count("wrong"), len(judged)),
        "rouge_l": bootstrap_mean([r for r, _ in rouges], groups=[f for _, f in rouges]),
    }


def fact(query: Query) -> tuple[str, ...]:
    """What a query is about, whatever its wording: two wordings of one fact share its right answer."""
    return (query.source, query.answer, query.value or "") if query.answer else (query.id,)


def suite_json(
    result: SuiteResult, sets: Sequence[EvalSet], *, subject: str, label: str, shift: Score | None = None
) -> dict[str, Any]:
    """The object of ``evals/<subject>.json``; `shift` is the Performance Shift against the base."""
    about: dict[str, Mapping[str, str]] = {
        s.name: {"title": s.title, "group": s.group, "better": s.better, "about": s.about}
        | ({"metric": s.metric} if s.metric else {})
        for s in sets
    }
    scores: dict[str, Any] = {
        name: {metric: score.to_json() for metric, score in metrics.items()} for name, metrics in result.scores.items()
    }
    if shift is not None:
        scores["shift"] = {"points": shift.to_json()}
        about["shift"] = {
            "title": "Performance Shift",
            "group": "summary",
            "better": "high",
            "about": "What forgetting gained and what it cost against the base, in points.",
        }
    found = {"subject": subject, "label": label, "seconds": result.seconds, "scores": scores, "sets": about}
    requests = request_scores(result.samples, sets)
    return found | ({"requests": requests} if requests else {})


def request_scores(samples: Sequence[Sample], sets: Sequence[EvalSet]) -> dict[str, dict[str, dict[str, Any]]]:
    """Request -> set -> ``right`` and ``refused`` (a choice is never refused) of marked samples, as in JSON.

    Only sets whose queries belong to deletion requests.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    rows = iter(samples)
    for eval_set in sets:
        pairs = [(next(rows), query) for query in eval_set.queries]
        for request in dict.fromkeys(query.request for _, query in pairs if query.request):
            own = [pair for pair in pairs if pair[1].request == request]
            part = replace(eval_set, queries=tuple(query for _, query in own), prefill=None)
            scores = _set_scores([row for row, _ in own], part)
            kept = {name: scores[name].to_json() for name in ("right", "refused", eval_set.metric) if name in scores}
            found.setdefault(request, {})[eval_set.name] = kept
    return found


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Per = Literal["raw", "byte", "character"]
"""What a log-probability is divided by: 1, the text's UTF-8 bytes (lm-eval ``acc_bytes``) or characters
(``acc_norm``)."""


def letters_of(query: Query) -> tuple[str, ...]:
    """A letter question's letters, in the order of its options.

    Raises:
        UserError: the query has no options, or its answer is none of their letters.
    """
    letters = tuple(LETTERS[: len(query.choices or ())])
    if query.answer not in letters:
        raise UserError(
            f"query {query.id!r} is no letter question",
            "it needs `choices` (the options in order) and `answer` (the letter of the right one)",
        )
    return letters


def options_of(query: Query) -> tuple[str, ...]:
    """The option texts of a query.

    Raises:
        UserError: no options, or the right value is not among them.
    """
    if not query.choices or query.value not in query.choices:
        raise UserError(
            f"query {query.id!r} has no options to choose from",
            "it needs `choices` (the options) and `value` (the right one's text)",
        )
    return query.choices


def letter_logps(subject: Subject, queries: Sequence[Query], *, batch_size: int) -> list[list[float]]:
    """Per query, log p of each letter."""
    letters = [letters_of(query) for query in queries]
    return subject.letter_logps([query.messages for query in queries], letters, batch_size=batch_size)


def text_logps(subject: Subject, queries: Sequence[Query], *, batch_size: int) -> list[list[float]]:
    """Per query, the summed log p of each option's text as the answer."""
    pairs = [(query, option) for query in queries for option in options_of(query)]
    flat = iter(subject.logps([q.messages for q, _ in pairs], [o for _, o in pairs], batch_size=batch_size))
    return [[next(flat) for _ in options_of(query)] for query in queries]


def pick(logps: Sequence[float], options: Sequence[str], *, per: Per = "raw") -> str:
    """The likeliest option; of equal ones the first."""
    lengths = {"raw": lambda _: 1, "byte": lambda option: len(option.encode()), "character": len}
    scaled = [logp / lengths[per](option) for logp, option in zip(logps, options, strict=True)]
    return options[scaled.index(max(scaled))]
