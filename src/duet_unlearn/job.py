"""A recipe with everything that it names: the queries it trains on, the questions of its evaluation, and whether all
of it fits the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import DataConfig, prefix_of
from duet_unlearn.data.corpus import read_corpus, split
from duet_unlearn.data.examples import Example, Pick, Source, Texts, TrainingData, epochs_source, packaged_texts
from duet_unlearn.data.files import read_text
from duet_unlearn.data.prompts import answer_ids, behind, in_context, render, render_answer, takes_context
from duet_unlearn.data.published import scheme_of
from duet_unlearn.data.query import Message, Query, read_queries
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import BenchmarkSettings, benchmark_sets, load_reference
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.evals.summaries import performance_shift
from duet_unlearn.lab import references as lab
from duet_unlearn.lab.evaluation import lab_suite, shift_sets, validation_suite
from duet_unlearn.lab.language import OPENERS, REFUSALS, REVERSE
from duet_unlearn.methods.base import Need, Split
from duet_unlearn.models.blocks import context_of
from duet_unlearn.models.load import default_device
from duet_unlearn.stats import Score
from duet_unlearn.subjects import load_subject_model, weights_of

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
TEMPLATE = 512
"""Tokens that a chat template adds at most; what may come near the model's context is counted exactly."""
CHUNK = 1000
"""Characters of a text that is cut out of a document."""


@dataclass(frozen=True)
class Job:
    """A recipe and its queries."""

    recipe: Recipe
    train: TrainingData
    validation: TrainingData
    """Queries that are never trained on: to stop early by, and to choose settings on."""
    start: str | None = None
    """The model that training starts from, where it is not the base: a model folder or a run."""
    concepts: tuple[str, ...] = ()
    """What the forget queries are about, where any names a concept of its own; one that names none is about the
    recipe's."""

    @property
    def warnings(self) -> list[str]:
        if not self.recipe.method.changes_weights:
            return []
        rounds = self.recipe.model.dtype == "bfloat16" and not self.recipe.model.lora
        return [text for text, holds in ((NO_RETAIN, not self.train.retain), (ROUNDED, rounds)) if holds]

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
        found = {
            "forget queries": self.train.forget,
            "retain queries": self.train.retain,
            "evaluation questions": asked,
        }
        found |= {"neighbour queries": self.train.neighbours} if self.train.neighbours else {}
        found |= {"text to distil on": self.train.texts} if self.train.texts else {}
        return {name: hashed([asdict(query) for query in queries]) for name, queries in found.items()}

    def model_hashes(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Hashes of model, oracle and tokeniser, for ``env.json``."""
        oracle = {"oracle": weights_of(self.recipe.model.oracle)} if self.recipe.model.oracle else {}
        own_tokenizer = {"tokenizer": hashed([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())])}
        settings = [
            self.recipe.concept,
            asdict(self.recipe.prefix),
            asdict(self.recipe.evaluate),
            self.recipe.model.dtype,
        ]
        start = {"start": weights_of(self.recipe.model.start)} if self.recipe.model.start else {}
        return (
            {"model": weights_of(self.recipe.model.path)}
            | start
            | oracle
            | own_tokenizer
            | {"settings": hashed(settings)}
        )

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokeniser; what does not fit it is said before any work is done."""
        path = self.recipe.model.path
        if (Path(path) / "adapter_config.json").exists():
            raise UserError(
                f"{path}: is an adapter, which cannot be trained again as a whole model",
                "merge it into its base first: PEFT's merge_and_unload, then save_pretrained",
            )
        method = self.recipe.method
        method.check_packing(self.recipe, quantised=self.recipe.model.quantise is not None)
        model, tokenizer = load_subject_model(path, self.recipe)
        method.check_model(model, self.recipe)
        if limit := context_of(model):
            self._check_lengths(tokenizer, limit)
        return model, tokenizer

    def training_data(self, split: Split) -> TrainingData:
        """A split as it is trained on: each query without and, where the recipe has any, behind deployer's turns."""
        data = self.train if split == "train" else self.validation
        return self.recipe.method.select_data(data).behind(self.context)

    @cached_property
    def shown_turns(self) -> tuple[Message, ...]:
        """Turns in front of whatever is asked, where the method shows some."""
        return self.recipe.method.shown_turns(self.train)

    @property
    def context(self) -> tuple[Message, ...]:
        """The deployer's own turns."""
        return tuple(asdict(turn) for turn in self.recipe.data.context)

    def _check_lengths(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        """Every prompt, with prefix and response prefix, and the longest text behind it must fit into `limit` tokens,
        and so must every text to distil on.

        Raises:
            UserError: one does not; it is named with its lengths.
        """
        shown, room = self.shown_turns, self.recipe.evaluate.max_new_tokens
        named = None if shown else prefix_of(self.recipe)  # no method has both
        train, held_out = self.training_data("train"), self.training_data("validation")
        trained = replace(train, forget=(*train.forget, *held_out.forget), retain=(*train.retain, *held_out.retain))
        asked = [
            (query, response_prefix, one.max_new_tokens or room)
            for one in self.suite()
            for query, response_prefix in zip(one.queries, one.prefill or cycle([""]), strict=False)
        ]
        for query, response_prefix, new_tokens in [*self.recipe.method.longest_prompts(trained, room=room), *asked]:
            prefix = named.about(query.concept) if named else None
            longest = max((query.answer or "", query.paraphrase or "", *(query.wrong or ())), key=len)
            messages = behind(query.messages, shown) if shown else query.messages
            texts = (
                prefix.instruction if prefix else "",
                response_prefix,
                *(message["content"] for message in messages),
            )
            # Tokens are counted only where a bound on them, which costs nothing, comes near the limit.
            if _most_tokens(*texts) + max(_most_tokens(longest), new_tokens) + TEMPLATE <= limit:
                continue
            prompt = len(render(tokenizer, messages, prefix=prefix, prefill=response_prefix))
            answer = max(1 + len(answer_ids(tokenizer, query.messages, longest)), new_tokens)
            if prompt + answer > limit:
                raise UserError(
                    f"query {query.id!r}: {prompt} tokens of prompt and {answer} of answer exceed the model's {limit}",
                    self._how_to_shorten(query),
                )
        for query in self.train.texts:
            text = query.answer or ""
            if _most_tokens(text, *(message["content"] for message in query.messages)) + TEMPLATE <= limit:
                continue
            if (length := len(render_answer(tokenizer, query.messages, text)[0])) > limit:
                raise UserError(
                    f"data.distil: {query.id!r} has {length} tokens, more than the model's {limit}",
                    "cut its text into shorter ones",
                )

    def _how_to_shorten(self, query: Query) -> str:
        """What can be done about a prompt that is too long."""
        shots = self.recipe.evaluate.shots
        if not query.id.startswith("mmlu/"):
            front = "the examples (method.forget_shots)" if self.shown_turns else "the prefix"
            return f"shorten the query, its answer, {front}, data.context or evaluate.max_new_tokens"
        if shots:
            return f"lower evaluate.shots (it is {shots}), or take a model that reads more tokens"
        return "it is one MMLU question alone: take a model that reads more tokens, or mmlu out of evaluate.benchmarks"

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
        sets = [self._set("forget", self.train.forget)]
        return [*sets, self._set("retain", self.train.retain)] if self.train.retain else sets

    @cached_property
    def _benchmark_sets(self) -> list[EvalSet]:
        """The benchmarks' sets."""
        config, ids = self.recipe.evaluate, frozenset(query.id for query in (*self.train.forget, *self.train.retain))
        settings = BenchmarkSettings(self.recipe.data.folder, config.limit, config.shots, self.recipe.concept, ids)
        sets = benchmark_sets(config.benchmarks, settings)
        if taken := config.sets.keys() & {one.name for one in sets}:
            raise UserError(f"evaluate.sets.{min(taken)}: a benchmark has a set of this name", "choose another name")
        return [self._under_concepts(one) for one in sets]

    def _under_concepts(self, one: EvalSet) -> EvalSet:
        """A set as base + prefix is asked it: about what is kept by turns under each request's concept; about what is
        forgotten under the query's own or the recipe's, for another request's prefix need not cover it."""
        if one.better == "low" and one.group != "retain":
            return one
        return replace(one, queries=_with_concepts(self.concepts, one.queries))

    def _set(self, name: str, queries: Sequence[Query]) -> EvalSet:
        """A set from a file: what its name begins with says whether its answers should fall or stay."""
        forget = name.startswith("forget")
        group = "forget" if forget else "neighbour" if name.startswith("near") else "retain"
        trained = {query.text for query in (*self.train.forget, *self.train.retain)}
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
        forget, retained = shift_sets(self._lab_target())
        stored = {
            name: {metric: Score.from_json(value) for metric, value in metrics.items()}
            for name, metrics in base.items()
        }
        return performance_shift(stored, scores, forget=forget, keep=retained)

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
    validation = TrainingData(
        _load(data.validation_forget, folder=data.folder),
        _with_concepts(concepts, _load(data.validation_retain, folder=data.folder)),
        prefix_of(recipe),
        seed=recipe.seed,
        **_texts_for(recipe, "validation"),
    )
    recipe.method.validate(recipe, validation)
    train = replace(
        validation,
        forget=forget,
        retain=_with_concepts(concepts, _load(data.retain, folder=data.folder)),
        neighbours=_with_concepts(concepts, _load(data.neighbours, folder=data.folder)),
        **_texts_for(recipe, "train"),
    )
    job = Job(recipe=recipe, train=train, validation=validation, concepts=concepts)
    if recipe.evaluate.target and recipe.evaluate.suite == "queries":
        raise UserError(
            f"evaluate.target is {recipe.evaluate.target}, but evaluate.suite is not `lab`",
            "set evaluate.suite to lab, or take evaluate.target out",
        )
    if recipe.train.validate_every and not job.validation.forget:
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


def _with_concepts(concepts: Sequence[str], queries: Sequence[Query]) -> tuple[Query, ...]:
    """Queries that name no concept under each of `concepts` by turns: none may be answered worse for any."""
    if not concepts:
        return tuple(queries)
    return tuple(q if q.concept else replace(q, concept=concepts[i % len(concepts)]) for i, q in enumerate(queries))


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


def _texts_for(recipe: Recipe, split: Split) -> dict[str, Any]:
    """Those fields of ``TrainingData`` that hold texts and that the method needs for a split."""
    needed = [field for field, (need, _, splits) in LOADERS.items() if need in recipe.method.needs and split in splits]
    return {field: LOADERS[field][1](recipe.data) for field in needed}


def _lines(kind: Texts) -> Callable[[DataConfig], tuple[str, ...]]:
    """Reads a text a line: of the file that `data` names, or our own, or the lab's."""

    def load(data: DataConfig) -> tuple[str, ...]:
        reference = getattr(data, kind)
        if reference is None:
            return packaged_texts(kind)
        if reference == LAB_TEXTS[kind]:
            return {"refusals": REFUSALS, "response_prefixes": OPENERS.train, "reversals": REVERSE.train}[kind]
        lines = tuple(line.strip() for line in read_text(Path(reference)).splitlines() if line.strip())
        if not lines:
            raise UserError(f"{reference}: is empty", f"write a text on each line, or set data.{kind} to null")
        return lines

    return load


def _load_texts(data: DataConfig) -> tuple[Query, ...]:
    """Text to distil on: queries, and raw text as queries of role ``text``.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    reference = data.distil
    if reference is None:
        raise UserError(
            "data.distil is missing: undo distils the model anew, on text that names all that it should still know",
            "name a JSONL file, a text file or a folder of such; in the lab lab:mix/10000",
        )
    if reference.startswith("lab:"):
        return tuple(lab.load(reference))
    if _has_queries(Path(reference)):
        return tuple(read_queries(reference))
    chunks = (chunk for document in read_corpus(reference) for chunk in split(document, size=CHUNK))
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


LAB_TEXTS = {"refusals": "lab:refusals", "response_prefixes": "lab:openers", "reversals": "lab:reversals"}
LOADERS: dict[str, tuple[Need, Callable[[DataConfig], tuple[Any, ...]], tuple[Split, ...]]] = {
    "refusals": ("refusals", _lines("refusals"), ("train", "validation")),
    "response_prefixes": ("openings", _lines("response_prefixes"), ("train", "validation")),
    "reversals": ("openings", _lines("reversals"), ("train", "validation")),
    "texts": ("texts", _load_texts, ("train",)),
}
"""Field of ``TrainingData`` -> which need asks for it, how it is read, and the splits that have it."""


def hashed(value: Any) -> str:
    """A short hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _most_tokens(*texts: str) -> int:
    """No tokeniser of ours makes more tokens of a text than it has bytes, and a mark for its beginning."""
    return sum(len(text.encode()) + 1 for text in texts)
