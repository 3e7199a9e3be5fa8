"""The model card of an export: metadata as the hub reads them, and what a reader must know before use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from duet_unlearn.report.run_data import Column, RunData, cell_text, method_name, metric_words, what_was_forgotten
from duet_unlearn.report.run_page import page_template
from duet_unlearn.report.verdict import verdict

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

Form = Literal["adapter", "merged"]
SHOWN = ("base", "student")
"""Subjects whose scores the card has."""


@dataclass(frozen=True)
class ComparedAnswers:
    """How the answers of a loaded export compare with the student's."""

    compared: int
    differing: int
    """Answers with other words: of several refusals that are about as likely, rounding picks another."""
    turned: int
    """Answers that count otherwise: right, refused or wrong; by ROUGE-L where they are none of these."""
    forget: tuple[tuple[int, int], ...] = ()
    """(compared, turned) of each set that asks for what was forgotten."""

    def within(self, share: float) -> bool:
        """Whether no more than a share counts otherwise: of all, and of each forget set, where one always may."""
        return self.turned <= share * self.compared and all(
            turned <= max(1.0, share * compared) for compared, turned in self.forget
        )


@dataclass(frozen=True)
class CardFacts:
    """What a card says of the export itself."""

    form: Form
    dtype: str
    base: str | None
    """Hub id of the base, where it has one."""
    name: str
    """What the model is called: its hub id, or its folder."""
    answers: ComparedAnswers
    template_written: bool
    """Whether the folder has the recipe's chat template in place of the base's."""
    licence: Mapping[str, Any]
    """Licence and language, as the base's card gives them."""


def card_text(run: RunData, facts: CardFacts) -> str:
    """The text of ``README.md``. Of the questions and answers nothing is in it: it would tell what was forgotten."""
    import yaml

    # Folders of this machine and the deployer's own turns are nobody else's business.
    recipe = _without_folders({key: value for key, value in run.recipe.items() if key != "out"})
    if turns := run.recipe["data"].get("context"):
        recipe["data"]["context"] = f"{len(turns)} turns, not shown"
    found = verdict(run)
    body = page_template(Path(__file__).with_name("card.md.j2")).render(
        facts=facts,
        run=run,
        concept=what_was_forgotten(run),
        method=method_name(run.recipe),
        base=facts.base or Path(run.recipe["model"]["path"]).name,
        sentences=[found.forgotten, found.cost],
        rows=[_row(run, column) for column in run.columns],
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100).strip(),
    )
    return f"---\n{_metadata(run, facts).to_yaml()}\n---\n\n{body.strip()}\n"


def _without_folders(value: Any) -> Any:
    """A recipe's value with the last part of each absolute path alone."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _metadata(run: RunData, facts: CardFacts) -> ModelCardData:
    """What the hub reads, with the student's score of each set, but for sums over sets."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for column in run.columns:
        score, metric = run.subjects["student"].score(column.name, column.metric), column.metric
        if not math.isnan(score.value) and metric != "points":
            result = EvalResult(
                task_type="text-generation",
                dataset_type=column.name,
                dataset_name=f"{column.title} (n = {score.n})",
                metric_type="accuracy" if metric == "right" else metric,
                metric_name=f"share {metric}" if metric in ("right", "refused") else metric_words(metric),
                metric_value=round(score.value, 4),
            )
            results.append(result)
    return ModelCardData(
        base_model=facts.base,
        base_model_relation="adapter" if facts.form == "adapter" else "finetune",
        library_name="peft" if facts.form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "machine-unlearning", "duet-unlearn", method_name(run.recipe)],
        model_name=facts.name,
        eval_results=results,
        **facts.licence,
    )


def _row(run: RunData, column: Column) -> list[str]:
    """Set, what is counted, the better direction, n, and each subject's score with its interval."""
    scores = [run.subjects[name].score(column.name, column.metric) for name in SHOWN]
    counted = metric_words(column.metric) + ("" if column.metric == "points" else ", %")
    cells = [column.title, counted, column.better, str(scores[-1].n)]
    for score in scores:
        value, *ends = (cell_text(v, column.metric) for v in (score.value, score.low, score.high))
        cells.append(value if math.isnan(score.low) else f"{value} ({ends[0]} to {ends[1]})")
    return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
