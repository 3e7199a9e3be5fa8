"""The command `duet`. Modules here import typer only; every verb imports what it needs inside."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from duet_unlearn import __version__
from duet_unlearn.cli import hand_over, make, measure
from duet_unlearn.errors import UserError

app = typer.Typer(
    name="duet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich is slow to import, and the help pages are plain text in docs/cli.md too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Results go to stdout, the rest to stderr. Exit codes: 0 done, 1 user error, 2 usage, 130 stop.",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"duet-unlearn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make a language model forget a concept.

    And measure what was forgotten and what was kept; on the lab, also what can be brought back.
    """


lab = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(make.demo)
app.command()(make.init)
app.command()(make.queries)
app.command()(make.plan)
app.command()(make.run)
app.command()(measure.probe)
app.command()(measure.evaluate)
app.command("lm-eval")(measure.lm_eval)
app.command()(measure.attack)
app.command()(make.sweep)
app.command()(measure.compare)
app.command()(measure.report)
app.command()(hand_over.audit)
app.command()(hand_over.purge)
app.command()(measure.chat)
app.command()(hand_over.export)
app.command("list")(measure.list_)
lab.command("build")(make.lab_build)
app.add_typer(lab, name="lab", help="The embedded world and its small models.")


def main(args: list[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    try:
        app(args, prog_name="duet")
    except UserError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("stopped; the same command goes on", file=sys.stderr)
        raise
