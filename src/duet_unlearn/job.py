"""A recipe with everything it names found: the model's folder, the queries, the questions of its evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from duet_unlearn.blocks import context_of
from duet_unlearn.config import Recipe
from duet_unlearn.data.context import in_context, takes_context, with_context
from duet_unlearn.data.examples import Example, Pick, Source, epochs_source
from duet_unlearn.data.files import read_text
from duet_unlearn.data.jsonl import read_queries
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.published import scheme_of
from duet_unlearn.data.query import Message, Query
from duet_unlearn.distil import check_undo, load_texts
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import Ask, benchmark_sets, load_reference
from duet_unlearn.evals.shift import performance_shift
from duet_unlearn.evals.suite import EvalSet
from duet_unlearn.fits import check_fits
from duet_unlearn.lab import data as lab
from duet_unlearn.lab.suite import lab_suite, shift_sets
from duet_unlearn.lab.validation import validation_suite
from duet_unlearn.lab.wordings import OPENERS, REFUSALS, REVERSE
from duet_unlearn.methods import InContext, Learner, Material, Rmu, Trained, Uld, check_keeps, learner, packaged_texts
from duet_unlearn.methods.material import Texts
from duet_unlearn.runs import Run
from duet_unlearn.stats import Score
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.cache import weights_id
from duet_unlearn.teacher.openings import Opening
from duet_unlearn.train.lora import has_adapter
from duet_unlearn.train.model import default_device, load_model, merged
from duet_unlearn.train.quantise import is_quantised

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


Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Job:
    """A recipe and its queries."""

    recipe: Recipe
    forget: tuple[Query, ...]
    retain: tuple[Query, ...]
    validation_forget: tuple[Query, ...]
    validation_retain: tuple[Query, ...]
    refusals: tuple[str, ...] = ()
    """Texts that refuse, for methods that train on them."""
    neighbours: tuple[Query, ...] = ()
    openers: tuple[str, ...] = ()
    """Beginnings of answers, for methods that open them."""
    reversals: tuple[str, ...] = ()
    """Texts that bid the model ignore what it was told, for the same."""
    texts: tuple[Query, ...] = ()
    """Text to distil on, for the method that does."""
    start: str | None = None
    """The model that training starts from, where it is not the base: a model folder or a run."""
    concepts: tuple[str, ...] = ()
    """What the forget queries are about, where any names a concept of its own; one that names none is about the
    recipe's."""

    @property
    def warnings(self) -> list[str]:
        if not isinstance(self.recipe.method, Trained):
            return []
        rounds = self.recipe.model.dtype == "bfloat16" and not self.recipe.model.lora
        return [text for text, holds in ((NO_RETAIN, not self.retain), (ROUNDED, rounds)) if holds]

    @property
    def device(self) -> str:
        return str(default_device())

    @cached_property
    def weights(self) -> str:
        """Identity of the weights that training starts from."""
        base = weights_of(self.recipe.model.path)
        return f"{base}+{weights_of(self.start)}" if self.start else base

    def query_hashes(self) -> dict[str, str]:
        """Hashes of the queries, for ``env.json``."""
        asked = [query for one in self.suite() for query in one.queries]
        found = {"forget queries": self.forget, "retain queries": self.retain, "evaluation questions": asked}
        found |= {"neighbour queries": self.neighbours} if self.neighbours else {}
        found |= {"text to distil on": self.texts} if self.texts else {}
        return {name: hashed([asdict(query) for query in queries]) for name, queries in found.items()}

    def model_hashes(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Hashes of model, oracle and tokeniser, for ``env.json``."""
        oracle = {"oracle": weights_of(self.recipe.model.oracle)} if self.recipe.model.oracle else {}
        words = {"tokenizer": hashed([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())])}
        settings = [
            self.recipe.concept,
            asdict(self.recipe.prefix),
            asdict(self.recipe.evaluate),
            self.recipe.model.dtype,
        ]
        start = {"start": weights_of(self.recipe.model.start)} if self.recipe.model.start else {}
        return {"model": weights_of(self.recipe.model.path)} | start | oracle | words | {"settings": hashed(settings)}

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokeniser; what does not fit it is said before any work is done."""
        path = self.recipe.model.path
        if (Path(path) / "adapter_config.json").exists():
            raise UserError(
                f"{path}: is an adapter, which cannot be trained again as a whole model",
                "merge it into its base first: PEFT's merge_and_unload, then save_pretrained",
            )
        _require_lora(self.recipe, self.recipe.model.quantise is not None)
        model, tokenizer = load_subject_model(path, self.recipe)
        _require_lora(self.recipe, is_quantised(model))
        if isinstance(self.recipe.method, Rmu):
            self.recipe.method.trains(model)  # raises where its matrices are not found
        if isinstance(self.recipe.method, Learner):
            check_keeps(self.recipe.method, model.config.get_text_config().vocab_size)
        if limit := context_of(model):
            check_fits(self, tokenizer, limit)
        return model, tokenizer

    def asked(self, split: Split, openings: Mapping[str, Sequence[Opening]] | None = None) -> list[Asked]:
        """The rows of a split; `openings` for a method that needs them."""
        return learner(self.recipe.method).asks(replace(self.material(split), openings=openings or {}))

    def material(self, split: Split) -> Material:
        """The queries of a split and all else that its rows are made of, but for what the model says. Neighbours are
        retain queries to a method that does not tell them from those."""
        forget, retain, near = (
            (self.forget, self.retain, self.neighbours)
            if split == "train"
            else (self.validation_forget, self.validation_retain, ())
        )
        apart = "neighbours" in self.recipe.method.needs
        return Material(
            forget=self.in_both(forget),
            retain=self.in_both(retain if apart else (*retain, *near)),
            neighbours=self.in_both(near if apart else ()),
            prefix=prefix_of(self.recipe),
            refusals=self.refusals,
            reversals=self.reversals,
            texts=self.texts if split == "train" else (),
            seed=self.recipe.seed,
        )

    @cached_property
    def shots(self) -> tuple[Message, ...]:
        """Examples in front of whatever is asked, for the method that shows some."""
        method = self.recipe.method
        if not isinstance(method, InContext):
            return ()
        return method.shots(self.forget, (*self.retain, *self.neighbours), seed=self.recipe.seed)

    @property
    def context(self) -> tuple[Message, ...]:
        """The deployer's own turns."""
        return tuple(asdict(turn) for turn in self.recipe.data.context)

    def in_both(self, queries: Sequence[Query]) -> tuple[Query, ...]:
        """Queries as they are trained: without and, where the recipe has them, with the deployer's turns."""
        return with_context(queries, self.context)

    def source(self, examples: Sequence[Example], pick: Pick | None = None) -> tuple[Source, int]:
        """The order of training, and its number of steps; `pick` takes rows out of their pools."""
        config, seed = self.recipe.train, self.recipe.seed
        return epochs_source(examples, batch_size=config.batch_size, epochs=config.epochs, seed=seed, pick=pick)

    def suite(self) -> list[EvalSet]:
        """What every subject is asked: each set, and then each again behind the deployer's turns.

        Raises:
            UserError: a set is named as another's repetition would be.
        """
        sets = self._plain_suite()
        again = [found for one in sets if self.context and (found := set_in_context(one, self.context))]
        if taken := {one.name for one in sets} & {one.name for one in again}:
            raise UserError(
                f"evaluate.sets.{min(taken)}: with data.context this name is taken", "choose another name for the set"
            )
        return [*sets, *again]

    def _plain_suite(self) -> list[EvalSet]:
        if self.recipe.evaluate.suite == "lab":
            return lab_suite(self._lab_target())
        if self.recipe.evaluate.suite == "lab-validation":
            return validation_suite(self._lab_target())
        config, folder = self.recipe.evaluate, self.recipe.data.folder
        if config.sets or config.benchmarks:
            own = [self._set(name, _load(reference, folder=folder)) for name, reference in config.sets.items()]
            return [*own, *self._benchmark_sets]
        sets = [self._set("forget", self.forget)]
        return [*sets, self._set("retain", self.retain)] if self.retain else sets

    @cached_property
    def _benchmark_sets(self) -> list[EvalSet]:
        """The benchmarks' sets."""
        config, ids = self.recipe.evaluate, frozenset(query.id for query in (*self.forget, *self.retain))
        ask = Ask(self.recipe.data.folder, config.limit, config.shots, self.recipe.concept, ids)
        sets = benchmark_sets(config.benchmarks, ask)
        if taken := config.sets.keys() & {one.name for one in sets}:
            raise UserError(f"evaluate.sets.{min(taken)}: a benchmark has a set of this name", "choose another name")
        return [self._under_concepts(one) for one in sets]

    def _under_concepts(self, one: EvalSet) -> EvalSet:
        """A set as base + prefix is asked it: about what is kept by turns under each request's concept; about what is
        forgotten under the query's own or the recipe's, for another request's prefix need not cover it."""
        if one.better == "low" and one.group != "retain":
            return one
        return replace(one, queries=_under(self.concepts, one.queries))

    def _set(self, name: str, queries: Sequence[Query]) -> EvalSet:
        """A set from a file: what its name begins with says whether its answers should fall or stay."""
        forget = name.startswith("forget")
        group = "forget" if forget else "neighbour" if name.startswith("near") else "retain"
        trained = {query.text for query in (*self.forget, *self.retain)}
        shown = sum(query.text in trained for query in queries)
        title = name.replace("_", " ").capitalize()
        found = EvalSet(
            name=name,
            title=f"{title} (trained on)" if 2 * shown > len(queries) else title,
            group=group,
            better="low" if forget else "high",
            about=f"{shown} of the {len(queries)} questions were trained on",
            queries=tuple(queries),
        )
        return self._under_concepts(found)

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
        if self.recipe.evaluate.target:
            return self.recipe.evaluate.target
        reference = self.recipe.data.forget
        if not reference.startswith("lab:train/forget/"):
            raise UserError(
                f"evaluate.suite is `{self.recipe.evaluate.suite}`, but data.forget is {reference}",
                "set evaluate.target, data.forget to lab:train/forget/<target>, or evaluate.suite to `queries`",
            )
        return reference.rsplit("/", 1)[-1]


def load_job(recipe: Recipe) -> Job:
    """Find everything that a recipe names.

    Raises:
        UserError: a file or lab reference that is not there, or not readable; a suite that does not fit.
    """
    data = recipe.data
    forget = _load(data.forget, folder=data.folder, count=data.num_forget)
    named = any(query.concept for query in forget)
    concepts = tuple(dict.fromkeys(query.concept or recipe.concept for query in forget)) if named else ()
    job = Job(
        recipe=recipe,
        refusals=_texts("refusals", data.refusals) if "refusals" in recipe.method.needs else (),
        openers=_texts("openers", data.openers) if "openings" in recipe.method.needs else (),
        reversals=_texts("reversals", data.reversals) if "openings" in recipe.method.needs else (),
        texts=load_texts(recipe) if "texts" in recipe.method.needs else (),
        forget=forget,
        retain=_under(concepts, _load(data.retain, folder=data.folder)),
        neighbours=_under(concepts, _load(data.neighbours, folder=data.folder)),
        validation_forget=_load(data.validation_forget, folder=data.folder),
        validation_retain=_under(concepts, _load(data.validation_retain, folder=data.folder)),
        concepts=concepts,
    )
    check_undo(recipe, job.validation_retain)
    if recipe.evaluate.target and recipe.evaluate.suite == "queries":
        raise UserError(
            f"evaluate.target is {recipe.evaluate.target}, but evaluate.suite is not `lab`",
            "set evaluate.suite to lab, or take evaluate.target out",
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


def set_in_context(eval_set: EvalSet, context: Sequence[Message]) -> EvalSet | None:
    """The set `<name>_context`: its questions behind the deployer's turns; None where all are raw text."""
    fit = [index for index, query in enumerate(eval_set.queries) if takes_context(query)]
    if not fit:
        return None
    return replace(
        eval_set,
        name=f"{eval_set.name}_context",
        title=f"{eval_set.title}, deployer's turns",
        about=f"{eval_set.about}; behind the recipe's data.context",
        queries=tuple(in_context(eval_set.queries[i], context) for i in fit),
        prefill=tuple(eval_set.prefill[i] for i in fit) if eval_set.prefill is not None else None,
    )


def _under(concepts: Sequence[str], queries: Sequence[Query]) -> tuple[Query, ...]:
    """Queries that name no concept under each of `concepts` by turns: none may be answered worse for any."""
    if not concepts:
        return tuple(queries)
    return tuple(q if q.concept else replace(q, concept=concepts[i % len(concepts)]) for i, q in enumerate(queries))


def prefix_of(recipe: Recipe) -> Prefix:
    """The teacher's prefix, about the recipe's concept."""
    return Prefix(recipe.prefix.text, recipe.prefix.turn, recipe.concept)


def _require_lora(recipe: Recipe, quantised: bool) -> None:
    if isinstance(recipe.method, Rmu) and (recipe.model.lora or quantised):
        raise UserError(
            "method rmu trains chosen weights of the model itself, not adapters",
            "set model.lora to null, and take the unquantised model",
        )
    if quantised and isinstance(recipe.method, Uld):
        raise UserError(
            f"{recipe.model.path}: is quantised, and its layers cannot be trained as the assistant of uld",
            "take the unquantised model, and model.quantise: null",
        )
    if quantised and recipe.model.lora is None and isinstance(recipe.method, Trained):
        raise UserError(
            f"{recipe.model.path}: quantised weights cannot be trained, and model.lora is null",
            "set model.lora, for example {rank: 16}; or take the unquantised model, and model.quantise: null",
        )


def model_folder(path: str) -> str:
    """The folder of a ``lab:`` model; any other path or hub id as it is."""
    return str(lab.model_path(path)) if path.startswith("lab:") else path


def load_subject_model(path: str, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the recipe's type, chat template and quantisation; a merged student is taken as it was saved."""
    settings = recipe.model
    merged = settings.lora is not None and settings.lora.save == "merged"
    as_saved = merged and path not in (settings.path, settings.oracle)
    return load_model(
        model_folder(path),
        dtype=settings.dtype,
        chat_template=settings.chat_template,
        quantise=None if as_saved else settings.quantise,
    )


def load_start(path: str, recipe: Recipe) -> PreTrainedModel:
    """The model that training starts from: a folder's, or a run's student, with its adapter merged."""
    model, _ = load_subject_model(start_folder(path), recipe)
    return merged(model).requires_grad_(True) if has_adapter(model) else model  # PEFT had frozen the weights


def start_folder(path: str) -> str:
    """A model's folder or hub id as it is; of a run the folder of its student.

    Raises:
        UserError: the run's method trained no model.
    """
    run = Run(Path(path))
    if not run.recipe.exists():
        return path
    if run.finished and not run.model.is_dir():
        raise UserError(f"{path}: this run trained no model that another could start from", "name one that did")
    return str(run.model)


def _load(reference: str | None, *, folder: str | None, count: int | None = None) -> tuple[Query, ...]:
    if reference is None:
        return ()
    if reference.startswith("lab:"):
        queries = lab.load(reference, count=count)
    else:
        queries = load_reference(reference, folder) if scheme_of(reference) else read_queries(reference)
    if count and count > len(queries):
        raise UserError(
            f"data.num_forget is {count}, but {reference} has {len(queries)} queries", "lower it, or add queries"
        )
    return tuple(queries[:count])


def _texts(kind: Texts, reference: str | None) -> tuple[str, ...]:
    """A text a line; null: our own; ``lab:<kind>``: the lab's.

    Raises:
        UserError: no such file, or it is empty.
    """
    if reference is None:
        return packaged_texts(kind)
    if reference == f"lab:{kind}":
        return {"refusals": REFUSALS, "openers": OPENERS.train, "reversals": REVERSE.train}[kind]
    lines = tuple(line.strip() for line in read_text(Path(reference)).splitlines() if line.strip())
    if not lines:
        raise UserError(f"{reference}: is empty", f"write a text on each line, or set data.{kind} to null")
    return lines


def weights_of(path: str) -> str:
    """Identity of a model's weights: the hash of a folder's, or of a run's student; of a hub id the id."""
    run = Run(Path(path))
    folder = run.model if run.recipe.exists() else Path(model_folder(path))
    return weights_id(folder) if folder.is_dir() else path


def hashed(value: Any) -> str:
    """A short hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
