"""Verbs that read: probe, evaluate, compare, report, chat, list."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from duet_unlearn.cli.options import JsonOpt, KeepNameOpt, RecipeArg, RedactOpt, RunArg, SetOpt
from duet_unlearn.cli.progress import progress


def probe(recipe: RecipeArg, settings: SetOpt = None, as_json: JsonOpt = False) -> None:
    """Measure, before any training, what the prefix does.

    Does it make the model refuse questions about the concept, and leave the answers to others as they were?
    """
    from duet_unlearn.cli import show
    from duet_unlearn.config.reading import load_recipe

    loaded = load_recipe(recipe, settings or [])
    from duet_unlearn import api

    with progress() as on_event:
        result = api.probe(loaded, on_event=on_event)
    show.echo(show.json_text(result) if as_json else show.probe_text(result))


def evaluate(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run folder, a model folder or a hub id.", show_default=False),
    ],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="RECIPE", help="The recipe whose questions are asked.", show_default=False),
    ] = None,
    settings: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Score a run's subjects, or any model.

    A run is asked its own questions again unless --recipe names others; a model needs --recipe. Scores come
    with n and interval.
    """
    from duet_unlearn.cli import show
    from duet_unlearn.config.reading import load_recipe
    from duet_unlearn.errors import UserError

    if settings and not recipe:
        raise UserError("--set has no recipe to change", "name one with --recipe")
    loaded = load_recipe(recipe, settings or []) if recipe else None
    from duet_unlearn import api

    with progress() as on_event:
        results = api.evaluate(what, recipe=loaded, on_event=on_event)
    show.echo(show.json_text(results) if as_json else show.scores_text(results))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    as_json: JsonOpt = False,
) -> None:
    """Print one table over several runs.

    Base, base + prefix, oracle and student stand together; runs that differ only in the seed are one line.
    """
    from duet_unlearn.report import compare as compare_runs

    comparison = compare_runs(runs)
    typer.echo(comparison.to_json() if as_json else comparison.to_text())


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|SWEEP", help="What duet run or duet sweep wrote.", show_default=False)
    ],
    redact: RedactOpt = False,
    keep_name: KeepNameOpt = False,
) -> None:
    """Write a run's or a sweep's report.html again and print its path."""
    from duet_unlearn.cli.audit import shown_of
    from duet_unlearn.report import write_report

    typer.echo(str(write_report(run, shown=shown_of(redact, keep_name))))


def chat(
    run: RunArg,
    question: Annotated[
        str | None, typer.Argument(help="The question; read from stdin if not given.", show_default=False)
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Ask one question and see three answers.

    Those of base, base + prefix and student, side by side.
    """
    from duet_unlearn import api
    from duet_unlearn.cli import show
    from duet_unlearn.errors import UserError

    stdin = sys.stdin
    asked = question or (typer.prompt("question", err=True) if stdin.isatty() else stdin.read().strip())
    if not asked:
        raise UserError("there is no question", 'give one: duet chat RUN "Who is ..?"')
    with progress() as on_event:
        answers = api.chat(run, asked, on_event=on_event)
    show.echo(show.json_text(answers) if as_json else show.answers_text(answers))


def list_(
    what: Annotated[Literal["recipes", "methods", "metrics"], typer.Argument(help="What to list.", show_default=False)],
    as_json: JsonOpt = False,
) -> None:
    """List the packaged recipes, methods or metrics."""
    from duet_unlearn.cli import show

    rows = show.listing(what)
    show.echo(show.json_text(rows) if as_json else show.pairs_text(rows))
