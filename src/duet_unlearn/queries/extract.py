"""``extract_queries``: a corpus and a model in, query files out."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duet_unlearn.data.corpus import Chunk, read_corpus, split
from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.events import OnEvent, ignore
from duet_unlearn.queries.choose import Choice
from duet_unlearn.queries.config import ExtractConfig
from duet_unlearn.queries.forget import forget_queries
from duet_unlearn.queries.notes import Notes
from duet_unlearn.queries.others import paraphrases, retain_queries
from duet_unlearn.queries.server import ServerWriter
from duet_unlearn.queries.work import Work
from duet_unlearn.queries.writer import Writer, local_writer

LOG = logging.getLogger("duet_unlearn")
BATCH = 32
"""Prompts that a local model answers at a time."""


@dataclass(frozen=True)
class Coverage:
    """What was found, where, and why the rest was dropped."""

    wanted: int
    kept: int
    chunks: int
    asked: int
    """Chunks that the model was shown."""
    silent: int
    """Of these, chunks that hold nothing about the concept, says the model."""
    covered: int
    """Chunks with a kept question."""
    covered_characters: float
    """Their share of the corpus's characters, 0..1."""
    uncovered: tuple[str, ...]
    """Where the other chunks stand."""
    dropped: Mapping[str, int]
    """Reason -> questions."""
    unused: int
    """Questions that were good and not needed."""
    requests: Mapping[str, int]
    """Deletion request -> kept questions; empty where the corpus has none."""
    neighbours: int
    general: int
    paraphrases: int
    files: Mapping[str, str]
    """What was written: forget, retain, paraphrases."""


def extract_queries(
    corpus: Path | str,
    *,
    concept: str | None,
    model: str,
    out: Path | str,
    server: str | None = None,
    config: ExtractConfig | None = None,
    on_event: OnEvent = ignore,
) -> Coverage:
    """Write queries about a concept, drawn from a corpus, as JSONL that recipes read; answers are not needed.

    `out` (``q.jsonl``) gets the forget queries. Beside it stand ``q.retain.jsonl`` and ``q.paraphrases.jsonl``, if the
    config asks for them. Until all are whole, nothing of them is there; what the model wrote is in
    ``q.jsonl.part``, from which the same call goes on. `concept` may be None where every row of the corpus names its
    own. `model` is a folder, a hub id or ``lab:base``; with `server` the model's name there.

    Raises:
        UserError: whatever the user can put right, from a corpus without text to a server that is not there.
    """
    config, out = config or ExtractConfig(), Path(out)
    files = _files(out, config)
    chunks = [chunk for document in read_corpus(corpus) for chunk in split(document, size=config.chunk)]
    _require_fit(chunks, concept, config)
    settings = {"model": model, "server": server, "seed": config.seed, "max_new_tokens": config.max_new_tokens}
    writer: Writer = ServerWriter(server, model) if server else local_writer(model, batch_size=BATCH)
    notes = Notes.open(out.with_name(f"{out.name}.part"), settings=settings)
    work = Work(chunks, concept or "", config, writer, notes, on_event)
    forget, choice = forget_queries(work)
    neighbours, general = retain_queries(work, forget) if config.retain else ([], [])
    reworded = paraphrases(work, forget) if config.paraphrases else []
    queries = {"forget": forget, "retain": [*neighbours, *general], "paraphrases": reworded}
    for name in [name for name in files if not queries[name]]:
        LOG.warning("warning: the model wrote no usable %s; %s is not written", name, files.pop(name))
    for name in reversed(files):  # the forget queries last: where they are, all is
        atomic_write_text(files[name], _lines(queries[name], {chunk.source: chunk for chunk in chunks}))
    notes.path.unlink()
    return _coverage(work, choice, files, neighbours=len(neighbours), general=len(general), paraphrases=len(reworded))


def _files(out: Path, config: ExtractConfig) -> dict[str, Path]:
    """What will be written; nothing is written over."""
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: queries are written as JSONL", f"name it {out.with_suffix('.jsonl')}")
    files = {"forget": out}
    files |= {"retain": out.with_name(f"{out.stem}.retain.jsonl")} if config.retain else {}
    files |= {"paraphrases": out.with_name(f"{out.stem}.paraphrases.jsonl")} if config.paraphrases else {}
    for path in files.values():
        if path.exists():
            raise UserError(f"{path}: is there already", "choose another --out, or delete it")
    return files


def _require_fit(chunks: Sequence[Chunk], concept: str | None, config: ExtractConfig) -> None:
    if not chunks:
        raise UserError("the corpus has no words", "give files with text in them")
    for chunk in chunks:
        if not (concept or chunk.document.concept):
            raise UserError(
                f"{chunk.document.name}: has no concept", 'name it with --concept, or as "concept" in the row'
            )
    requests = {chunk.document.request for chunk in chunks}
    if len(requests) > config.count:
        raise UserError(
            f"{config.count} queries are wanted for {len(requests)} requests", "raise --count: each needs at least one"
        )


def _lines(queries: Iterable[Query], chunks: Mapping[str, Chunk]) -> str:
    """Queries as JSONL, each with the place in the corpus that it was asked about, if it has one."""
    rows = ({k: v for k, v in asdict(query).items() if v not in (None, "")} for query in queries)
    rows = (row | ({"span": _span(chunks[row["source"]])} if row["source"] in chunks else {}) for row in rows)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _span(chunk: Chunk) -> dict[str, Any]:
    return {"file": chunk.document.name, "start": chunk.start, "end": chunk.end, "lines": list(chunk.lines)}


def _coverage(work: Work, choice: Choice, files: Mapping[str, Path], **counts: int) -> Coverage:
    covered = {number for number, _ in choice.kept}
    lengths = [chunk.end - chunk.start for chunk in work.chunks]
    names = {chunk.document.request for chunk in work.chunks} - {""}
    requests = Counter(work.chunks[number].document.request for number, _ in choice.kept)
    dropped = work.dropped + Counter({"near-duplicate": len(choice.alike)})
    usable = sum(map(len, work.written.values()))
    return Coverage(
        wanted=work.config.count,
        kept=len(choice.kept),
        chunks=len(work.chunks),
        asked=len(work.written),
        silent=len(work.silent),
        covered=len(covered),
        covered_characters=sum(lengths[number] for number in covered) / sum(lengths),
        uncovered=tuple(chunk.source for number, chunk in enumerate(work.chunks) if number not in covered),
        dropped=dict(dropped.most_common()),
        unused=usable - len(choice.kept) - len(choice.alike),
        requests={name: requests[name] for name in sorted(names)},
        files={name: str(path) for name, path in files.items()},
        **counts,
    )
