"""What a method that attacks itself needs beside its loss: ways to open an answer, and which of them an epoch meets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from duet_unlearn.data.examples import Example, Pick, pools
from duet_unlearn.job import Job, Split
from duet_unlearn.methods import Bidirectional
from duet_unlearn.methods.bidirectional import ASKED
from duet_unlearn.runs import Run
from duet_unlearn.teacher.openings import Opening, find_openings, read_openings, write_openings
from duet_unlearn.training.search import forbidden_logps, picker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def openings_of(
    run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split
) -> dict[str, tuple[Opening, ...]]:
    """Ways to open the answer of every query, kept in the run folder; none for a method that opens no answers.

    What the model says behind them matters only where it must not be said.
    """
    method, path = job.recipe.method, run.targets / split / "openings.json"
    if not (isinstance(method, Bidirectional) and method.attacks):
        return {}
    if path.exists():
        return read_openings(path)
    material, found = job.material(split), {}
    for role in ASKED:
        queries = material.queries(role)
        ways = find_openings(
            model,
            tokenizer,
            queries,
            openers=job.openers,
            length=method.opening_tokens,
            follow=method.forbidden_tokens if role == "forget" else 0,
            batch_size=job.recipe.evaluate.batch_size,
        )
        found |= {f"{role}/{query.id}": way for query, way in zip(queries, ways, strict=True)}
    write_openings(path, found)
    return found


def pick_of(run: Run, job: Job, student: nn.Module, examples: Sequence[Example], *, pad_id: int) -> Pick | None:
    """Which row of each pool an epoch meets; None where there are no pools."""
    if not pools(examples):
        return None
    scores = partial(forbidden_logps, student, precision=job.recipe.train.precision, pad_id=pad_id)
    return picker(examples, scores=scores, folder=run.picks, seed=job.recipe.seed)
