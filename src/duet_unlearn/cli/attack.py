"""The verb that tries to get it back: attack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from duet_unlearn.cli.options import JsonOpt, SetOpt
from duet_unlearn.cli.progress import progress


def attack(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run folder, a model folder or a hub id.", show_default=False),
    ],
    suite: Annotated[
        str, typer.Option("--suite", metavar="SUITE", help="quick, standard or full; or a suite file of your own.")
    ] = "standard",
    only: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help="This attack only; may be repeated.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="For a model: the recipe whose facts are to come back.",
            show_default=False,
        ),
    ] = None,
    settings: SetOpt = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            help="An attacked run whose base, base + prefix and oracle are the same: their results are taken over.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="For a model: folder of the results; runs/attacks-MODEL-RECIPE if not given."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Try to bring back what was forgotten.

    Asks, opens answers, samples, optimises prompts, fine-tunes and edits weights, each on a copy, and counts which
    facts come back; the same is done to base, base + prefix and oracle. Results go into the run folder and its
    report. What was stopped goes on when the same command is given again.
    """
    from duet_unlearn.cli import show
    from duet_unlearn.config.reading import load_recipe
    from duet_unlearn.errors import UserError

    is_run = (Path(what) / "recipe.yaml").exists()
    if is_run and (recipe or settings or out):
        raise UserError(
            f"{what}: is a run, which has its own recipe and folder", "leave --recipe, --set and --out away"
        )
    if not is_run and not recipe:
        raise UserError(
            f"{what}: is no run (no recipe.yaml lies there), and a model does not say what it should have forgotten",
            "check the path; for a model, name a recipe that says it, with --recipe",
        )
    if not is_run and like:
        raise UserError("--like takes over results of a run, and this is a model", "leave it away")
    loaded = load_recipe(recipe, settings or []) if recipe else None
    from duet_unlearn.attacks import attack_run, load_suite

    chosen = load_suite(suite, only or ())
    with progress() as on_event:
        if loaded:
            named = re.sub(r"[^\w.-]+", "-", f"{what}-{loaded.name}").strip("-.")
            folder = out or Path("runs") / f"attacks-{named}"
            found = attack_run.attack_model(what, loaded, chosen, out=folder, on_event=on_event)
        else:
            found = attack_run.attack_run(what, chosen, like=like, on_event=on_event)
    if as_json:
        show.echo(show.json_text(attack_run.read_attacks(found.folder)))
        return
    show.echo(attack_run.attacks_text(found.results))
    show.echo(f"\nresults: {found.folder}" + (f"\nreport: {Path(what) / 'report.html'}" if is_run else ""))
