"""The verb that gives a student away: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from duet_unlearn.cli.options import RunArg
from duet_unlearn.cli.progress import progress


def export(
    run: RunArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    form: Annotated[
        Literal["merged", "adapter"],
        typer.Option("--as", help="A whole model, or the adapter alone, which is undone by not loading it."),
    ] = "merged",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Type of the weights; the base's own if not given.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="ORG/NAME", help="The base's hub id, where the recipe names a folder.", show_default=False
        ),
    ] = None,
    chat_template: Annotated[
        Literal["base", "recipe"],
        typer.Option("--chat-template", help="Keep the base's, or write the recipe's model.chat_template."),
    ] = "base",
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Of one file of weights.")] = "5GB",
    push: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="ORG/NAME", help="Then upload it to the hub, private if new.", show_default=False
        ),
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
