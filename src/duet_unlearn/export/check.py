"""Whether an exported folder says what the student said: some of its stored answers, asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duet_unlearn.evals import EvalSet, ModelSubject
from duet_unlearn.evals.suite import run_suite
from duet_unlearn.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = 64
"""Answers that are asked again, in equal parts from every set."""


@dataclass(frozen=True)
class Answers:
    """How the answers of a loaded export compare with the student's."""

    compared: int
    differing: int
    """Answers with other words: of several refusals that are about as likely, rounding picks another."""
    turned: int
    """Answers that count otherwise: right, refused or wrong."""


def same_answers(
    job: Job, samples: Sequence[Mapping[str, Any]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Answers:
    """Ask a model what the student was asked; `samples` are the lines of ``samples/student.jsonl``."""
    stored = {(row["set"], row["id"]): row for row in samples}
    config, sets = job.recipe.evaluate, job.suite()
    said = run_suite(
        ModelSubject("student", model, tokenizer),
        [_first(one, max(1, SAMPLES // len(sets))) for one in sets],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    ).samples
    pairs = [(stored[row["set"], row["id"]], row) for row in said]
    differing, turned = (sum(then[key] != now[key] for then, now in pairs) for key in ("output", "outcome"))
    return Answers(len(pairs), differing, turned)


def _first(eval_set: EvalSet, count: int) -> EvalSet:
    """A set's first questions."""
    prefill = eval_set.prefill[:count] if eval_set.prefill is not None else None
    return replace(eval_set, queries=eval_set.queries[:count], prefill=prefill)
