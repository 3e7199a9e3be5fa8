"""Verbs for who must answer for a run, or gives its student away: audit, purge, export."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from duet_unlearn.cli.terminal import JsonOpt, KeepNameOpt, RedactOpt, RunArg, json_text, progress
from duet_unlearn.errors import UserError

if TYPE_CHECKING:
    from duet_unlearn.redact import Shown


def audit(
    run: RunArg,
    redact: RedactOpt = False,
    keep_name: KeepNameOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Write down what was done and what can be brought back, to sign.

    One page (audit.html, prints on A4) and its numbers (audit.json): what was asked for, what was done, hashes before
    and after, what was forgotten and kept, what came back under which attack, what was not tested. Attack the run
    first: duet attack.
    """
    shown = shown_of(redact, keep_name)  # a wrong call is refused before torch is imported
    from duet_unlearn.audit import write_audit

    written = write_audit(run, shown=shown)
    if as_json:
        typer.echo(json_text(written.record))
        return
    verdict = written.record["verdict"]
    typer.echo("\n".join([f"{verdict['level']}", *verdict["sentences"]]))
    if not any(one["source"] == "attack" for one in written.record["recovery"]):
        typer.echo(f"not attacked: run `duet attack {run}`, then this again")
    typer.echo(f"\naudit: {written.page}\n       {written.record_path}")


def purge(
    run: RunArg,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_name: KeepNameOpt = False,
) -> None:
    """Delete a finished run's questions and answers; keep its proof.

    Queries, targets, samples, transcripts, checkpoints and whatever else lies in the folder are deleted. Scores,
    hashes, a redacted report and audit, and the student stay. Cannot be undone: export, attack and audit before.
    What was stopped goes on when the same command is given again.
    """
    from duet_unlearn.audit import plan_purge
    from duet_unlearn.audit import purge as purge_run

    planned = plan_purge(run)
    if not yes:
        # A line a folder, and what to think of before.
        tops = Counter(path.split("/")[0] + "/" * ("/" in path) for path in planned.deleted)
        size = f"{len(planned.deleted)} files, {planned.size / 2**20:.1f} MiB"
        typer.echo(f"{planned.path}: {size}, are deleted or replaced by redacted copies:", err=True)
        for top, number in tops.items():
            typer.echo(f"  {top}" + (f" ({number} files)" if top.endswith("/") else ""), err=True)
        for note in planned.notes:
            typer.echo(f"note: {note}", err=True)
        # A script cannot answer, and must not wait for ever.
        if not sys.stdin.isatty():
            raise UserError(f"{run}: nobody is there to be asked whether to delete this", "give --yes")
        if not typer.confirm("delete?", err=True):
            typer.echo("nothing was deleted", err=True)
            raise typer.Exit(1)
    purge_run(run, shown="scores and name" if keep_name else "scores")
    typer.echo(
        f"deleted {len(planned.deleted)} files ({planned.size / 2**20:.1f} MiB)\naudit: {run / 'audit-redacted.html'}"
    )


def export(
    run: RunArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    form: Annotated[
        Literal["merged", "adapter"],
        typer.Option("--as", help="A whole model, or the adapter alone, which is undone by not loading it."),
    ] = "merged",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the weights; the base's own if not given."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="The base's hub id, where the recipe names a folder."),
    ] = None,
    chat_template: Annotated[
        Literal["base", "recipe"],
        typer.Option(help="Keep the base's, or write the recipe's model.chat_template."),
    ] = "base",
    max_shard_size: Annotated[str, typer.Option(help="Of one file of weights.")] = "5GB",
    push: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Then upload it to the hub, private if new."),
    ] = None,
) -> None:
    """Write a run's student as a folder that transformers loads.

    With the base's tokenizer, and a model card. The folder is loaded again and must answer as the student
    did. Nothing is uploaded without --push.
    """
    from duet_unlearn import api
    from duet_unlearn.export import ExportOptions

    options = ExportOptions(
        form=form, dtype=dtype, base=base, chat_template=chat_template, max_shard_size=max_shard_size
    )
    with progress() as on_event:
        done = api.export(run, folder, options=options, push=push, on_event=on_event)
    same = done.answers.compared - done.answers.differing
    typer.echo(f"loaded again: {same} of {done.answers.compared} answers are the student's word for word", err=True)
    typer.echo(done.url or str(done.path))


def shown_of(redact: bool, keep_name: bool) -> Shown:
    """What --redact and --keep-name come to.

    Raises:
        UserError: --keep-name alone.
    """
    if keep_name and not redact:
        raise UserError("--keep-name is about --redact, which is not given", "give both, or neither")
    return "everything" if not redact else "scores and name" if keep_name else "scores"
