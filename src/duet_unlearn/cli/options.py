"""Arguments that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArg = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe file, or a packaged name (duet list recipes).", show_default=False),
]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that duet run wrote.", show_default=False)]
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="Change one setting of the recipe; may be repeated.",
        show_default=False,
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RedactOpt = Annotated[
    bool,
    typer.Option("--redact", help="Leave questions and answers out, hash names; written beside, as ..-redacted."),
]
KeepNameOpt = Annotated[bool, typer.Option("--keep-name", help="Redacted, but with the concept's name.")]
