"""The model card of an export: metadata as the hub reads them, and what a reader must know before use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from duet_unlearn.config.reading import leaves
from duet_unlearn.export.check import Answers
from duet_unlearn.report.run_data import Column, RunData, cell_text, method_name, metric_words, what_was_forgotten
from duet_unlearn.report.verdict import verdict
from duet_unlearn.stats import Score

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

Form = Literal["adapter", "merged"]
SHOWN = ("base", "student")
"""Subjects whose scores the card has."""


@dataclass(frozen=True)
class Facts:
    """What a card says of the export itself."""

    form: Form
    dtype: str
    base: str | None
    """Hub id of the base, where it has one."""
    name: str
    """What the model is called: its hub id, or its folder."""
    answers: Answers
    template_written: bool
    """Whether the folder has the recipe's chat template in place of the base's."""
    licence: Mapping[str, Any]
    """Licence and language, as the base's card gives them."""


def card_text(run: RunData, facts: Facts) -> str:
    """The text of ``README.md``. Of the questions and answers nothing is in it: it would tell what was forgotten."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found, template = verdict(run), run.recipe["model"].get("chat_template")
    body = environment.get_template("card.md.j2").render(
        facts=facts,
        concept=what_was_forgotten(run),
        method=method_name(run.recipe),
        base=facts.base or Path(run.recipe["model"]["path"]).name,
        template=template,
        plain=template == "plain" and not facts.template_written,
        told=[found.forgotten, found.cost],
        rows=[_row(run, column) for column in run.columns],
        context=bool(run.recipe["data"].get("context")),
        max_new_tokens=run.recipe["evaluate"]["max_new_tokens"],
        recipe=_yaml(public_recipe(run.recipe)),
        hashes=run.env["hashes"],
        packages=run.env["packages"],
    )
    return f"---\n{_metadata(run, facts).to_yaml()}\n---\n\n{body.strip()}\n"


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that others may read: folders of this machine and the deployer's own turns are left out."""
    turns = recipe["data"].get("context") or []
    shown: dict[str, Any] = {}
    for key, value in leaves(dict(recipe)):
        inner = shown
        for name in key[:-1]:
            inner = inner.setdefault(name, {})
        is_path = isinstance(value, str) and Path(value).is_absolute()
        inner[key[-1]] = Path(value).name if is_path else value
    shown.pop("out", None)
    if turns:
        shown["data"]["context"] = f"{len(turns)} turns, not shown"
    return shown


def _metadata(run: RunData, facts: Facts) -> ModelCardData:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        base_model=facts.base,
        base_model_relation="adapter" if facts.form == "adapter" else "finetune",
        library_name="peft" if facts.form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "machine-unlearning", "duet-unlearn", method_name(run.recipe)],
        model_name=facts.name,
        eval_results=[found for column in run.columns if (found := _result(run, column))],
        **facts.licence,
    )


def _result(run: RunData, column: Column) -> EvalResult | None:
    """A set's score as the hub lists it; None where nothing was measured, and for sums over sets."""
    from huggingface_hub import EvalResult

    score = run.subjects["student"].score(column.name, column.metric)
    if math.isnan(score.value) or column.metric == "points":
        return None
    return EvalResult(
        task_type="text-generation",
        dataset_type=column.name,
        dataset_name=f"{column.title} (n = {score.n})",
        metric_type="accuracy" if column.metric == "right" else column.metric,
        metric_name=f"share {column.metric}" if column.metric in ("right", "refused") else metric_words(column.metric),
        metric_value=round(score.value, 4),
    )


def _row(run: RunData, column: Column) -> list[str]:
    """Set, what is counted, what is wanted, n, and each subject's score with its interval."""
    scores = [run.subjects[name].score(column.name, column.metric) for name in SHOWN]
    counted = metric_words(column.metric) + ("" if column.metric == "points" else ", %")
    cells = [column.title, counted, column.better, str(scores[-1].n), *(_with_interval(s, column) for s in scores)]
    return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]


def _with_interval(score: Score, column: Column) -> str:
    value, *ends = (cell_text(v, column.metric) for v in (score.value, score.low, score.high))
    return value if math.isnan(score.low) else f"{value} ({ends[0]} to {ends[1]})"


def _yaml(value: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=100).strip()
