"""The unit of all data, one question to a model, and how it lies on disk: JSONL, or CSV with a `question` column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duet_unlearn.data.files import atomic_write_text, json_lines, read_text
from duet_unlearn.errors import UserError, nearest

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``, or one message of role ``text``: raw text, no
template."""


@dataclass(frozen=True)
class Query:
    """One question. Forgetting needs `messages` alone; the rest is for scoring."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    """The full right answer; of a letter question, the letter."""
    value: str | None = None
    """The fact inside the answer, for value match (a short answer is its own); of a letter question, the right
    option."""
    choices: tuple[str, ...] | None = None
    """All values that the fact could take, the right one included; of a letter question, its options in order."""
    source: str = ""
    """What the query is about: a story, a subject, a file."""
    split: str = ""
    request: str = ""
    """Id of the deletion request that it belongs to; results are given for each request too."""
    concept: str | None = None
    """What the prefix names for this query, where requests differ; None: the recipe's concept."""
    paraphrase: str | None = None
    """The right answer in other words (TOFU's truth ratio)."""
    wrong: tuple[str, ...] | None = None
    """Wrong answers of the same form (TOFU's truth ratio, probability among options)."""

    @property
    def text(self) -> str:
        """What the user says last."""
        return self.messages[-1]["content"]


KEYS = (
    "id",
    "question",
    "messages",
    "answer",
    "value",
    "choices",
    "source",
    "split",
    "request",
    "concept",
    "paraphrase",
    "wrong",
)
TEXTS = ("id", "answer", "value", "source", "split", "request", "concept", "paraphrase")
NAMES = ("id", "request")
"""May be numbers, which are taken as their text."""
ROLES = ("system", "user", "assistant", "text")
SHAPE = (
    'a line is {"messages": [{"role": "user", "content": "..."}]} or {"question": "..."};'
    ' "answer" and "value" are optional'
)


def read_queries(path: Path | str) -> list[Query]:
    """The queries of a ``.jsonl`` or ``.csv`` file. Ids that are not given are ``<file name>:<line>``.

    Raises:
        UserError: file missing, empty or not readable; a line that is no query, named by file:line; an id given twice.
    """
    path = Path(path)
    text = read_text(path)
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text)
    if not rows:
        raise UserError(f"{path}: has no queries", SHAPE)
    queries = [_query(row, path, line) for line, row in rows]
    seen: dict[str, int] = {}
    for (line, _), query in zip(rows, queries, strict=True):
        if query.id in seen:
            raise UserError(
                f"{path}:{line}: id {query.id!r} stands at line {seen[query.id]} already", "make ids unique"
            )
        seen[query.id] = line
    return queries


def write_queries(path: Path | str, queries: Iterable[Query]) -> None:
    """Write queries as JSONL, whole or not at all. Fields that are empty are left out."""
    lines = (
        json.dumps({k: v for k, v in asdict(query).items() if v not in (None, "")}, ensure_ascii=False)
        for query in queries
    )
    atomic_write_text(Path(path), "".join(f"{line}\n" for line in lines))


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = json_lines(path, text, SHAPE)
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: is no JSON object", SHAPE)
    return rows


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    if "question" not in (reader.fieldnames or ()):
        raise UserError(f"{path}:1: has no column `question`", "name it in the first line")
    return [(reader.line_num, {k: v for k, v in row.items() if v}) for row in reader]


def _query(row: dict[str, Any], path: Path, line: int) -> Query:
    for key in row:
        if key not in KEYS and (close := nearest(key, KEYS)):
            raise UserError(f"{path}:{line}: unknown key {key!r}", f"did you mean {close}?")
    for field in ("choices", "wrong"):
        listed = row.get(field)
        if listed is not None and not (isinstance(listed, list) and all(isinstance(text, str) for text in listed)):
            raise UserError(f"{path}:{line}: {field} is no list of texts", SHAPE)
    row = row | {key: str(row[key]) for key in NAMES if type(row.get(key)) in (int, float)}
    for field in TEXTS:
        if row.get(field) is not None and not isinstance(row[field], str):
            raise UserError(f"{path}:{line}: {field} is no text", SHAPE)
    return Query(
        id=row.get("id") or f"{path.name}:{line}",
        messages=_messages(row, path, line),
        answer=row.get("answer"),
        value=row.get("value"),
        choices=tuple(row["choices"]) if row.get("choices") is not None else None,
        source=row.get("source") or "",
        split=row.get("split") or "",
        request=row.get("request") or "",
        concept=row.get("concept"),
        paraphrase=row.get("paraphrase"),
        wrong=tuple(row["wrong"]) if row.get("wrong") is not None else None,
    )


def _messages(row: dict[str, Any], path: Path, line: int) -> tuple[Message, ...]:
    if isinstance(row.get("question"), str) and row["question"].strip():
        return ({"role": "user", "content": row["question"]},)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{path}:{line}: has no messages and no question", SHAPE)
    for message in messages:
        if not (
            isinstance(message, dict)
            and message.get("role") in ROLES
            and isinstance(message.get("content"), str)
            and message["content"].strip()
        ):
            raise UserError(f"{path}:{line}: a message needs a role ({', '.join(ROLES)}) and a content", SHAPE)
    if messages[-1]["role"] not in ("user", "text"):
        raise UserError(f"{path}:{line}: the last message is not the user's", SHAPE)
    if len(messages) > 1 and any(message["role"] == "text" for message in messages):
        raise UserError(f"{path}:{line}: a message of role text has others beside it", "raw text is one message alone")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)
