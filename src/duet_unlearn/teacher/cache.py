"""The target cache: a frozen model is asked once, and its words are read from disk ever after.

On disk a cache is safetensors shards and a manifest that is written last. The manifest names everything that the
targets depend on, part by part, so that a mismatch can say which part differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.data.examples import Batch, Example, Role
from duet_unlearn.data.files import atomic, atomic_write_json, read_text
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import reader
from duet_unlearn.teacher.ask import Asked, Row, Teacher, given_answers, own_answers, rows_of
from duet_unlearn.teacher.signals import Keep, Signal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD = 256
"""Queries in a shard: at K = 1000 a shard is 3 MB a position."""
Kept = Callable[[Role], Keep | None]
"""What is kept of the frozen model's words on a role's rows; None: it is not asked."""


@dataclass(frozen=True)
class Targets:
    """What the frozen model says to every row: `examples` are the student's side."""

    examples: tuple[Example, ...]
    starts: Mapping[str, int]
    """Key of an example -> index of its first position among all positions of its kind of target."""
    stored: Mapping[Keep, Mapping[str, Tensor]]
    keeps: Mapping[Role, Keep | None] = field(default_factory=dict)

    def signal(self, examples: Sequence[Example], device: torch.device | None = None) -> Signal:
        """The frozen model's words at the N positions of examples that share one kind of target."""
        keep = self.keeps[examples[0].role]
        assert keep is not None
        index = torch.tensor(
            [self.starts[e.key] + n for e in examples for n in range(len(e.positions))], dtype=torch.long
        )
        return keep.signal({name: stored[index].to(device) for name, stored in self.stored[keep].items()})

    def signals(self, batch: Batch) -> dict[Role, Signal]:
        """The frozen model's words on each role's rows of a batch, on its device."""
        roles = {e.role for e in batch.examples if self.keeps.get(e.role)}
        device = batch.ids_BT.device
        return {role: self.signal([e for e in batch.examples if e.role == role], device) for role in roles}


def build_targets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    *,
    keep: Keep | Kept,
    weights: str,
    directory: Path,
    teachers: Mapping[Role, Teacher] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Targets:
    """Ask the frozen model, or read what it said before.

    The student's row is its own prompt and the same answer, so both are aligned from the answer. `teachers` give the
    logits on given answers of the roles where they are not the model's.

    Raises:
        UserError: K exceeds the vocabulary; a query stands twice; `directory` holds targets of something else.
    """
    kept: Kept = (lambda role: keep) if isinstance(keep, Keep) else keep
    rows = rows_of(tokenizer, asked)
    parts = _parts(tokenizer, rows, kept, weights)
    if not (directory / "manifest.json").exists():
        shards, done, was_training = [], 0, model.training
        total = sum(not row.asked.aligned for row in rows)
        model.eval()
        for kind, part in _shards(rows, kept):
            name = f"{len(shards):05d}.safetensors"
            with torch.no_grad():
                tensors = _ask(model, tokenizer, teachers or {}, part, kind)
            atomic(directory / name, lambda path, tensors=tensors: save_file(tensors, path))
            shards.append(name)
            done += len(part)
            on_progress(done, total)
        model.train(was_training)
        atomic_write_json(directory / "manifest.json", {"parts": parts, "shards": shards})
    return load_targets(directory, rows, parts, kept)


def load_targets(directory: Path, rows: Sequence[Row], parts: dict[str, Any], kept: Kept) -> Targets:
    """Read a cache.

    Raises:
        UserError: it belongs to other weights, prefix, template, queries, K or positions.
    """
    manifest = json.loads(read_text(directory / "manifest.json"))
    for part, value in parts.items():
        if manifest["parts"].get(part) != value:
            raise UserError(
                f"{directory}: these targets were computed with other {part}"
                f" ({manifest['parts'].get(part)} there, {value} now)",
                "delete the folder to compute them again, or choose another --out",
            )
    examples: list[Example] = []
    starts: dict[str, int] = {}
    answers: dict[str, tuple[list[int], int]] = {}
    stored: dict[Keep, list[dict[str, Tensor]]] = {}
    for name, (kind, part) in zip(manifest["shards"], _shards(rows, kept), strict=True):
        shard = load_file(directory / name)
        own = stored.setdefault(kind, []) if kind else []
        start = sum(len(next(iter(one.values()))) for one in own)
        for row, said, count in _told(part, shard):
            examples.append(row.example(said, count))
            answers[row.asked.key] = said, count
            starts[row.asked.key] = start
            start += count
        own.append({key: value for key, value in shard.items() if key not in ("said", "lengths", "counts")})
    for row in rows:
        if first := row.asked.aligned:
            examples.append(row.example(*answers[first]))
            starts[row.asked.key] = starts[first]
    joined = {kind: {key: torch.cat([o[key] for o in own]) for key in own[0]} for kind, own in stored.items()}
    return Targets(tuple(examples), starts, joined, {row.asked.role: kept(row.asked.role) for row in rows})


def weights_id(folder: Path) -> str:
    """A hash over the bytes of a folder's safetensors files: the identity of a model's weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _parts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], kept: Kept, weights: str) -> dict[str, Any]:
    """What the targets depend on, in the order in which a mismatch is explained."""
    prefixes = [(r.asked.prefix.said, r.asked.prefix.turn) if r.asked.prefix else None for r in rows]
    keeps = {role: kept(role) for role in dict.fromkeys(r.asked.role for r in rows)}
    own = {row.asked.positions for row in rows if row.labels is None}
    return {
        "weights": weights,
        "template": _hash(tokenizer.chat_template),
        "queries": _hash([row.student for row in rows]),
        "prefix": _hash(prefixes),
        "rendered ids": _hash([row.teacher for row in rows]),
        "K": _one_or_all(keep.k if keep else None for keep in keeps.values()),
        "kind of target": {role: asdict(keep) if keep else None for role, keep in keeps.items()},
        "positions": _one_or_all(sorted(own)),
    }


def _one_or_all(values: Iterable[int | None]) -> int | list[int | None] | None:
    """The one value that all share, or all of them."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _shards(rows: Sequence[Row], kept: Kept) -> Iterator[tuple[Keep | None, list[Row]]]:
    """Rows in groups that are stored together: neighbours with one kind of target, own answers and given apart. Rows
    that are aligned with others have nothing of their own."""

    def alike(row: Row) -> tuple[Keep | None, int]:
        return kept(row.asked.role), row.asked.positions if row.labels is None else 0

    for (kind, _), group in groupby((row for row in rows if not row.asked.aligned), key=alike):
        same = list(group)
        for start in range(0, len(same), SHARD):
            yield kind, same[start : start + SHARD]


def _ask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Mapping[Role, Teacher],
    rows: Sequence[Row],
    keep: Keep | None,
) -> dict[str, Tensor]:
    """A shard: what was said (of own answers), positions a row, and what is kept of the logits."""
    if rows[0].labels is None:
        assert keep is not None
        assert keep.layer is None  # its own answer comes from logits
        own = list(own_answers(model, tokenizer, rows, lambda logits_BV: keep.of(logits_BV, None)))
        stacked = [{name: torch.stack([one[name] for one in told]) for name in told[0]} for _, told in own]
        return _joined([said for said, _ in own], stacked)
    if keep is None:
        return {"said": torch.tensor([], dtype=torch.int32), "lengths": torch.zeros(len(rows), dtype=torch.int32)} | {
            "counts": torch.tensor([len(row.labels or ()) for row in rows], dtype=torch.int32)
        }
    device, found, own_words = next(model.parameters()).device, {}, partial(reader(keep.layer), model)
    for role in dict.fromkeys(row.asked.role for row in rows):
        places = [place for place, row in enumerate(rows) if row.asked.role == role]
        read = teachers.get(role, own_words)
        for index, logits_PV in given_answers(read, [rows[place] for place in places], device):
            labels_P = torch.tensor(rows[places[index]].labels, device=device)
            found[places[index]] = keep.of(logits_PV, labels_P)
    return _joined([[] for _ in rows], [found[place] for place in range(len(rows))])


def _joined(said: Sequence[Sequence[int]], tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        "said": torch.tensor([token for row in said for token in row], dtype=torch.int32),
        "lengths": torch.tensor([len(row) for row in said], dtype=torch.int32),
        "counts": torch.tensor([len(next(iter(one.values()))) for one in tensors], dtype=torch.int32),
        **{name: torch.cat([one[name] for one in tensors]) for name in tensors[0]},
    }


def _told(rows: Sequence[Row], shard: Mapping[str, Tensor]) -> Iterator[tuple[Row, list[int], int]]:
    """Each row of a shard, what the model said by itself, and the number of positions."""
    said = [piece.tolist() for piece in shard["said"].split(shard["lengths"].tolist())]
    yield from zip(rows, said, shard["counts"].tolist(), strict=True)
