"""Benchmarks in their publishers' own files: found in a folder, or fetched from the hub, and read row by row.

A reference such as ``tofu:forget10`` stands wherever a query file may. Its rows lie in ``<folder>/tofu``, where the
folder is `data.folder` or what the environment's ``DUET_DATA`` names; else they come from the hub through `datasets`.
A folder that ``hf download`` filled is read as it is (JSON lines, JSON, CSV, Parquet).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from duet_unlearn.data.files import json_lines, parse_json, read_text
from duet_unlearn.errors import UserError, nearest, needs_extra

Scheme = Literal["tofu", "muse", "wmdp", "mmlu", "rwku", "xstest", "potter"]
"""What a reference begins with, and the name of the folder with the files."""
Benchmark = Literal[
    "tofu-forget01",
    "tofu-forget05",
    "tofu-forget10",
    "muse-news",
    "muse-books",
    "wmdp-bio",
    "wmdp-cyber",
    "wmdp-chem",
    "mmlu",
    "rwku",
    "xstest",
    "potter",
]
"""What `evaluate.benchmarks` may name."""
SCHEMES: tuple[str, ...] = get_args(Scheme)
FETCH = "fetch the file anew from its publisher"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
VARIABLE = "DUET_DATA"
SECONDS = 10.0
"""The hub must answer within so many."""


@dataclass(frozen=True)
class Publisher:
    """Who published a benchmark, and in which form."""

    scheme: Scheme
    hub: str | None
    """The data set's id on the hub; None where it is not there."""
    form: str
    """The columns of a row, in words."""
    folder: str = ""
    """The folder of its files, below the one of all benchmarks; empty: the scheme."""

    @property
    def where(self) -> str:
        return self.folder or self.scheme

    @property
    def format(self) -> str:
        """The format in words, for the second line of an error."""
        return f"{self.scheme}'s format{f' ({self.hub})' if self.hub else ''}: {self.form}"


@dataclass(frozen=True)
class PublishedRow:
    """A row of a publisher's file, with its place for errors."""

    place: str
    """``file:line``, or the hub's id with the row's number."""
    values: Mapping[str, Any]
    publisher: Publisher

    def text(self, column: str) -> str:
        """A column that holds text.

        Raises:
            UserError: it is missing, empty or no text.
        """
        value = self._value(column)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.place}: the column `{column}` holds no text", self.publisher.format)
        return value

    def texts(self, column: str) -> tuple[str, ...]:
        """A column that holds a list of texts. Errors as ``text``."""
        value = self._value(column)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
            raise UserError(f"{self.place}: the column `{column}` holds no list of texts", self.publisher.format)
        return tuple(value)

    def index(self, column: str, options: Sequence[str]) -> int:
        """A column that holds the place of the right option, from 0, or its letter. Errors as ``text``."""
        value = str(self._value(column)).strip()
        place = int(value) if value.isdecimal() else ord(value) - ord("A") if len(value) == 1 else -1
        if not 0 <= place < len(options):
            raise UserError(
                f"{self.place}: the column `{column}` is {value!r}, none of {len(options)} options",
                self.publisher.format,
            )
        return place

    def _value(self, column: str) -> Any:
        if column not in self.values:
            raise UserError(f"{self.place}: has no column `{column}`", self.publisher.format)
        return self.values[column]


def scheme_of(reference: str) -> str | None:
    """The scheme of a benchmark reference; None for a path."""
    scheme, colon, _ = reference.partition(":")
    return scheme if colon and scheme in SCHEMES else None


def home(folder: str | None) -> Path | None:
    """The folder of all benchmarks: the recipe's, or the environment's; None where neither is named."""
    named = folder or os.environ.get(VARIABLE)
    return Path(named) if named else None


def has_folder(publisher: Publisher, folder: str | None) -> bool:
    """Whether a benchmark's own folder is there."""
    base = home(folder)
    return base is not None and (base / publisher.where).is_dir()


def read_rows(
    publisher: Publisher,
    stems: Sequence[str],
    *,
    config: str,
    split: str,
    folder: str | None,
    header: Sequence[str] | None = None,
) -> list[PublishedRow]:
    """The rows of one part of a benchmark.

    `stems` are the names that its file may have below the benchmark's folder, without suffix; `config` and `split` are
    the hub's; `header` names the columns of a CSV file that has no first line for them.

    Raises:
        UserError: no such folder; the part is neither in it nor to be had from the hub; a file that cannot be read.
    """
    base = home(folder)
    if base is not None and not base.is_dir():
        by = "data.folder" if folder else VARIABLE
        raise UserError(f"{base}: no such folder", f"{by} names it; {_advice(publisher, base)}")
    if base is None or not has_folder(publisher, folder):
        return _from_hub(publisher, config, split, base)
    place = base / publisher.where
    found = [path for stem in stems for path in _candidates(place, stem) if path.is_file()]
    if not found:
        raise UserError(f"{place}: has no {' or '.join(f'{stem}.*' for stem in stems)}", _advice(publisher, base))
    rows = _read(found[0], header)
    if not rows:
        raise UserError(f"{found[0]}: has no rows", publisher.format)
    return [PublishedRow(f"{found[0]}:{line}", values, publisher) for line, values in rows]


def unknown_part(reference: str, parts: Sequence[str]) -> UserError:
    """The error for a reference whose part a benchmark has not."""
    close = nearest(reference.partition(":")[2], parts)
    return UserError(
        f"{reference}: there is no such part", f"did you mean {close}?" if close else f"there are {', '.join(parts)}"
    )


def _candidates(place: Path, stem: str) -> list[Path]:
    """Files that may hold a part: the stem with each suffix, and the hub's numbered Parquet file."""
    return [*(place / f"{stem}{suffix}" for suffix in SUFFIXES), *sorted(place.glob(f"{stem}-0*-of-*.parquet"))]


def _read(path: Path, header: Sequence[str] | None) -> list[tuple[int, dict[str, Any]]]:
    """Rows with their line, or their number in Parquet and in a JSON list."""
    if path.suffix == ".parquet":
        return list(enumerate(_parquet(path), start=1))
    text = read_text(path)
    if path.suffix == ".csv":
        return _csv(path, text, header)
    if text.lstrip().startswith("["):
        return [(n, _row(path, n, row)) for n, row in enumerate(parse_json(f"{path}:1", text, FETCH), 1)]
    return [(number, _row(path, number, row)) for number, row in json_lines(path, text, FETCH)]


def _csv(path: Path, text: str, header: Sequence[str] | None) -> list[tuple[int, dict[str, Any]]]:
    """Rows whose cells are all there; a cell that a row lacks is a missing column."""
    reader = csv.DictReader(io.StringIO(text), fieldnames=header)
    return [(reader.line_num, {k: v for k, v in row.items() if k and v is not None}) for row in reader]


def _row(path: Path, line: int, row: Any) -> dict[str, Any]:
    """A row as an object; MUSE's raw texts are lists of plain strings."""
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise UserError(f"{path}:{line}: is no JSON object", FETCH)
    return row


def _parquet(path: Path) -> list[dict[str, Any]]:
    with needs_extra("hub", f"{path.name} is a Parquet file: reading it"):
        from pyarrow.parquet import read_table
    return read_table(path).to_pylist()


@cache
def _from_hub(publisher: Publisher, config: str, split: str, base: Path | None) -> list[PublishedRow]:
    """A part through `datasets`, which keeps it in its own cache."""
    absent = f"{base} holds no {publisher.where}/" if base else "its files are in no folder"
    if publisher.hub is None:
        raise UserError(f"{publisher.scheme}: {absent}, and they are not on the hub", _advice(publisher, base))
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise UserError(
            f"{publisher.scheme}: {absent}, and fetching it needs the package datasets",
            f"pip install 'duet-unlearn[hub]'; or {_advice(publisher, base)}",
        ) from error
    try:
        _ask_hub(publisher.hub)
        rows = load_dataset(publisher.hub, config, split=split)
    except Exception as error:  # the hub client's errors are of another package in every major version
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{publisher.scheme}: {absent}, and {publisher.hub} ({config}, {split}) cannot be had: {reason}",
            _advice(publisher, base),
        ) from error
    return [
        PublishedRow(f"{publisher.hub}/{config}/{split}:{n}", dict(row), publisher)
        for n, row in enumerate(rows, start=1)
    ]


def _ask_hub(hub: str) -> None:
    """Ask once whether the hub answers, for its own client would try for half a minute. With HF_HUB_OFFLINE that client
    asks nobody, and finds what is in its cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with suppress(OfflineModeIsEnabled):
        HfApi().dataset_info(hub, timeout=SECONDS)


def _advice(publisher: Publisher, base: Path | None) -> str:
    """What to download, and where to put it."""
    folder = f"{base or 'DATA'}/{publisher.where}"
    then = "" if base else f", then set {VARIABLE} (or data.folder) to DATA"
    if publisher.hub is None:
        return f"put JSON lines into {folder}{then}; {publisher.form}"
    return f"hf download --repo-type dataset {publisher.hub} --local-dir {folder}{then}"
