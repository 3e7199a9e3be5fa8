"""Verbs for who must answer for a run: audit, purge."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from duet_unlearn.cli.options import JsonOpt, KeepNameOpt, RedactOpt, RunArg

if TYPE_CHECKING:
    from duet_unlearn.audit import Purge
    from duet_unlearn.redact import Shown


def shown_of(redact: bool, keep_name: bool) -> Shown:
    """What --redact and --keep-name come to.

    Raises:
        UserError: --keep-name alone.
    """
    from duet_unlearn.errors import UserError

    if keep_name and not redact:
        raise UserError("--keep-name is about --redact, which is not given", "give both, or neither")
    return "everything" if not redact else "scores and name" if keep_name else "scores"


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
    from duet_unlearn.cli import show

    shown = shown_of(redact, keep_name)
    from duet_unlearn.audit import write_audit

    written = write_audit(run, shown=shown)
    if as_json:
        show.echo(show.json_text(written.record))
        return
    verdict = written.record["verdict"]
    show.echo("\n".join([f"{verdict['level']}", *verdict["sentences"]]))
    if not any(one["source"] == "attack" for one in written.record["recovery"]):
        show.echo(f"not attacked: run `duet attack {run}`, then this again")
    show.echo(f"\naudit: {written.page}\n       {written.record_path}")


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
    from duet_unlearn.errors import UserError

    planned = plan_purge(run)
    if not yes:
        typer.echo(_told(planned), err=True)
        if not sys.stdin.isatty():
            raise UserError(f"{run}: nobody is there to be asked whether to delete this", "give --yes")
        if not typer.confirm("delete?", err=True):
            typer.echo("nothing was deleted", err=True)
            raise typer.Exit(1)
    purge_run(run, shown="scores and name" if keep_name else "scores")
    typer.echo(
        f"deleted {len(planned.deleted)} files ({planned.size / 2**20:.1f} MiB)\naudit: {run / 'audit-redacted.html'}"
    )


def _told(planned: Purge) -> str:
    """What is going to be deleted, a line a folder, and what to think of before."""
    tops: dict[str, int] = {}
    for path in planned.deleted:
        top = path.split("/")[0] + ("/" if "/" in path else "")
        tops[top] = tops.get(top, 0) + 1
    lines = [f"  {top}" + (f" ({number} files)" if top.endswith("/") else "") for top, number in tops.items()]
    size = f"{len(planned.deleted)} files, {planned.size / 2**20:.1f} MiB"
    head = f"{planned.path}: {size}, are deleted or replaced by redacted copies:"
    return "\n".join([head, *lines, *(f"note: {note}" for note in planned.notes)])
