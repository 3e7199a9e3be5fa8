"""Verbs that make something: demo, init, run, lab build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from duet_unlearn.cli.options import RecipeArg, SetOpt
from duet_unlearn.cli.progress import progress


def demo() -> None:
    """Watch a small model forget one story and keep the rest.

    Less than a minute on 2 cores, no network. Writes runs/demo, prints the table and the path of the report.
    """
    _unlearn("lab/demo", [], None)


def init(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model folder, a hub id, or lab:base.", show_default=False),
    ],
    concept: Annotated[
        str, typer.Option("--concept", help='What to forget, as you would name it: "the Harry Potter books".')
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the files; from the concept if not given.", show_default=False),
    ] = None,
) -> None:
    """Write a commented recipe and two starter query files.

    They go into the current folder. Edit the queries, then give the recipe to duet probe
    and duet run. Files that are there already are never overwritten.
    """
    from duet_unlearn.cli.starter import write_starter

    written = write_starter(model, concept=concept, name=name, folder=Path())
    for path in written:
        typer.echo(str(path))
    files = " and ".join(str(path) for path in written[1:])
    typer.echo(f"next: edit {files} (about 100 lines each), then: duet probe {written[0]}", err=True)


def run(
    recipe: RecipeArg,
    settings: SetOpt = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Run folder; the recipe's own, or runs/NAME-HASH, if not given.", show_default=False
        ),
    ] = None,
) -> None:
    """Probe, train, evaluate and write the report.

    A run that was stopped goes on when the same command is given again, to the same result. A finished run
    is shown as it is.
    """
    _unlearn(recipe, settings or [], out)


def lab_build(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the models; inside the package if not given.", show_default=False),
    ] = None,
) -> None:
    """Rebuild the lab's models from nothing.

    At most 90 minutes on 2 cores; goes on where it was stopped.
    """
    from duet_unlearn import api

    with progress() as on_event:
        folder = api.build_lab(out, on_event=on_event)
    typer.echo(str(folder))


def _unlearn(name: str, settings: list[str], out: Path | None) -> None:
    from duet_unlearn.config.reading import load_recipe

    recipe = load_recipe(name, settings)
    from duet_unlearn import api

    with progress() as on_event:
        finished = api.unlearn(recipe, out=out, on_event=on_event)

    from duet_unlearn.report import summary_text

    typer.echo(f"{summary_text(finished.path)}\n\nreport: {finished.report}")
