"""A recipe with everything it names found: the model's folder, the queries, the questions of its evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duet_unlearn.config import Recipe
from duet_unlearn.data.examples import Example, Source, epochs_source
from duet_unlearn.data.jsonl import read_queries
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.shift import performance_shift
from duet_unlearn.evals.suite import EvalSet
from duet_unlearn.lab import data as lab
from duet_unlearn.lab.suite import lab_suite, shift_sets
from duet_unlearn.stats import Score
from duet_unlearn.teacher.cache import Asked, Role, weights_id
from duet_unlearn.tensors import check_k
from duet_unlearn.train.model import default_device, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_RETAIN = (
    "there are no retain queries: without them the paper's model keeps 69.3 instead of 78.3 ROUGE-L of retained"
    " knowledge and loses 6 points of MMLU (Table 4)"
)
ROUNDED = (
    "model.dtype is bfloat16 and all weights are trained: most updates of a rate like 1e-5 round away; set"
    " model.dtype to float32 (and train.precision to bf16), or model.lora"
)


@dataclass(frozen=True)
class Job:
    """A recipe and its queries."""

    recipe: Recipe
    forget: tuple[Query, ...]
    retain: tuple[Query, ...]
    validation_forget: tuple[Query, ...]
    validation_retain: tuple[Query, ...]

    @property
    def warnings(self) -> list[str]:
        rounds = self.recipe.model.dtype == "bfloat16" and not self.recipe.model.lora
        return [text for text, holds in ((NO_RETAIN, not self.retain), (ROUNDED, rounds)) if holds]

    @property
    def device(self) -> str:
        return str(default_device())

    @cached_property
    def weights(self) -> str:
        """Identity of the base model's weights."""
        return _weights(self.recipe.model.path)

    def query_hashes(self) -> dict[str, str]:
        """Hashes of the queries, for ``env.json``."""
        asked = [query for one in self.suite() for query in one.queries]
        found = {"forget queries": self.forget, "retain queries": self.retain, "evaluation questions": asked}
        return {name: _hash([asdict(query) for query in queries]) for name, queries in found.items()}

    def model_hashes(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Hashes of model, oracle and tokeniser, for ``env.json``."""
        oracle = {"oracle": _weights(self.recipe.model.oracle)} if self.recipe.model.oracle else {}
        words = {"tokenizer": _hash([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())])}
        return {"model": self.weights} | oracle | words

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokeniser; what does not fit it is said before any work is done."""
        path = self.recipe.model.path
        if (Path(path) / "adapter_config.json").exists():
            raise UserError(
                f"{path}: is an adapter, which cannot be trained again as a whole model",
                "merge it into its base first: PEFT's merge_and_unload, then save_pretrained",
            )
        model, tokenizer = load_subject_model(path, self.recipe)
        check_k(self.recipe.method.k, model.config.get_text_config().vocab_size)
        return model, tokenizer

    def asked(self, split: str) -> list[Asked]:
        """What the teacher is asked for a split (``train`` or ``validation``)."""
        prefix = prefix_of(self.recipe)
        forget, retain = (
            (self.forget, self.retain) if split == "train" else (self.validation_forget, self.validation_retain)
        )
        on_retain = prefix if self.recipe.method.retain_prefix == "same" else None
        rows: list[tuple[Sequence[Query], Prefix | None, Role]] = [
            (forget, prefix, "forget"),
            (retain, on_retain, "retain"),
        ]
        return [Asked(query, which, role) for queries, which, role in rows for query in queries]

    def source(self, examples: Sequence[Example]) -> tuple[Source, int]:
        """The order of training, and its number of steps."""
        config = self.recipe.train
        return epochs_source(examples, batch_size=config.batch_size, epochs=config.epochs, seed=self.recipe.seed)

    def suite(self) -> list[EvalSet]:
        """What every subject is asked."""
        if self.recipe.evaluate.suite == "lab":
            return lab_suite(self._lab_target())
        files = self.recipe.evaluate.sets
        if files:
            return [self._set(name, _load(reference)) for name, reference in files.items()]
        sets = [self._set("forget", self.forget)]
        return [*sets, self._set("retain", self.retain)] if self.retain else sets

    def _set(self, name: str, queries: Sequence[Query]) -> EvalSet:
        """A set from a file: what its name begins with says whether its answers should fall or stay."""
        forget = name.startswith("forget")
        group = "forget" if forget else "neighbour" if name.startswith("near") else "retain"
        trained = {query.text for query in (*self.forget, *self.retain)}
        shown = sum(query.text in trained for query in queries)
        title = name.replace("_", " ").capitalize()
        return EvalSet(
            name=name,
            title=f"{title} (trained on)" if 2 * shown > len(queries) else title,
            group=group,
            better="low" if forget else "high",
            about=f"{shown} of the {len(queries)} questions were trained on",
            queries=tuple(queries),
        )

    def shift(self, base: Mapping[str, Any], scores: Mapping[str, Mapping[str, Score]]) -> Score | None:
        """Performance Shift against the base's stored scores; None where the suite has no such sum."""
        if self.recipe.evaluate.suite != "lab":
            return None
        forget, keep = shift_sets(self._lab_target())
        stored = {
            name: {metric: Score.from_json(value) for metric, value in metrics.items()}
            for name, metrics in base.items()
        }
        return performance_shift(stored, scores, forget=forget, keep=keep)

    def _lab_target(self) -> str:
        reference = self.recipe.data.forget
        if not reference.startswith("lab:train/forget/"):
            raise UserError(
                f"evaluate.suite is `lab`, but data.forget is {reference}",
                "set data.forget to lab:train/forget/<target>, or evaluate.suite to `queries`",
            )
        return reference.rsplit("/", 1)[-1]


def load_job(recipe: Recipe) -> Job:
    """Find everything that a recipe names.

    Raises:
        UserError: a file or lab reference that is not there, or not readable; a suite that does not fit.
    """
    data = recipe.data
    job = Job(
        recipe=recipe,
        forget=_load(data.forget, count=data.num_forget),
        retain=_load(data.retain),
        validation_forget=_load(data.validation_forget),
        validation_retain=_load(data.validation_retain),
    )
    if recipe.train.validate_every and not job.validation_forget:
        raise UserError(
            "train.validate_every is set, but data.validation_forget names no queries",
            "name a query file that is never trained on, or set train.validate_every to 0",
        )
    if recipe.train.early_stop and not recipe.train.validate_every:
        raise UserError(
            "train.early_stop is set, but train.validate_every is 0, so nothing would stop",
            "set train.validate_every to a number of steps, or train.early_stop to null",
        )
    job.suite()
    return job


def prefix_of(recipe: Recipe) -> Prefix:
    """The teacher's prefix, with the concept in it."""
    return Prefix(recipe.prefix.render(recipe.concept), recipe.prefix.turn)


def model_folder(path: str) -> str:
    """The folder of a ``lab:`` model; any other path or hub id as it is."""
    return str(lab.model_path(path)) if path.startswith("lab:") else path


def load_subject_model(path: str, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the recipe's type and chat template."""
    return load_model(model_folder(path), dtype=recipe.model.dtype, chat_template=recipe.model.chat_template)


def _load(reference: str | None, *, count: int | None = None) -> tuple[Query, ...]:
    if reference is None:
        return ()
    queries = lab.load(reference, count=count) if reference.startswith("lab:") else read_queries(reference)
    if count and count > len(queries):
        raise UserError(
            f"data.num_forget is {count}, but {reference} has {len(queries)} queries", "lower it, or add queries"
        )
    return tuple(queries[:count])


def _weights(path: str) -> str:
    """The hash of a folder's weights; of a hub id the id."""
    folder = Path(model_folder(path))
    return weights_id(folder) if folder.is_dir() else path


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
