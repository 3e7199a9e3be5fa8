"""Verbs that measure and show: probe, evaluate, lm-eval, attack, compare, report, chat, list."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from duet_unlearn.cli.hand_over import shown_of
from duet_unlearn.cli.terminal import (
    JsonOpt,
    KeepNameOpt,
    RecipeArg,
    RedactOpt,
    RunArg,
    RunOrModelArg,
    SetOpt,
    json_text,
    pairs_text,
    progress,
)
from duet_unlearn.errors import UserError

if TYPE_CHECKING:
    from duet_unlearn.teacher.probe import ProbeResult

METRICS = {
    "right": "share of answers with the right value as whole words and no other value of that attribute",
    "refused": "share of answers whose first sentence refuses, or says that it does not know",
    "wrong": "share of answers that are neither right nor refused",
    "right_per_character": "as right, for option texts whose log-probability is divided by their length (acc_norm)",
    "rouge_l": "mean ROUGE-L against the right answer (rouge_score 0.1.2), 0 to 1: F1 without stemmer; TOFU: recall"
    " with stemmer; RWKU: recall without",
    "points": "Performance Shift against the base, in points: forgetting gained plus change of what is kept; or"
    " PrivLeak: AUC of min-k 40 % against the oracle's, 0 ideal, below 0 remembered",
    "probability": "mean length-normalised probability of the right answer, end token included",
    "choice_probability": "mean of p_right / (p_right + sum of p_wrong), length-normalised",
    "truth_ratio": "TOFU's truth ratio as OpenUnlearning has it: mean min(R, 1/R) on forget sets, max(0, 1 - R) else",
    "truth_ratio_paper": "the same with the arithmetic mean of p_wrong, as TOFU's paper words it",
    "truth_ratio_prob": "mean of p_right / (p_right + p_wrong)",
    "exact_memorisation": "share of the answer's tokens that the model, shown all before them, would have written",
    "extraction_strength": "1 - k/N, k the shortest shown part of the answer from which the rest comes out right",
    "model_utility": "TOFU: harmonic mean of probability, ROUGE-L and truth ratio on retain, real authors, world facts",
    "forget_quality": "TOFU: p-value of a KS test between the truth ratios of the subject and of the oracle",
    "auc_gap": "membership: auc_min_k less the oracle's (MUSE without one: less 0.5); 0 ideal, above 0 remembered",
    "auc_min_k": "membership: AUC of min-k 20 %, forget rows as members; 1 remembered, ideal is the oracle's",
    "auc_min_k_plus_plus": "membership: AUC of min-k++ 20 %",
    "auc_loss": "membership: AUC of the mean negative log-likelihood",
    "auc_zlib": "membership: AUC of the mean negative log-likelihood over the zlib-compressed length",
}
"""Names in evals/*.json -> what they are. Each has n and a 95 % interval."""
NUM_TOKENS = 5
"""Likeliest first tokens that are shown of a question."""


def probe(recipe: RecipeArg, settings: SetOpt = None, as_json: JsonOpt = False) -> None:
    """Measure, before any training, what the prefix does.

    Does it make the model refuse questions about the concept, and leave the answers to others as they were?
    """
    from duet_unlearn.config.reading import load_recipe

    loaded = load_recipe(recipe, settings or [])
    # Torch comes with it: a mistake in the recipe is reported before.
    from duet_unlearn import api

    with progress() as on_event:
        result = api.probe(loaded, on_event=on_event)
    typer.echo(json_text(result) if as_json else probe_text(result))


def evaluate(
    what: RunOrModelArg,
    recipe: Annotated[str | None, typer.Option(metavar="RECIPE", help="The recipe whose questions are asked.")] = None,
    settings: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Score a run's subjects, or any model.

    A run is asked its own questions again unless --recipe names others; a model needs --recipe. Scores come
    with n and interval.
    """
    from duet_unlearn.config.reading import load_recipe

    if settings and not recipe:
        raise UserError("--set has no recipe to change", "name one with --recipe")
    loaded = load_recipe(recipe, settings or []) if recipe else None
    from duet_unlearn import api

    with progress() as on_event:
        results = api.evaluate(what, recipe=loaded, on_event=on_event)
    typer.echo(json_text(results) if as_json else scores_text(results))


def lm_eval(
    what: RunOrModelArg,
    tasks: Annotated[str, typer.Option(metavar="A,B", help="lm-eval's tasks or groups, such as mmlu,wmdp.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--arg", metavar="KEY=VALUE", help="One setting of lm-eval, such as num_fewshot=5; may be repeated."
        ),
    ] = None,
    include: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder of more task files.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Ask a run's student, or any model, lm-eval's tasks.

    Needs the extra lm-eval. A run keeps the results, with every setting as lm-eval used it, in its folder
    evals. A setting that lm-eval would not follow is an error.
    """
    import yaml

    parsed = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        try:
            parsed[name.strip()] = yaml.safe_load(value)  # as a recipe's values are
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise UserError(f"--arg {setting}: is no setting", "write it as KEY=VALUE, such as num_fewshot=5")
    from duet_unlearn import api

    record = api.lm_eval(what, tasks.split(","), settings=parsed, include=include)
    lines = {}
    for task, found in record["results"].items():
        parts = [f"{key.split(',')[0]} {value:.4g}" for key, value in found.items() if isinstance(value, float)]
        parts += [f"{record['n-shot'][task]} shots"] if task in record["n-shot"] else []
        parts += [f"n {record['n-samples'][task]['effective']}"] if task in record["n-samples"] else []
        lines[task] = ", ".join(parts)
    typer.echo(json_text(record) if as_json else pairs_text(lines))


def attack(
    what: RunOrModelArg,
    suite: Annotated[
        str, typer.Option(metavar="SUITE", help="quick, standard or full; or a suite file of your own.")
    ] = "standard",
    only: Annotated[
        list[str] | None, typer.Option("--attack", metavar="NAME", help="This attack only; may be repeated.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="For a model: the recipe whose facts are to come back."),
    ] = None,
    settings: SetOpt = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="An attacked run whose base, base + prefix and oracle are the same: their results are taken over."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="For a model: folder of the results; runs/attacks-MODEL-RECIPE if not given."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Try to bring back what was forgotten.

    Asks, opens answers, samples, optimises prompts, fine-tunes and edits weights, each on a copy, and counts which
    facts come back; the same is done to base, base + prefix and oracle. Results go into the run folder and its
    report. What was stopped goes on when the same command is given again.
    """
    from duet_unlearn.config.reading import load_recipe

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
    # Torch comes with these: a wrong call is refused before.
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
        typer.echo(json_text(attack_run.read_attacks(found.folder)))
        return
    typer.echo(attack_run.attacks_text(found.results))
    typer.echo(f"\nresults: {found.folder}" + (f"\nreport: {Path(what) / 'report.html'}" if is_run else ""))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    as_json: JsonOpt = False,
) -> None:
    """Print one table over several runs.

    Base, base + prefix, oracle and student stand together; runs that differ only in the seed are one line.
    """
    from duet_unlearn.report import compare as compare_runs

    comparison = compare_runs(runs)
    typer.echo(comparison.to_json() if as_json else comparison.to_text())


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN|SWEEP", help="What duet run or duet sweep wrote.")],
    redact: RedactOpt = False,
    keep_name: KeepNameOpt = False,
) -> None:
    """Write a run's or a sweep's report.html again and print its path."""
    from duet_unlearn.report import write_report

    typer.echo(str(write_report(run, shown=shown_of(redact, keep_name))))


def chat(
    run: RunArg,
    question: Annotated[str | None, typer.Argument(help="The question; read from stdin if not given.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Ask one question and see three answers.

    Those of base, base + prefix and student, side by side.
    """
    from duet_unlearn import api

    stdin = sys.stdin
    text = question or (typer.prompt("question", err=True) if stdin.isatty() else stdin.read().strip())
    if not text:
        raise UserError("there is no question", 'give one: duet chat RUN "Who is ..?"')
    with progress() as on_event:
        answers = api.chat(run, text, on_event=on_event)
    # As text the answers stand side by side; JSON has them as the model wrote them.
    shown = {subject: answer.strip() for subject, answer in answers.items()}
    typer.echo(json_text(answers) if as_json else pairs_text(shown))


def list_(
    what: Annotated[Literal["recipes", "methods", "metrics"], typer.Argument(help="What to list.")],
    as_json: JsonOpt = False,
) -> None:
    """List the packaged recipes, methods or metrics."""
    if what == "metrics":
        rows = METRICS
    elif what == "recipes":
        from duet_unlearn.config.reading import about, recipe_names

        rows = {name: about(name) for name in recipe_names()}
    else:
        from duet_unlearn.config.recipe import METHODS

        rows = {kind().name: (inspect.getdoc(kind) or "").split("\n")[0] for kind in METHODS}
    typer.echo(json_text(rows) if as_json else pairs_text(rows))


def score_text(score: Mapping[str, Any], *, unit: Literal["%", "points", "nats"] = "%") -> str:
    """A score with its interval and n: ``4.0 % [1.1, 13.5] n=50``."""
    scale, digits = (100, 1) if unit == "%" else (1, 2)
    numbers = [math.nan if score.get(key) is None else scale * score[key] for key in ("value", "low", "high")]
    value, low, high = ("-" if math.isnan(number) else f"{number:.{digits}f}" for number in numbers)
    interval = f" [{low}, {high}]" if low != "-" else ""
    return f"{value} {unit}{interval} n={score['n']}"


def scores_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Subjects (each as in evals/<subject>.json) as blocks: one line a set, metrics with their interval."""
    blocks = []
    for name, result in results.items():
        lines = {
            title: ", ".join(
                f"{metric} {score_text(score, unit='points' if metric == 'points' else '%')}"
                for metric, score in metrics.items()
            )
            for title, metrics in result["scores"].items()
        }
        blocks.append(f"{result.get('label', name)}\n{pairs_text(lines)}")
    return "\n\n".join(blocks)


def probe_text(result: ProbeResult) -> str:
    """The verdict (with advice, if bad), the numbers behind it, what the prefix did to the first tokens."""
    from duet_unlearn.teacher.probe import ADVICE

    found = asdict(result)
    numbers = {
        "refused, with the prefix": score_text(found["refused"]),
        "refused, without it": score_text(found["refused_without"]),
        "retain still answered, with the prefix": score_text(found["answered"]),
        "top-K overlap at the first token, retain": score_text(found["agreement"]),
        "KL at the first token, retain": score_text(found["kl"], unit="nats"),
    }
    parts = [found["verdict"], *([] if result.works else [f"hint: {ADVICE}"]), pairs_text(numbers)]
    for row in found["shift"]:
        likeliest = {
            f"  {name}": "  ".join(f"{token!r} {prob:.2f}" for token, prob in row[name][:NUM_TOKENS])
            for name in ("base", "prefix")
        }
        parts.append(f"{row['role']}: {row['query']}\n{pairs_text(likeliest)}")
    return "\n\n".join(parts)
