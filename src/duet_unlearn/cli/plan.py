"""The verb that plans."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from duet_unlearn.cli.options import JsonOpt, SetOpt
from duet_unlearn.errors import UserError

LOG = logging.getLogger("duet_unlearn")


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model folder, a config.json, a hub id or lab:base.", show_default=False
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="The recipe whose settings and number of queries count; else the defaults.",
            show_default=False,
        ),
    ] = None,
    settings: SetOpt = None,
    tokens: Annotated[int, typer.Option(min=1, help="Longest question in tokens, chat template included.")] = 64,
    prefix: Annotated[int, typer.Option(min=0, help="Tokens that the teacher's prefix adds.")] = 32,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1, help="Forget and retain queries together [default: the recipe's, else 200].", show_default=False
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(min=1.0, help="Operations a second, such as 400e12 [default: measured here].", show_default=False),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Say what a model takes to train, before anything is loaded.

    From config.json alone: parameters; memory of full training, LoRA and QLoRA; disk; time by operation count; and
    what of it fits into this machine.
    """
    from duet_unlearn.cli import show
    from duet_unlearn.config.reading import default_recipe, load_recipe, recipe_names

    if model in recipe_names() or model.endswith((".yaml", ".yml")):
        raise UserError(f"{model}: is a recipe, not a model", f"duet plan MODEL --recipe {model}")
    loaded = load_recipe(recipe, settings or []) if recipe else default_recipe(model, settings or [])
    from duet_unlearn.job import load_job
    from duet_unlearn.plan import Workload, make_plan, plan_text
    from duet_unlearn.subjects import model_folder

    if recipe and queries is None:
        try:
            job = load_job(loaded)
            queries = len(job.train.forget) + len(job.train.retain)
        except UserError as error:  # a plan needs no data: the settings are the recipe's all the same
            LOG.warning("warning: %s\nhint: planned for %d queries; --queries N", error.message, Workload.queries)
    load = Workload(tokens=tokens, prefix=prefix, queries=queries or Workload.queries)
    result = make_plan(model_folder(model), loaded, load, rate=flops)
    show.echo(show.json_text(result) if as_json else plan_text(result))
