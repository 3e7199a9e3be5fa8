"""What UNDO needs beside its loss: its text, settings that fit it, and when to stop (arXiv 2506.06278)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from duet_unlearn.attacks import share_right
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.corpus import read_corpus, split
from duet_unlearn.data.files import read_text
from duet_unlearn.data.query import Query, read_queries
from duet_unlearn.errors import UserError
from duet_unlearn.evals.likelihood import exact_memorisation
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.lab import data as lab
from duet_unlearn.methods import Undo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SIZE = 1000
"""Characters of a text that is cut out of a document."""


def load_texts(recipe: Recipe) -> tuple[Query, ...]:
    """The text that a recipe distils on: queries, and raw text as queries of role ``text``.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    reference = recipe.data.distil
    if reference is None:
        raise UserError(
            "data.distil is missing: undo distils the model anew, on text that names all that it should still know",
            "name a JSONL file, a text file or a folder of such; in the lab lab:mix/10000",
        )
    if reference.startswith("lab:"):
        return tuple(lab.load(reference))
    if _has_queries(Path(reference)):
        return tuple(read_queries(reference))
    chunks = (chunk for document in read_corpus(reference) for chunk in split(document, size=SIZE))
    return tuple(Query(chunk.source, ({"role": "text", "content": chunk.text},)) for chunk in chunks)


def _has_queries(path: Path) -> bool:
    """Whether a file holds queries, and not rows of raw text or text alone."""
    if path.suffix not in (".jsonl", ".csv"):
        return False
    first = read_text(path).lstrip().split("\n", 1)[0]
    try:
        row = json.loads(first) if path.suffix == ".jsonl" else {}
    except json.JSONDecodeError:
        return True  # whose reader says what is wrong
    return not (isinstance(row, dict) and "text" in row)


def check_undo(recipe: Recipe, validation: Sequence[Query]) -> None:
    """Settings that do not go with `undo`.

    Raises:
        UserError: adapters, nothing unlearned to begin with, no answers to stop by, a validation of its loss.
    """
    if not isinstance(recipe.method, Undo):
        return
    if recipe.model.lora:
        raise UserError(
            "model.lora is set, but undo puts noise into all weights and trains them",
            "set model.lora to null; the recipe that `after` names keeps its own",
        )
    if recipe.after is None and recipe.model.start is None:
        raise UserError(
            "undo is a stage behind another method, and the recipe names none",
            "set `after` to the recipe that unlearns, such as lab/duet, or model.start to a finished run",
        )
    if recipe.method.stop_at and not (validation and all(query.answer for query in validation)):
        raise UserError(
            "method.stop_at needs queries with answers in data.validation_retain, and there are none",
            "name such a file, or set method.stop_at to null, which trains to the end",
        )
    if recipe.train.validate_every:
        raise UserError(
            "train.validate_every is set, but undo has no loss on validation queries",
            "set it to 0; method.stop_at and method.stop_every say when undo stops",
        )


@dataclass(frozen=True)
class Goal:
    """When to stop distilling."""

    share: float
    """What is to be right."""
    every: int
    """Steps between two looks."""
    right: Callable[[nn.Module], float]
    """The share that a model gets right."""


def goal_of(
    recipe: Recipe, validation: Sequence[Query], teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Goal | None:
    """The goal of a recipe, set by its teacher; None where it trains to the end.

    Raises:
        UserError: the teacher gets nothing right.
    """
    method, config = recipe.method, recipe.evaluate
    if not isinstance(method, Undo) or method.stop_at is None:
        return None

    def right(model: nn.Module) -> float:
        subject = ModelSubject("", cast("PreTrainedModel", model), tokenizer)
        if all(query.value for query in validation):
            sizes = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
            return share_right(subject.model, tokenizer, validation, **sizes)
        messages, answers = [q.messages for q in validation], [q.answer or "" for q in validation]
        scores = subject.token_scores(messages, answers, batch_size=config.batch_size)
        return fsum(exact_memorisation(score.greedy) for score in scores) / len(scores)

    if (best := right(teacher)) == 0:
        raise UserError(
            "the teacher answers nothing of data.validation_retain right, so a share of that is no goal",
            "look at the queries' values and at evaluate.max_new_tokens, or set method.stop_at to null",
        )
    return Goal(method.stop_at * best, method.stop_every, right)
