"""Who is asked and attacked: the base, the base with the prefix, the oracle, and a run's student, whatever its method;
and where the models of a recipe are found."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import Settings, prefix_of
from duet_unlearn.data.files import read_text
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.lab import references as lab
from duet_unlearn.methods.base import Served
from duet_unlearn.models.load import load_model, merged
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.runs import Run
from duet_unlearn.teacher.targets import weights_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STUDENT = "student"
SUBJECTS = ("base", "prefix", "oracle", STUDENT)
"""Who is asked and attacked, in this order."""


def subjects(run: Run | None, recipe: Recipe, names: Collection[str] = SUBJECTS) -> Iterator[Subject]:
    """Those of a recipe's base, base + prefix and oracle, and of a run's student, that `names` lists: one model in
    memory at a time.

    Raises:
        UserError: the run has no student yet.
    """
    if {"base", "prefix"} & {*names}:
        base = ModelSubject("base", *load_subject_model(recipe.model.path, recipe))
        if "base" in names:
            yield base
        if "prefix" in names:
            yield replace(base, name="prefix", prefix=prefix_of(recipe))
        del base
    if "oracle" in names and recipe.model.oracle:
        yield ModelSubject("oracle", *load_subject_model(recipe.model.oracle, recipe))
    if run and STUDENT in names:
        yield load_student(run, load_recipe(run.recipe))


def load_student(run: Run, recipe: Recipe) -> Subject:
    """What a run made of its model: a ``ModelSubject`` where the method changed weights; else a subject without
    ``model``, for what it does is not in the weights.

    `recipe` is the run's own.

    Raises:
        UserError: the run has no student yet.
    """
    require_student(run, recipe)
    if recipe.method.changes_weights:
        return ModelSubject(STUDENT, *load_subject_model(str(run.model), recipe))
    # The model that is served, unchanged: the base, or what the run started from.
    start = str(run.path / "before") if recipe.after else recipe.model.start
    model, tokenizer = load_subject_model(start_folder(start) if start else recipe.model.path, recipe)
    model, stored = merged(model) if has_adapter(model) else model, json.loads(read_text(subject_file(run)))
    return recipe.method.build_subject(Served(STUDENT, model, tokenizer, run.subject, stored, recipe))


def subject_file(run: Run) -> Path:
    """Of a method that changes no weights: what its subject is; it is written last."""
    return run.subject / "subject.json"


def has_student(run: Run, recipe: Recipe) -> bool:
    """Whether the run came as far as its student."""
    if not recipe.method.changes_weights:
        return subject_file(run).exists()
    return any((run.model / name).exists() for name in ("config.json", "adapter_config.json"))


def require_student(run: Run, recipe: Recipe) -> None:
    """Check that the run came as far as its student.

    Raises:
        UserError: it did not.
    """
    there = run.model.is_dir() if recipe.method.changes_weights else subject_file(run).exists()
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


def model_folder(path: str) -> str:
    """The folder of a ``lab:`` model; any other path or hub id as it is."""
    return str(lab.model_path(path)) if path.startswith("lab:") else path


def load_subject_model(path: str, settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the recipe's type, chat template and quantisation; a merged student is taken as it was saved."""
    config = settings.model
    merges = config.lora is not None and config.lora.save == "merged"
    as_saved = merges and path not in (config.path, config.oracle)
    return load_model(
        model_folder(path),
        dtype=config.dtype,
        chat_template=config.chat_template,
        quantise=None if as_saved else config.quantise,
    )


def load_start(path: str, settings: Settings) -> PreTrainedModel:
    """The model that training starts from: a folder's, or a run's student, with its adapter merged."""
    model, _ = load_subject_model(start_folder(path), settings)
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


def weights_of(path: str) -> str:
    """Identity of a model's weights: the hash of a folder's, or of a run's student; of a hub id the id."""
    run = Run(Path(path))
    folder = run.model if run.recipe.exists() else Path(model_folder(path))
    return weights_id(folder) if folder.is_dir() else path
