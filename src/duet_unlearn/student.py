"""The student of a run, whatever its method: a model that was trained, or the model with something beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.files import atomic, atomic_write_json, read_text
from duet_unlearn.errors import UserError
from duet_unlearn.evals.corrupted import corrupting, draw_noise, vocabulary
from duet_unlearn.evals.deployed import Deployed
from duet_unlearn.evals.detector import Detector, Reading, features, fit, load_boundary, save_boundary
from duet_unlearn.evals.refusing import Refusing
from duet_unlearn.evals.routed import Routed
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.evals.subtracted import first_layers, subtracting
from duet_unlearn.events import Event, OnEvent
from duet_unlearn.job import Job, load_subject_model, prefix_of, start_folder, weights_of
from duet_unlearn.methods import Eco, Guard, InContext, Inference, Uld, UnlearningPrefix
from duet_unlearn.models.load import merged
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.runs import Run
from duet_unlearn.training.loop import put_weights
from duet_unlearn.work import timed, train_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "student"
SUBJECTS = ("base", "prefix", "oracle", NAME)
"""Who is asked and attacked, in this order."""


def load_student(run: Run, recipe: Recipe) -> Subject:
    """What a run made of its model: a ``ModelSubject`` where the method changed weights; else a subject without
    ``model``, for what it does is not in the weights.

    `recipe` is the run's own.

    Raises:
        UserError: the run has no student yet.
    """
    require_student(run, recipe)
    if not isinstance(recipe.method, Inference):
        return ModelSubject(NAME, *load_subject_model(str(run.model), recipe))
    return _beside(run.subject, recipe, *_served(run, recipe))


def voices(run: Run | None, recipe: Recipe, names: Collection[str] = SUBJECTS) -> Iterator[Subject]:
    """Those of a recipe's base, base + prefix and oracle, and of a run's student, that `names` lists: one model in
    memory at a time.

    Raises:
        UserError: the run has no student yet.
    """
    from duet_unlearn.config.reading import load_recipe

    if {"base", "prefix"} & {*names}:
        base = ModelSubject("base", *load_subject_model(recipe.model.path, recipe))
        if "base" in names:
            yield base
        if "prefix" in names:
            yield replace(base, name="prefix", prefix=prefix_of(recipe))
        del base
    if "oracle" in names and recipe.model.oracle:
        yield ModelSubject("oracle", *load_subject_model(recipe.model.oracle, recipe))
    if run and NAME in names:
        yield load_student(run, load_recipe(run.recipe))


def require_student(run: Run, recipe: Recipe) -> None:
    """Check that the run came as far as its student.

    Raises:
        UserError: it did not.
    """
    there = _made(run.subject).exists() if isinstance(recipe.method, Inference) else run.model.is_dir()
    if not there:
        raise UserError(f"{run.path}: this run has no student yet", "let `duet run` finish it")


def require_base(run: Run, recipe: Recipe) -> None:
    """Check that the base is still the one whose student the run holds, where the student is an adapter on it.

    Raises:
        UserError: it is another.
    """
    before = json.loads(read_text(run.env))["hashes"]["model"]
    if (run.model / "adapter_config.json").exists() and weights_of(recipe.model.path) != before:
        raise UserError(
            f"{run.path}: its student is an adapter on {recipe.model.path}, which is another model than it was then",
            "put that model back where it lay, or run the recipe anew",
        )


def make_student(
    run: Run, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    """Make what an inference-time method puts beside the model, into ``subject/``; `subject.json` there is written last
    and says what it is. The model is used up.

    Raises:
        UserError: queries that the method needs are missing, or lack answers.
    """
    method, folder = job.recipe.method, run.subject
    if _made(folder).exists():
        return
    told: dict[str, Any] = {}
    match method:
        case InContext():
            told = {"shots": list(job.shots)}
        case Guard():
            told = {"refusals": list(job.refusals)} | _fit(run, job, method, model, tokenizer, on_event)
        case Eco():
            told = _fit(run, job, method, model, tokenizer, on_event)
        case Uld():
            assistant = train_student(run, job, first_layers(model, method.layers), tokenizer, on_event)
            whole = merged(assistant) if job.recipe.model.lora else assistant
            atomic(folder / "assistant.safetensors", lambda path: save_file(_inner(whole), path))
    atomic_write_json(_made(folder), {"method": method.name, **told})


def _made(folder: Path) -> Path:
    return folder / "subject.json"


def _served(run: Run, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that is served, unchanged: the base, or what the run started from."""
    start = str(run.path / "before") if recipe.after else recipe.model.start
    model, tokenizer = load_subject_model(start_folder(start) if start else recipe.model.path, recipe)
    return (merged(model) if has_adapter(model) else model), tokenizer


def _beside(folder: Path, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Subject:
    """The model with what ``make_student`` made beside it."""
    method, told = recipe.method, json.loads(read_text(_made(folder)))
    bare = ModelSubject(NAME, model, tokenizer)
    match method:
        case InContext():
            return Deployed(bare, shots=tuple(told["shots"]))
        case Guard():
            refusing = Refusing(NAME, tokenizer, vocabulary(model), tuple(told["refusals"]), recipe.seed)
            return Routed(NAME, _detector(folder, method, bare), refusing, bare)
        case Eco():
            width = model.get_input_embeddings().weight.shape[1]  # type: ignore[union-attr]
            noise_PD = draw_noise(int(width), sigma=method.sigma, dims=method.dims, seed=recipe.seed)
            marked = ModelSubject(NAME, model, tokenizer, mark=vocabulary(model))
            noisy = Deployed(marked, altering=partial(corrupting, noise_PD=noise_PD))
            return Routed(NAME, _detector(folder, method, bare), noisy, bare)
        case Uld():
            assistant = first_layers(model, method.layers)
            put_weights(assistant, load_file(folder / "assistant.safetensors"))
            less = partial(subtracting, assistant=assistant, weight=method.weight, top=method.top)
            return Deployed(bare, altering=less)
        case UnlearningPrefix():
            return Deployed(ModelSubject(NAME, model, tokenizer, prefix_of(recipe)))
    raise AssertionError(method.name)


def _fit(
    run: Run,
    job: Job,
    method: Guard | Eco,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Fit and store the detector; how many of the queries that it was fitted to it takes for forget queries."""
    reading, material = Reading(method.layer, method.pooling), job.material("train")
    on_event(Event("detector", 0, 1))
    with timed(run, "detector"):
        sides = {
            role: features(
                model,
                tokenizer,
                [query.messages for query in queries],
                reading,
                batch_size=job.recipe.evaluate.batch_size,
            )
            for role, queries in (("forget", material.forget), ("retain", material.retain))
        }
        boundary = fit(sides["forget"], sides["retain"], l2=method.l2)
        save_boundary(boundary, reading, run.subject / "detector")
    found = {role: int((boundary.score(side) >= method.threshold).sum()) for role, side in sides.items()}
    detail = ", ".join(f"finds {found[role]} of {len(side)} {role} queries" for role, side in sides.items())
    on_event(Event("detector", 1, 1, detail))
    return {"detected": {role: {"count": found[role], "of": len(side)} for role, side in sides.items()}}


def _detector(folder: Path, method: Guard | Eco, bare: ModelSubject) -> Detector:
    boundary, reading = load_boundary(folder / "detector")
    return Detector(bare.model, bare.tokenizer, reading, boundary, method.threshold)


def _inner(assistant: nn.Module) -> dict[str, Tensor]:
    """The assistant's own weights, by name: all but the embeddings and the head, which are the model's."""
    ends = {id(p) for end in _ends(assistant) for p in end.parameters()}
    return {name: p.detach().contiguous() for name, p in assistant.named_parameters() if id(p) not in ends}


def _ends(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_input_embeddings(), model.get_output_embeddings()
