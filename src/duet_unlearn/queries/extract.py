"""``extract_queries``: a corpus and a model in, query files out.

Forget queries come first: the writer is shown chunk after chunk, what it writes is sorted, and what is usable is chosen
evenly over the corpus, pass by pass, until there are enough. Retain queries and other wordings are made from those.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from duet_unlearn.data.corpus import Chunk, read_corpus, split
from duet_unlearn.data.files import atomic_write_text
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event, OnEvent, ignore
from duet_unlearn.queries.selection import (
    choose,
    is_new,
    key_names,
    names_in,
    normal_words,
    parse_questions,
    reason_against,
    reason_against_form,
    says_any,
    spaced,
    spread,
)
from duet_unlearn.queries.writers import ServerWriter, Writer, append_answers, local_writer, read_answers

NEIGHBOURS_AT_A_TIME = 10
"""Neighbour questions asked for in one answer."""
PARAPHRASE_TURNS = 3
"""How often the other wordings of a question are asked for."""
LEAST = {"count": 1, "per_chunk": 1, "chunk": 1, "passes": 1, "max_new_tokens": 1, "retain": 0, "paraphrases": 0}
LOG = logging.getLogger("duet_unlearn")


def packaged_text(name: str) -> str:
    """A text file of this package: ``prompts/*.txt``, ``general.txt``."""
    return resources.files("duet_unlearn.queries").joinpath(name).read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class ExtractConfig:
    """How questions are asked for and chosen. All defaults are ours.

    Raises:
        UserError: an instruction without `{passage}`, a number below its least.
    """

    count: int = 100
    """Forget queries in all: the paper's number."""
    per_chunk: int = 5
    """Questions asked for at a time: `{n}` of the instruction."""
    chunk: int = 1200
    """Characters of a chunk at most, in whole sentences; 1: every sentence by itself."""
    instructions: tuple[str, ...] = ()
    """How the writer is instructed, with `{passage}`, `{concept}` and `{n}` in it; several take turns. Empty: the
    packaged one."""
    passes: int = 10
    """How often a chunk is asked at most, as long as questions are missing and new ones come."""
    temperature: float = 0.7
    """Of all passes after the first with each instruction, which are greedy."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    check: Literal["words", "model"] = "words"
    """Who decides whether a question is on the concept: its words, or its words and then the writer, asked yes or
    no."""
    retain: int = 0
    """Retain queries: half about neighbours of the concept, half general ones, which fill up where neighbours lack."""
    paraphrases: int = 0
    """Other wordings of each forget query, never to be trained on."""
    seed: int = 0
    """Of the sampling, and of the choice of general questions."""

    def __post_init__(self) -> None:
        for text in self.instructions:
            if "{passage}" not in text:
                raise UserError(f"the instruction {text[:60]!r} has no {{passage}}", "say where the passage goes")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}", f"it is at least {least}")


@dataclass(frozen=True)
class Coverage:
    """What was found, where, and why the rest was dropped."""

    requested: int
    kept: int
    chunks: int
    asked: int
    """Chunks that the model was shown."""
    silent: int
    """Of these, chunks that hold nothing about the concept, according to the model."""
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

    def to_json(self) -> dict[str, Any]:
        """As ``duet queries --json`` prints it; `requested` has an older name there."""
        found = asdict(self)
        return {"wanted": found.pop("requested"), **found}


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

    Until all files are whole, nothing of them is there; what the model wrote is in ``q.jsonl.part``, from which the
    same call goes on.

    Args:
        concept: May be None where every row of the corpus names its own.
        model: A folder, a hub id or ``lab:base``; with `server` the model's name there.
        out: ``q.jsonl`` gets the forget queries. ``q.retain.jsonl`` and ``q.paraphrases.jsonl`` are written next to
            it, if the config asks for them.

    Raises:
        UserError: whatever the user can put right, from a corpus without text to a server that is not there.
    """
    config, out = config or ExtractConfig(), Path(out)
    files = _free_files(out, config)
    chunks = [chunk for document in read_corpus(corpus) for chunk in split(document, size=config.chunk)]
    _require_fit(chunks, concept, config)
    settings = {"model": model, "server": server, "seed": config.seed, "max_new_tokens": config.max_new_tokens}
    writer: Writer = ServerWriter(server, model) if server else local_writer(model)
    part = out.with_name(f"{out.name}.part")
    known = read_answers(part, settings)
    extraction = Extraction(chunks, concept or "", config, writer, part, settings, known, on_event)
    forget = extraction.forget_queries()
    queries = {
        "forget": forget,
        "retain": extraction.retain_queries(forget) if config.retain else [],
        "paraphrases": extraction.paraphrases(forget) if config.paraphrases else [],
    }
    for name in [name for name in files if not queries[name]]:
        LOG.warning("warning: the model wrote no usable %s; %s is not written", name, files.pop(name))
    for name in reversed(files):  # the forget queries last: where they are, all is
        atomic_write_text(files[name], _json_lines(queries[name], {chunk.source: chunk for chunk in chunks}))
    part.unlink()
    return _coverage(extraction, files, queries)


def _free_files(out: Path, config: ExtractConfig) -> dict[str, Path]:
    """What will be written; nothing is written over."""
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: queries are written as JSONL", f"name it {out.with_suffix('.jsonl')}")
    files = {"forget": out}
    for name in ("retain", "paraphrases"):
        files |= {name: out.with_name(f"{out.stem}.{name}.jsonl")} if getattr(config, name) else {}
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
            f"{config.count} queries are too few for {len(requests)} requests", "raise --count: each needs at least one"
        )


def _json_lines(queries: Iterable[Query], chunks: Mapping[str, Chunk]) -> str:
    """Queries as JSONL, each with the place in the corpus that it was asked about, if it has one."""
    lines = []
    for query in queries:
        row: dict[str, Any] = {key: value for key, value in asdict(query).items() if value not in (None, "")}
        if chunk := chunks.get(query.source):
            place = {"start": chunk.start, "end": chunk.end, "lines": list(chunk.lines)}
            row["span"] = {"file": chunk.document.name, **place}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


@dataclass
class Extraction:
    """One extraction on its way: what it works on, and what was written and dropped so far. Chunks are numbers."""

    chunks: Sequence[Chunk]
    concept: str
    config: ExtractConfig
    writer: Writer
    part: Path
    """The file of the writer's answers."""
    settings: Mapping[str, Any]
    """What these depend on, but for their prompts."""
    known: dict[str, str]
    """The answers by the hash of their prompt."""
    on_event: OnEvent
    written: dict[int, list[str]] = field(default_factory=dict)
    """Chunk -> usable questions, in order."""
    kept: list[tuple[int, str]] = field(default_factory=list)
    """(chunk, question) that are chosen."""
    duplicates: list[tuple[int, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    silent: set[int] = field(default_factory=set)
    """Chunks that say nothing about the concept."""
    off: set[tuple[int, str]] = field(default_factory=set)
    """(chunk, question) that the model found to be off the concept."""

    @cached_property
    def corpus_words(self) -> str:
        texts = {id(chunk.document): chunk.document.text for chunk in self.chunks}
        return spaced(word for text in texts.values() for word in normal_words(text))

    @cached_property
    def groups(self) -> list[list[int]]:
        """The chunks of each request, each in an order whose every beginning is even over the request."""
        found: dict[str, list[int]] = {}
        for number, chunk in enumerate(self.chunks):
            found.setdefault(chunk.document.request, []).append(number)
        return [spread([group]) for group in found.values()]

    def concept_of(self, number: int) -> str:
        return self.chunks[number].document.concept or self.concept

    def answers(
        self,
        phase: str,
        template: str,
        values: Sequence[Mapping[str, str]],
        *,
        text: str = "",
        turn: int = 0,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """The writer's answers to a template with each of the values in its `{fields}`, with an event a batch.

        The writer is asked only what is not known yet.

        Args:
            text: What the events say.
            turn: Which time these are asked: the first is greedy, each further one is sampled anew.
            max_new_tokens: The config's if None.
        """
        # Not str.format: other braces stay, in the template and in the values.
        prompts = [re.sub(r"\{(\w+)\}", lambda at, row=row: row.get(at[1], at[0]), template) for row in values]
        temperature = self.config.temperature if turn else 0.0
        keys = [sha256(json.dumps([one, turn, temperature]).encode()).hexdigest()[:20] for one in prompts]
        todo = {key: one for key, one in zip(keys, prompts, strict=True) if key not in self.known}
        self.on_event(Event(phase, 0, len(prompts), text))
        for start in range(0, len(todo), self.writer.batch_size):
            batch = dict(islice(todo.items(), start, start + self.writer.batch_size))
            written = self.writer.write(
                list(batch.values()),
                temperature=temperature,
                # Of the batch's own key, so that it does not depend on where an extraction was stopped.
                seed=(self.config.seed + int(next(iter(batch))[:7], 16)) % 2**31,
                max_new_tokens=max_new_tokens or self.config.max_new_tokens,
            )
            answers = dict(zip(batch, written, strict=True))
            append_answers(self.part, self.settings, answers)
            self.known |= answers
            self.on_event(Event(phase, len(prompts) - len(todo) + start + len(batch), len(prompts), text))
        return [self.known[key] for key in keys]

    def forget_queries(self) -> list[Query]:
        """The forget queries in the order of the corpus.

        Raises:
            UserError: not one usable question.
        """
        config = self.config
        instructions = config.instructions or (packaged_text("prompts/ask.txt"),)
        # All chunks, the requests by turns.
        order = [row[turn] for turn in range(max(map(len, self.groups))) for row in self.groups if turn < len(row)]
        starts = range(0, len(order), config.count)
        for turn in range(config.passes):
            before = len(self.kept)
            for start in starts:
                if len(self.kept) < config.count:
                    numbers = [number for number in order[start : start + config.count] if number not in self.silent]
                    self._write_questions(turn, instructions, numbers)
                    self._choose()
            # A pass that brought nothing new is the last one, once every instruction had its turn.
            if len(self.kept) == config.count or (len(self.kept) == before and turn + 1 >= len(instructions)):
                break
        if not self.kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
            raise UserError(
                f"the model wrote no usable question about {self.concept or 'the concepts'} ({reasons or 'no lines'})",
                "does the corpus speak of the concept? Else try a stronger model, or another --instruction",
            )
        found, counts = [], Counter[int]()
        for number, question in sorted(self.kept, key=lambda pair: pair[0]):
            counts[number] += 1
            chunk = self.chunks[number]
            query = _query(f"{chunk.source}#{counts[number]}", question, chunk.source)
            found.append(replace(query, request=chunk.document.request, concept=chunk.document.concept))
        return found

    def _write_questions(self, turn: int, instructions: Sequence[str], numbers: Sequence[int]) -> None:
        """Show the writer some chunks and sort what it writes."""
        values = [
            {"n": str(self.config.per_chunk), "concept": self.concept_of(number), "passage": self.chunks[number].text}
            for number in numbers
        ]
        answers = self.answers(
            "ask",
            instructions[turn % len(instructions)],
            values,
            text=f"pass {turn + 1}, {len(self.kept)} kept",
            # Each instruction's first time is greedy.
            turn=0 if turn < len(instructions) else turn,
        )
        for number, answer in zip(numbers, answers, strict=True):
            pool = self.written.setdefault(number, [])
            if answer.strip(" .").upper() == "NONE":
                self.silent.add(number)
                continue
            for question in parse_questions(answer):
                passage, concept = self.chunks[number].text, self.concept_of(number)
                if reason := reason_against(question, passage, concept=concept, corpus=self.corpus_words):
                    self.dropped[reason] += 1
                elif question not in pool and (number, question) not in self.off:
                    pool.append(question)

    def _choose(self) -> None:
        """Choose, and where the model checks, let it see what was chosen, until all that is chosen has passed."""
        while True:
            self.kept, self.duplicates = choose(self.written, self.groups, count=self.config.count)
            if self.config.check == "words":
                return
            values = [{"question": question, "concept": self.concept_of(number)} for number, question in self.kept]
            answers = self.answers("check", packaged_text("prompts/check.txt"), values, max_new_tokens=8)
            off = [pair for pair, word in zip(self.kept, answers, strict=True) if word.strip()[:2].lower() == "no"]
            if not off:
                return
            # Others move up into their places, and these must pass too.
            for number, question in off:
                self.written[number].remove(question)
            self.off.update(off)
            self.dropped["off the concept, says the model"] = len(self.off)

    def retain_queries(self, forget: Sequence[Query]) -> list[Query]:
        """Neighbours, then general questions: `retain` of the config in all, half of them neighbours if the model has
        so many.

        None says a name of the concept, or one that a forget query says; none is like a forget query or another.
        """
        config, concepts = self.config, list(dict.fromkeys(query.concept or self.concept for query in forget))
        texts = [query.text for query in forget]
        forbidden = frozenset[tuple[str, ...]]().union(*(key_names(concept, texts) for concept in concepts))

        def fits(text: str) -> bool:
            return not says_any(text, forbidden) and is_new(text, [*texts, *neighbours])

        neighbours: list[str] = []
        values = [{"concept": concept, "n": str(NEIGHBOURS_AT_A_TIME)} for concept in concepts]
        for turn in range(config.passes):
            before = len(neighbours)
            if before >= config.retain // 2:
                break
            progress = f"{before} of {config.retain // 2}"
            template = packaged_text("prompts/neighbours.txt")
            for answer in self.answers("neighbours", template, values, text=progress, turn=turn):
                for text in parse_questions(answer):
                    neighbours += [text] if not reason_against_form(text) and fits(text) else []
            if turn and len(neighbours) == before:
                break
        neighbours = neighbours[: config.retain // 2]
        pool = general_questions()
        random.Random(config.seed).shuffle(pool)
        general = [text for text in pool if fits(text)][: config.retain - len(neighbours)]
        return [
            _query(f"{kind}#{number}", text, kind)
            for kind, found in (("neighbour", neighbours), ("general", general))
            for number, text in enumerate(found, 1)
        ]

    def paraphrases(self, forget: Sequence[Query]) -> list[Query]:
        """Other wordings of each forget query, `paraphrases` of the config at most; ids go on from the original's.

        A wording keeps all names of its original, adds none, and stands in no forget query.
        """
        count, template = self.config.paraphrases, packaged_text("prompts/paraphrase.txt")
        trained = {normal_words(query.text) for query in forget}
        found: dict[str, list[str]] = {query.id: [] for query in forget}
        for turn in range(PARAPHRASE_TURNS):
            short = [query for query in forget if len(found[query.id]) < count]
            if not short:
                break
            values = [{"question": query.text, "n": str(count)} for query in short]
            for query, answer in zip(short, self.answers("reword", template, values, turn=turn), strict=True):
                for text in parse_questions(answer):
                    fits = reason_against_form(text) is None and names_in(text) == names_in(query.text)
                    if fits and normal_words(text) not in trained | set(map(normal_words, found[query.id])):
                        found[query.id].append(text)
        return [
            replace(query, id=f"{query.id}/paraphrase-{number}", messages=({"role": "user", "content": text},))
            for query in forget
            for number, text in enumerate(found[query.id][:count], 1)
        ]


def _coverage(extraction: Extraction, files: Mapping[str, Path], queries: Mapping[str, Sequence[Query]]) -> Coverage:
    """What came of it."""
    chunks, kept = extraction.chunks, extraction.kept
    covered = {number for number, _ in kept}
    lengths = [chunk.end - chunk.start for chunk in chunks]
    requests = Counter(query.request for query in queries["forget"])
    sources = Counter(query.source for query in queries["retain"])
    dropped = extraction.dropped + Counter({"near-duplicate": len(extraction.duplicates)})
    return Coverage(
        requested=extraction.config.count,
        kept=len(kept),
        chunks=len(chunks),
        asked=len(extraction.written),
        silent=len(extraction.silent),
        covered=len(covered),
        covered_characters=sum(lengths[number] for number in covered) / sum(lengths),
        uncovered=tuple(chunk.source for number, chunk in enumerate(chunks) if number not in covered),
        dropped=dict(dropped.most_common()),
        unused=sum(map(len, extraction.written.values())) - len(kept) - len(extraction.duplicates),
        requests={name: requests[name] for name in sorted({chunk.document.request for chunk in chunks} - {""})},
        neighbours=sources["neighbour"],
        general=sources["general"],
        paraphrases=len(queries["paraphrases"]),
        files={name: str(path) for name, path in files.items()},
    )


def _query(name: str, text: str, source: str) -> Query:
    return Query(id=name, messages=({"role": "user", "content": text},), source=source)


def general_questions() -> list[str]:
    """The packaged questions of general knowledge, over many subjects."""
    return [line for line in packaged_text("general.txt").splitlines() if line and not line.startswith("#")]
