"""The verb `queries`: a corpus in, query files out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from duet_unlearn.cli.options import JsonOpt
from duet_unlearn.cli.progress import progress

if TYPE_CHECKING:
    from duet_unlearn.queries import Coverage

SHOWN = 5
"""Places without a query that are listed."""


def queries(
    corpus: Annotated[
        Path,
        typer.Argument(
            metavar="CORPUS", help="A text, Markdown, PDF or JSONL file, or a folder of them.", show_default=False
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Who writes the questions: a folder, a hub id or lab:base; with --server, its name there.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the forget queries (.jsonl).", show_default=False)],
    concept: Annotated[
        str | None,
        typer.Option(
            "--concept",
            help='What to forget, as you would name it: "the Harry Potter books". JSONL rows may name their own.',
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1; its key is read from OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Forget queries that are wanted.")] = 100,
    retain: Annotated[
        int, typer.Option("--retain", min=0, help="Retain queries too: neighbours of the concept, and general ones.")
    ] = 0,
    paraphrases: Annotated[
        int, typer.Option("--paraphrases", min=0, help="Other wordings of each forget query, to test with.")
    ] = 0,
    check: Annotated[
        Literal["words", "model"],
        typer.Option("--check", help="Who judges whether a question is on the concept; model asks it yes or no too."),
    ] = "words",
    per_chunk: Annotated[int, typer.Option("--per-chunk", min=1, help="Questions asked for at a time.")] = 5,
    chunk: Annotated[
        int, typer.Option("--chunk", min=1, help="Characters of a chunk at most; 1 makes one of every sentence.")
    ] = 1200,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            "--instruction",
            metavar="TEXT",
            help="Own wording, with {passage}, {concept} and {n} in it; several are used by turns.",
            show_default=False,
        ),
    ] = None,
    passes: Annotated[int, typer.Option("--passes", min=1, help="How often a chunk is asked at most.")] = 10,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="Of the passes after the first, which is greedy.")
    ] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling and the choice.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Draw questions about a concept from a corpus.

    A model that follows instructions writes them, chunk by chunk. Near-duplicates and questions off the concept
    are dropped, the rest is chosen evenly over the corpus, and each keeps its place there. A JSONL row is
    {"text": "..", "request": "id", "concept": ".."}; with request ids, scores are given for each request too.

    What was stopped goes on when the same command is given again; files are written when all is done.
    """
    from duet_unlearn.cli import show
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
    show.echo(show.json_text(coverage) if as_json else coverage_text(coverage))


def coverage_text(coverage: Coverage) -> str:
    """What was written, what the queries cover, and why the rest was dropped."""
    from duet_unlearn.cli.show import pairs_text

    found = coverage
    lines = {
        "forget queries": f"{found.kept} of {found.requested} wanted",
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
        more = f" and {len(found.uncovered) - SHOWN} more" if len(found.uncovered) > SHOWN else ""
        lines["without a query"] = ", ".join(found.uncovered[:SHOWN]) + more
    return f"{pairs_text(lines)}\n\n{pairs_text(found.files)}"
