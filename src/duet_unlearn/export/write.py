"""Writes the folder, loads it again as a user would, and asks it what the student was asked."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.files import atomic_folder, atomic_write_json, atomic_write_text, read_text
from duet_unlearn.data.prompts import PLAIN_TEMPLATE
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event, OnEvent, ignore
from duet_unlearn.export.base import base_folder, hub_id, kept_files, licence, stored_dtype
from duet_unlearn.export.card import Facts, Form, card_text
from duet_unlearn.export.check import Answers, same_answers
from duet_unlearn.export.push import may_push, push_folder
from duet_unlearn.job import Job, load_job
from duet_unlearn.models.load import DType, load_model, merged, no_bars
from duet_unlearn.report.run_data import read_run
from duet_unlearn.runs import Run, find_run
from duet_unlearn.subjects import model_folder

LOG = logging.getLogger("duet_unlearn")
ROUNDED = 0.1
"""Share of the compared answers, and of those of each forget set, that may count otherwise where weights are rounded to
the type that the base is stored in; beyond it the rounding has undone part of the training. Ours."""
UNMERGED = (
    "warning: an adapter removes nothing: whoever loads the base without it has the knowledge back\n"
    "hint: to give the model away, export it with --as merged"
)
OTHER_TEMPLATE = (
    "warning: the run asked with model.chat_template, but the folder has the template of its base\n"
    "hint: --chat-template recipe writes the run's"
)


@dataclass(frozen=True)
class ExportOptions:
    """What is written."""

    form: Form = "merged"
    """``merged``: one whole model; of a run that trained all weights, the model. ``adapter``: the adapter alone, which
    is loaded on top of its base."""
    dtype: DType | None = None
    """Type of the written weights. None: a whole model has the one that its base is stored in, an adapter its own."""
    base: str | None = None
    """Hub id of the base, for the card and the adapter; None: the recipe's model, where that is a hub id."""
    chat_template: Literal["base", "recipe"] = "base"
    """``base``: template and tokeniser are the base's, byte by byte. ``recipe``: the recipe's model.chat_template is
    written beside the tokeniser."""
    max_shard_size: str = "5GB"
    """Size of one file of weights at most."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    """The folder."""
    answers: Answers
    """What came of asking the folder again."""
    url: str | None
    """Where it was uploaded to; None where nobody asked for that."""


def export(
    run: Path | str,
    folder: Path | str,
    *,
    options: ExportOptions | None = None,
    push: str | None = None,
    on_event: OnEvent = ignore,
) -> Exported:
    """Write a finished run's student into a new folder, whole or not at all; with `push`, upload it as that hub id.

    The folder is loaded again before it gets its name, and must give the answers that are stored in the run.

    Raises:
        UserError: an unfinished run; a folder that holds something; a base or questions that changed since; an adapter
            of a run without one; answers that differ; disk full; an upload that cannot be.
    """
    found, target, options = find_run(run), Path(os.path.abspath(folder)), options or ExportOptions()
    _require_free(target)
    job = _job(found, options)
    base = hub_id(job.recipe.model.path, options.base)
    if push:
        may_push(push)
        _require_public_base(options, base)
    source = base_folder(model_folder(job.recipe.model.path))
    dtype = options.dtype or _dtype(job, options, source)
    with atomic_folder(target) as temporary:
        on_event(Event("export", 0, 3, "weights"))
        _write_weights(found, options, dtype, temporary)
        _write_tokenizer(job, options, source, temporary)
        on_event(Event("export", 1, 3, "load again"))
        answers = _asked_again(found, job, options, dtype, temporary)
        on_event(Event("export", 2, 3, "card"))
        if base and options.form == "adapter":
            _name_base(temporary, base)
        written = bool(job.recipe.model.chat_template) and options.chat_template == "recipe"
        facts = Facts(options.form, dtype, base, push or target.name, answers, written, licence(source))
        atomic_write_text(temporary / "README.md", card_text(read_run(found.path), facts))
    on_event(Event("export", 3, 3))
    if options.form == "adapter":
        LOG.warning(UNMERGED)
    if job.recipe.model.chat_template and options.chat_template == "base":
        LOG.warning(OTHER_TEMPLATE)
    return Exported(Path(folder), answers, push_folder(target, push) if push else None)


def _require_free(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder}: is there already", "choose another folder; an export never writes over one")


def _job(run: Run, options: ExportOptions) -> Job:
    """The run's recipe with all it names, as it was when the run began."""
    if not run.finished:
        raise UserError(
            f"{run.path}: this run is not finished", "give its `duet run` command again, which goes on, then export"
        )
    recipe = load_recipe(run.recipe)
    if not recipe.method.changes_weights:
        raise UserError(
            f"{run.path}: {recipe.method.name} changes no weights, so there is no model to export",
            "the base is the model, and what it knows is still in it; a method that trains removes knowledge",
        )
    if options.form == "adapter" and not _is_adapter(run):
        raise UserError(f"{run.path}: this run has no adapter", "leave --as away; model.lora trains an adapter")
    job = load_job(recipe)
    begun = json.loads(read_text(run.env))["hashes"]
    for part, value in ({"model": job.weights} | job.query_hashes()).items():
        if begun.get(part) != value:
            raise UserError(f"{run.path}: the {part} changed since this run", "put the old ones back, or run it anew")
    return job


def _is_adapter(run: Run) -> bool:
    return (run.model / "adapter_config.json").exists()


def _require_public_base(options: ExportOptions, base: str | None) -> None:
    if options.form == "adapter" and base is None:
        raise UserError(
            "--push: the adapter's base is a folder of this machine, which nobody else can load",
            "name its hub id with --base ORG/NAME, or push it with --as merged",
        )


def _dtype(job: Job, options: ExportOptions, base: Path) -> DType:
    """The type that weights get where none is asked for; of an adapter, the one that it runs in."""
    stored = stored_dtype(base) if options.form == "merged" else None
    return stored or job.recipe.model.dtype


def _write_weights(run: Run, options: ExportOptions, dtype: DType, folder: Path) -> None:
    if options.form == "adapter":
        _write_adapter(run, options.dtype, folder)
        return
    # A sum in bf16 would round twice.
    model, _ = load_model(str(run.model), dtype="float32" if _is_adapter(run) else dtype)
    whole = merged(model) if _is_adapter(run) else model
    cast("nn.Module", whole).to(getattr(torch, dtype))
    with no_bars():
        whole.save_pretrained(folder, max_shard_size=options.max_shard_size)


def _write_adapter(run: Run, dtype: DType | None, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = "adapter_model.safetensors"
    shutil.copyfile(run.model / "adapter_config.json", folder / "adapter_config.json")
    if dtype is None:
        shutil.copyfile(run.model / name, folder / name)
        return
    weights = {key: value.to(getattr(torch, dtype)) for key, value in load_file(run.model / name).items()}
    save_file(weights, folder / name, metadata={"format": "pt"})


def _write_tokenizer(job: Job, options: ExportOptions, source: Path, folder: Path) -> None:
    """The base's files as they are; the recipe's template beside them where that is asked for."""
    for name in kept_files(source):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    template = job.recipe.model.chat_template
    if template and options.chat_template == "recipe":
        text = PLAIN_TEMPLATE if template == "plain" else read_text(Path(template))
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _asked_again(run: Run, job: Job, options: ExportOptions, dtype: DType, folder: Path) -> Answers:
    """Load the folder anew, as a user will, and compare its answers with the student's.

    Raises:
        UserError: they differ although no type was asked for: in a word where nothing was rounded, else by more than
            rounding explains.
    """
    settings, whole = job.recipe.model, options.form == "merged"
    model, tokenizer = load_model(
        str(folder),
        dtype=dtype if whole else settings.dtype,
        chat_template=settings.chat_template if options.chat_template == "base" else None,
        quantise=None if whole else settings.quantise,
    )
    answers = same_answers(job, read_run(run.path).samples["student"], model, tokenizer)
    rounded = whole and (dtype != settings.dtype or (_is_adapter(run) and dtype != "float32") or settings.quantise)
    if options.dtype is None and (not answers.within(ROUNDED) if rounded else answers.differing):
        raise UserError(f"{run.path}: {_text(answers, dtype)}", "try --dtype float32, or --as adapter")
    if answers.differing:
        LOG.warning("warning: %s\nhint: --dtype float32 rounds nothing", _text(answers, dtype))
    return answers


def _text(answers: Answers, dtype: DType) -> str:
    return (
        f"of {answers.compared} answers of the loaded export ({dtype}) {answers.differing} have other words than the"
        f" run's, and {answers.turned} count otherwise"
    )


def _name_base(folder: Path, base: str) -> None:
    path = folder / "adapter_config.json"
    atomic_write_json(path, json.loads(read_text(path)) | {"base_model_name_or_path": base})
