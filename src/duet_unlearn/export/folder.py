"""A finished run's student as a folder that others load.

The folder is written next to its place: weights, and the base's tokeniser as it is. Then it is loaded again as a user
would, is asked what the student was asked, and gets its model card; only then does it get its name, and is uploaded
where that was asked for.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn

from duet_unlearn.answers import rouge_l
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.files import atomic_folder, atomic_write_json, atomic_write_text, read_text
from duet_unlearn.data.prompts import PLAIN_TEMPLATE
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import run_suite
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.events import Event, OnEvent, ignore
from duet_unlearn.export.model_card import CardFacts, ComparedAnswers, Form, card_text
from duet_unlearn.job import Job, load_job
from duet_unlearn.models.load import DType, find_on_hub, load_model, merged, no_bars
from duet_unlearn.report.run_data import read_run
from duet_unlearn.runs import Run, find_run
from duet_unlearn.subjects import model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger("duet_unlearn")
ROUNDED = 0.1
"""Share of the compared answers, and of those of each forget set, that may count otherwise where weights are rounded to
the type that the base is stored in; beyond it the rounding has undone part of the training. Ours."""
SAMPLES = 64
"""Answers that are asked again, in equal parts from every set."""
MOVED = 0.2
"""Change of ROUGE-L against the right answer from which an answer that is neither right nor wrong counts otherwise."""
ALIKE = 0.5
"""ROUGE-L between the two answers from which they count the same, where no right answer is known. Both are ours."""
KEPT = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("tekken.json", "chat_template*", "additional_chat_templates/*", "generation_config.json"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""Files of a base that are copied byte by byte; saving a loaded tokeniser would word them anew."""
LICENCE_KEYS = ("license", "license_name", "license_link", "language")
"""What a card takes over from the base's."""
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
    written next to the tokeniser."""
    max_shard_size: str = "5GB"
    """Size of one file of weights at most."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    """The folder."""
    answers: ComparedAnswers
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
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target}: is there already", "choose another folder; an export never writes over one")
    job = _job(found, options)
    # The base's id on the hub: the given one, or the recipe's model where that is one.
    path = job.recipe.model.path
    base = options.base or (None if path.startswith("lab:") or Path(path).exists() else path)
    if options.base:
        _require_id(options.base, "--base")
    if push:
        _require_push(push, options, base)
    source = _base_folder(model_folder(path))
    # Of a whole model the type that the base is stored in, of an adapter the one that it runs in.
    stored = _stored_dtype(source) if options.form == "merged" else None
    dtype = options.dtype or stored or job.recipe.model.dtype
    # It gets its name last, so that a folder with a name has been loaded and has answered.
    with atomic_folder(target) as temporary:
        on_event(Event("export", 0, 3, "weights"))
        _write_weights(found, options, dtype, temporary)
        _write_tokenizer(job, options, source, temporary)
        on_event(Event("export", 1, 3, "load again"))
        answers = _ask_again(found, job, options, dtype, temporary)
        on_event(Event("export", 2, 3, "card"))
        if base and options.form == "adapter":
            config = temporary / "adapter_config.json"
            atomic_write_json(config, json.loads(read_text(config)) | {"base_model_name_or_path": base})
        written = bool(job.recipe.model.chat_template) and options.chat_template == "recipe"
        facts = CardFacts(options.form, dtype, base, push or target.name, answers, written, _licence(source))
        atomic_write_text(temporary / "README.md", card_text(read_run(found.path), facts))
    on_event(Event("export", 3, 3))
    if options.form == "adapter":
        LOG.warning(UNMERGED)
    if job.recipe.model.chat_template and options.chat_template == "base":
        LOG.warning(OTHER_TEMPLATE)
    return Exported(Path(folder), answers, _push(target, push) if push else None)


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
    # The answers are compared with the stored ones, which were given to these questions.
    begun = json.loads(read_text(run.env))["hashes"]
    for part, value in ({"model": job.weights} | job.query_hashes()).items():
        if begun.get(part) != value:
            raise UserError(f"{run.path}: the {part} changed since this run", "put the old ones back, or run it anew")
    return job


def _is_adapter(run: Run) -> bool:
    return (run.model / "adapter_config.json").exists()


def _require_id(name: str, option: str) -> None:
    """Stop where a text cannot be a hub id with its owner, ORG/NAME."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it names no owner")
    except HFValidationError as error:
        raise UserError(f"{option} {name}: is no hub id", "write it as ORG/NAME") from error


def _require_push(repo: str, options: ExportOptions, base: str | None) -> None:
    """Check, before anything is written, what an upload needs."""
    from huggingface_hub import get_token

    _require_id(repo, "--push")
    if not get_token():
        raise UserError(f"--push {repo}: nobody is logged in to the hub", "`hf auth login`, or set HF_TOKEN")
    if options.form == "adapter" and base is None:
        raise UserError(
            "--push: the adapter's base is a folder of this machine, which nobody else can load",
            "name its hub id with --base ORG/NAME, or push it with --as merged",
        )


def _base_folder(path: str) -> Path:
    """The folder of a base; of a hub id, the cache's with its small files.

    Raises:
        UserError: the hub is out of reach, and the cache has no copy.
    """
    place = path if Path(path).is_dir() else find_on_hub(path)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(place, allow_patterns=[*KEPT, "README.md", "config.json"]))


def _stored_dtype(folder: Path) -> DType | None:
    """The type that a base's weights are stored in, by its config; None where it says none that can be written."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    name = str(config.dtype or config.get_text_config().dtype).removeprefix("torch.")
    return cast("DType", name) if name in get_args(DType) else None


def _licence(folder: Path) -> dict[str, Any]:
    """Licence and language in the metadata of the base's card; empty where it has none that can be read."""
    from huggingface_hub import metadata_load

    if not (folder / "README.md").is_file():
        return {}
    try:
        found = metadata_load(folder / "README.md")
    except ValueError:  # the base's card is none of the user's doing
        return {}
    return {key: found[key] for key in LICENCE_KEYS if found and key in found}


def _write_weights(run: Run, options: ExportOptions, dtype: DType, folder: Path) -> None:
    if options.form == "merged":
        # A sum in bf16 would round twice.
        model, _ = load_model(str(run.model), dtype="float32" if _is_adapter(run) else dtype)
        whole = merged(model) if _is_adapter(run) else model
        cast("nn.Module", whole).to(getattr(torch, dtype))
        with no_bars():
            whole.save_pretrained(folder, max_shard_size=options.max_shard_size)
        return
    from safetensors.torch import load_file, save_file

    name = "adapter_model.safetensors"
    shutil.copyfile(run.model / "adapter_config.json", folder / "adapter_config.json")
    if options.dtype is None:
        shutil.copyfile(run.model / name, folder / name)
        return
    weights = {key: value.to(getattr(torch, dtype)) for key, value in load_file(run.model / name).items()}
    save_file(weights, folder / name, metadata={"format": "pt"})


def _write_tokenizer(job: Job, options: ExportOptions, source: Path, folder: Path) -> None:
    """The base's files as they are; the recipe's template next to them where that is asked for."""
    kept = {path for pattern in KEPT for path in source.glob(pattern) if path.is_file()}
    for name in (path.relative_to(source) for path in kept):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    template = job.recipe.model.chat_template
    if template and options.chat_template == "recipe":
        text = PLAIN_TEMPLATE if template == "plain" else read_text(Path(template))
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _ask_again(run: Run, job: Job, options: ExportOptions, dtype: DType, folder: Path) -> ComparedAnswers:
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
    answers = compare_answers(job, read_run(run.path).samples["student"], model, tokenizer)
    rounded = whole and (dtype != settings.dtype or (_is_adapter(run) and dtype != "float32") or settings.quantise)
    text = (
        f"of {answers.compared} answers of the loaded export ({dtype}) {answers.differing} have other words than the"
        f" run's, and {answers.turned} count otherwise"
    )
    if options.dtype is None and (not answers.within(ROUNDED) if rounded else answers.differing):
        raise UserError(f"{run.path}: {text}", "try --dtype float32, or --as adapter")
    if answers.differing:
        LOG.warning("warning: %s\nhint: --dtype float32 rounds nothing", text)
    return answers


def compare_answers(
    job: Job, samples: Sequence[Mapping[str, Any]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> ComparedAnswers:
    """Ask a model what the student was asked; `samples` are the lines of ``samples/student.jsonl``."""
    stored = {(row["set"], row["id"]): row for row in samples}
    config = job.recipe.evaluate
    sets = [one for one in job.suite() if one.protocol != "likelihood"]  # those say nothing
    count = max(1, SAMPLES // len(sets))
    samples_now = run_suite(
        ModelSubject("student", model, tokenizer),
        [replace(one, queries=one.queries[:count], prefill=one.prefill and one.prefill[:count]) for one in sets],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    ).samples
    pairs = [(stored[row["set"], row["id"]], row) for row in samples_now]
    turned = [(now["set"], counts_otherwise(then, now)) for then, now in pairs]
    low = [one.name for one in sets if one.better == "low"]
    by_set = [[is_other for name, is_other in turned if name == forget_set] for forget_set in low]
    return ComparedAnswers(
        compared=len(pairs),
        differing=sum(then["output"] != now["output"] for then, now in pairs),
        turned=sum(is_other for _, is_other in turned),
        forget=tuple((len(found), sum(found)) for found in by_set),
    )


def counts_otherwise(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an answer counts otherwise than the stored one."""
    if then["outcome"] != now["outcome"] or then["outcome"] is not None:
        return then["outcome"] != now["outcome"]
    if then["rouge_l"] is not None and now["rouge_l"] is not None:
        return abs(then["rouge_l"] - now["rouge_l"]) > MOVED
    return then["output"] != now["output"] and rouge_l(now["output"], then["output"]) < ALIKE


def _push(folder: Path, repo: str) -> str:
    """Upload a folder into a hub repository, which is made private if it is new; its address.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with duet-unlearn")
    except Exception as error:  # the errors of the hub's HTTP client are of another package in every major version
        first = str(error).strip().split("\n")[0]
        hint = f"the folder is whole; once that is put right: hf upload {repo} {folder}"
        raise UserError(f"--push {repo}: the upload failed ({first})", hint) from error
    return str(url)
