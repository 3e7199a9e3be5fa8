"""Verbs that make something: demo, init, queries, plan, run, sweep, lab build."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from duet_unlearn.cli.terminal import JsonOpt, RecipeArg, SetOpt, json_text, pairs_text, progress
from duet_unlearn.errors import UserError

if TYPE_CHECKING:
    from duet_unlearn.queries import Coverage

LOG = logging.getLogger("duet_unlearn")
STARTER = Path(__file__).parent / "starter"
"""What `duet init` fills in: a recipe that runs as it is, and two lists of questions to be edited."""
NUM_UNCOVERED = 5
"""Places of a corpus without a query that are listed."""


def demo() -> None:
    """Watch a small model forget one story and keep the rest.

    Less than a minute on 2 cores, no network. Writes runs/demo, prints the table and the path of the report.
    """
    run("lab/demo")


def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a hub id, or lab:base.")],
    concept: Annotated[str, typer.Option(help='What to forget, as you would name it: "the Harry Potter books".')],
    name: Annotated[str | None, typer.Option(help="Name of the files; from the concept if not given.")] = None,
) -> None:
    """Write a commented recipe and two starter query files.

    They go into the current folder. Edit the queries, then give the recipe to duet probe
    and duet run. Files that are there already are never overwritten.
    """
    written = write_starter(model, concept=concept, name=name, folder=Path())
    for path in written:
        typer.echo(str(path))
    files = " and ".join(str(path) for path in written[1:])
    typer.echo(f"next: edit {files} (about 100 lines each), then: duet probe {written[0]}", err=True)


def write_starter(model: str, *, concept: str, name: str | None, folder: Path) -> list[Path]:
    """Write the recipe and the two query files; returns their paths, the recipe first.

    Raises:
        UserError: the concept is empty, or one of the files is there already.
    """
    from duet_unlearn.data.files import atomic_write_text

    slug = re.sub(r"[^a-z0-9]+", "-", (name or concept).lower()).strip("-")[:60].rstrip("-")
    if not slug:
        raise UserError(f"{name or concept!r} gives no file name", "give one with --name, in letters and digits")
    small = model.startswith("lab:")
    recipe = (STARTER / "recipe.yaml").read_text(encoding="utf-8")
    texts = {
        folder / f"{slug}.yaml": recipe.format(
            name=slug,
            model=model,
            concept=" ".join(concept.split()),  # it stands in a comment, which is one line
            # A JSON string is a YAML string: a concept may hold quotes, colons and line breaks.
            model_yaml=json.dumps(model, ensure_ascii=False),
            concept_yaml=json.dumps(concept, ensure_ascii=False),
            precision="fp32" if small else "bf16",
            k=20 if small else 1000,
            epochs=20 if small else 10,
            rate="3.0e-4" if small else "1.0e-5",
        )
    }
    for role in ("forget", "retain"):
        questions = (STARTER / f"{role}.txt").read_text(encoding="utf-8").splitlines()
        rows = [{"question": question.replace("{concept}", concept)} for question in questions]
        texts[folder / f"{slug}-{role}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # All are looked at before one is written: a second try would stumble over the first one's files.
    for path in texts:
        if path.exists():
            raise UserError(f"{path}: is there already", "choose other names with --name, or move it away")
    for path, text in texts.items():
        atomic_write_text(path, text)
    return list(texts)


def queries(
    corpus: Annotated[
        Path,
        typer.Argument(metavar="CORPUS", help="A text, Markdown, PDF or JSONL file, or a folder of them."),
    ],
    model: Annotated[
        str,
        typer.Option(help="Who writes the questions: a folder, a hub id or lab:base; with --server, its name there."),
    ],
    out: Annotated[Path, typer.Option(help="File for the forget queries (.jsonl).")],
    concept: Annotated[
        str | None,
        typer.Option(
            help='What to forget, as you would name it: "the Harry Potter books". JSONL rows may name their own.'
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; its key is read from OPENAI_API_KEY."
            " Needs the extra server.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Forget queries to write.")] = 100,
    retain: Annotated[
        int, typer.Option(min=0, help="Retain queries too: neighbours of the concept, and general ones.")
    ] = 0,
    paraphrases: Annotated[int, typer.Option(min=0, help="Other wordings of each forget query, to test with.")] = 0,
    check: Annotated[
        Literal["words", "model"],
        typer.Option(help="Who judges whether a question is on the concept; model asks it yes or no too."),
    ] = "words",
    per_chunk: Annotated[int, typer.Option(min=1, help="Questions asked for at a time.")] = 5,
    chunk: Annotated[
        int, typer.Option(min=1, help="Characters of a chunk at most; 1 makes one of every sentence.")
    ] = 1200,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Own wording, with {passage}, {concept} and {n} in it; several are used by turns."
        ),
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="How often a chunk is asked at most.")] = 10,
    temperature: Annotated[float, typer.Option(min=0, help="Of the passes after the first, which is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the sampling and the choice.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Draw questions about a concept from a corpus.

    A model that follows instructions writes them, chunk by chunk. Near-duplicates and questions off the concept
    are dropped, the rest is chosen evenly over the corpus, and each keeps its place there. A JSONL row is
    {"text": "..", "request": "id", "concept": ".."}; with request ids, scores are given for each request too.

    What was stopped goes on when the same command is given again; files are written when all is done.
    """
    from duet_unlearn.queries import ExtractConfig, extract_queries

    config = ExtractConfig(
        count=count,
        per_chunk=per_chunk,
        chunk=chunk,
        instructions=tuple(instruction or ()),
        passes=passes,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        check=check,
        retain=retain,
        paraphrases=paraphrases,
        seed=seed,
    )
    with progress() as on_event:
        coverage = extract_queries(
            corpus, concept=concept, model=model, out=out, server=server, config=config, on_event=on_event
        )
    typer.echo(json_text(coverage.to_json()) if as_json else coverage_text(coverage))


def coverage_text(found: Coverage) -> str:
    """What was written, what the queries cover, and why the rest was dropped."""
    lines = {
        "forget queries": f"{found.kept} of {found.requested} requested",
        "chunks with a query": f"{found.covered} of {found.chunks}, {100 * found.covered_characters:.0f} % of the text",
        "chunks asked": f"{found.asked}; {found.silent} of them hold nothing about the concept",
        "dropped": ", ".join(f"{count} {reason}" for reason, count in found.dropped.items()) or "nothing",
        "good, but not needed": str(found.unused),
    }
    if "retain" in found.files:
        lines["retain queries"] = f"{found.neighbours} neighbours, {found.general} general"
    if "paraphrases" in found.files:
        lines["paraphrases"] = str(found.paraphrases)
    lines |= {f"request {name}": f"{count} queries" for name, count in found.requests.items()}
    if found.uncovered:
        more = len(found.uncovered) - NUM_UNCOVERED
        lines["without a query"] = ", ".join(found.uncovered[:NUM_UNCOVERED]) + (f" and {more} more" * (more > 0))
    return f"{pairs_text(lines)}\n\n{pairs_text(found.files)}"


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a config.json, a hub id or lab:base.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="The recipe whose settings and number of queries count; else the defaults."
        ),
    ] = None,
    settings: SetOpt = None,
    tokens: Annotated[int, typer.Option(min=1, help="Longest question in tokens, chat template included.")] = 64,
    prefix: Annotated[int, typer.Option(min=0, help="Tokens that the teacher's prefix adds.")] = 32,
    queries: Annotated[
        int | None, typer.Option(min=1, help="Forget and retain queries together [default: the recipe's, else 200].")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(min=1.0, help="Operations a second, such as 400e12 [default: measured here].")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Say what a model takes to train, before anything is loaded.

    From config.json alone: parameters; memory of full training, LoRA and QLoRA; disk; time by operation count; and
    what of it fits into this machine.
    """
    from duet_unlearn.config.reading import default_recipe, load_recipe, recipe_names

    if model in recipe_names() or model.endswith((".yaml", ".yml")):
        raise UserError(f"{model}: is a recipe, not a model", f"duet plan MODEL --recipe {model}")
    loaded = load_recipe(recipe, settings or []) if recipe else default_recipe(model, settings or [])
    from duet_unlearn.job import load_job
    from duet_unlearn.plan import Workload, make_plan, plan_text
    from duet_unlearn.subjects import model_folder

    if recipe and queries is None:
        try:
            job = load_job(loaded)
            queries = len(job.train.forget) + len(job.train.retain)
        except UserError as error:  # a plan needs no data: the settings are the recipe's all the same
            LOG.warning("warning: %s\nhint: planned for %d queries; --queries N", error.message, Workload.queries)
    load = Workload(tokens=tokens, prefix=prefix, queries=queries or Workload.queries)
    result = make_plan(model_folder(model), loaded, load, rate=flops)
    typer.echo(json_text(result) if as_json else plan_text(result))


def run(
    recipe: RecipeArg,
    settings: SetOpt = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; the recipe's own, or runs/NAME-HASH, if not given.")
    ] = None,
) -> None:
    """Probe, train, evaluate and write the report.

    A run that was stopped goes on when the same command is given again, to the same result. A finished run
    is shown as it is.
    """
    from duet_unlearn.config.reading import load_recipe

    loaded = load_recipe(recipe, settings or [])
    # Torch comes with it: a mistake in the recipe is reported before.
    from duet_unlearn import api

    with progress() as on_event:
        finished = api.unlearn(loaded, out=out, on_event=on_event)
    from duet_unlearn.report import summary_text

    typer.echo(f"{summary_text(finished.path)}\n\nreport: {finished.report}")


def sweep(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite file, or a packaged name: lab, lab-smoke.")],
    out: Annotated[Path | None, typer.Option(help="The sweep's folder; runs/sweep-NAME if not given.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Print a script for sbatch, an array of --workers tasks, and start nothing.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Compare methods under one protocol.

    Every method is tuned alike on validation questions, then tested once on every target and seed. Each run is a
    folder. What was stopped goes on when the same command is given again; given several times at once, also on
    several machines that share the folder, it is done together.
    """
    from duet_unlearn import sweep as sweeps

    prepared = sweeps.prepare(suite, out)
    if slurm:
        typer.echo(sweeps.slurm_script(prepared, workers=workers), nl=False)
        return
    # It takes hours: how many, and what is there already, is announced before.
    typer.echo(sweeps.announcement(prepared, workers=workers), err=True)
    with progress(every="sweep") as on_event:
        results = sweeps.run(prepared, workers=workers, on_event=on_event)
    written = f"results: {prepared.out / 'results.json'}\nreport: {prepared.out / 'report.html'}"
    typer.echo(json_text(results) if as_json else f"{sweeps.table_text(results)}\n\n{written}")
    # Printed also where something failed: the rest of the table can be used. The exit code tells scripts.
    if problems := sweeps.problems_text(results):
        typer.echo(f"failed:\n{problems}", err=True)
    if missing := results["counts"]["test"]["failed"] + sum(bool(method["failed"]) for method in results["methods"]):
        raise UserError(
            f"the table lacks {missing} of its tests or methods",
            "to do a run again, remove its folder and give the same command",
        )


def lab_build(
    out: Annotated[Path | None, typer.Option(help="Folder for the models; inside the package if not given.")] = None,
) -> None:
    """Rebuild the lab's models from nothing.

    At most 90 minutes on 2 cores; goes on where it was stopped.
    """
    from duet_unlearn import api

    with progress() as on_event:
        folder = api.build_lab(out, on_event=on_event)
    typer.echo(str(folder))
