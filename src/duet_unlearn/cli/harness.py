"""The verb that hands a model to lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from duet_unlearn.cli.options import JsonOpt


def lm_eval(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run folder, a model folder, a hub id or lab:base.", show_default=False
        ),
    ],
    tasks: Annotated[str, typer.Option("--tasks", metavar="A,B", help="lm-eval's tasks or groups, such as mmlu,wmdp.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--arg",
            metavar="KEY=VALUE",
            help="One setting of lm-eval, such as num_fewshot=5; may be repeated.",
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        Path | None,
        typer.Option("--include", metavar="DIR", help="A folder of more task files.", show_default=False),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Ask a run's student, or any model, lm-eval's tasks.

    Needs the extra lm-eval. A run keeps the results, with every setting as lm-eval used it, in its folder
    evals. A setting that lm-eval would not follow is an error.
    """
    from duet_unlearn import api
    from duet_unlearn.cli import show

    record = api.lm_eval(what, tasks.split(","), settings=_parsed(settings or []), include=include)
    show.echo(show.json_text(record) if as_json else _text(record))


def _parsed(settings: list[str]) -> dict[str, Any]:
    """``key=value`` texts as a mapping; values are read as YAML, as a recipe's are."""
    import yaml

    from duet_unlearn.errors import UserError

    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise UserError(f"--arg {setting}: is no setting", "write it as KEY=VALUE, such as num_fewshot=5")
    return parsed


def _text(record: dict[str, Any]) -> str:
    """One line a task: its metrics, its shots, its number of questions."""
    from duet_unlearn.cli import show

    return show.pairs_text({task: _line(task, found, record) for task, found in record["results"].items()})


def _line(task: str, found: dict[str, Any], record: dict[str, Any]) -> str:
    metrics = [f"{key.split(',')[0]} {value:.4g}" for key, value in found.items() if isinstance(value, float)]
    counted = record["n-samples"].get(task)
    shots = f"{record['n-shot'][task]} shots" if task in record["n-shot"] else ""
    return ", ".join([*metrics, *([shots] if shots else []), *([f"n {counted['effective']}"] if counted else [])])
