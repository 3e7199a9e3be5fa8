"""Whether an exported folder says what the student said: some of its stored answers, asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duet_unlearn.answers import rouge_l
from duet_unlearn.evals.question_sets import EvalSet, run_suite
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = 64
"""Answers that are asked again, in equal parts from every set."""
MOVED = 0.2
"""Change of ROUGE-L against the right answer from which an answer that is neither right nor wrong counts otherwise."""
ALIKE = 0.5
"""ROUGE-L between the two answers from which they count the same, where no right answer is known. Both are ours."""


@dataclass(frozen=True)
class Answers:
    """How the answers of a loaded export compare with the student's."""

    compared: int
    differing: int
    """Answers with other words: of several refusals that are about as likely, rounding picks another."""
    turned: int
    """Answers that count otherwise: right, refused or wrong; by ROUGE-L where they are none of these."""
    forget: tuple[tuple[int, int], ...] = ()
    """(compared, turned) of each set that asks for what was forgotten."""

    def within(self, share: float) -> bool:
        """Whether no more than a share counts otherwise: of all, and of each forget set, where one always may."""
        return self.turned <= share * self.compared and all(
            turned <= max(1.0, share * compared) for compared, turned in self.forget
        )


def same_answers(
    job: Job, samples: Sequence[Mapping[str, Any]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Answers:
    """Ask a model what the student was asked; `samples` are the lines of ``samples/student.jsonl``."""
    stored = {(row["set"], row["id"]): row for row in samples}
    config = job.recipe.evaluate
    sets = [one for one in job.suite() if one.protocol != "likelihood"]  # those say nothing
    said = run_suite(
        ModelSubject("student", model, tokenizer),
        [_first(one, max(1, SAMPLES // len(sets))) for one in sets],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    ).samples
    pairs = [(stored[row["set"], row["id"]], row) for row in said]
    turned = [(now["set"], _turned(then, now)) for then, now in pairs]
    low = [one.name for one in sets if one.better == "low"]
    by_set = [[is_other for name, is_other in turned if name == wanted] for wanted in low]
    return Answers(
        compared=len(pairs),
        differing=sum(then["output"] != now["output"] for then, now in pairs),
        turned=sum(is_other for _, is_other in turned),
        forget=tuple((len(found), sum(found)) for found in by_set),
    )


def _turned(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an answer counts otherwise than the stored one."""
    if then["outcome"] != now["outcome"] or then["outcome"] is not None:
        return then["outcome"] != now["outcome"]
    if then["rouge_l"] is not None and now["rouge_l"] is not None:
        return abs(then["rouge_l"] - now["rouge_l"]) > MOVED
    return then["output"] != now["output"] and rouge_l(now["output"], then["output"]) < ALIKE


def _first(eval_set: EvalSet, count: int) -> EvalSet:
    """A set's first questions."""
    prefill = eval_set.prefill[:count] if eval_set.prefill is not None else None
    return replace(eval_set, queries=eval_set.queries[:count], prefill=prefill)
