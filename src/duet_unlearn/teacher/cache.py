"""The target cache: the teacher is asked once, and its logits are read from disk ever after.

On disk a cache is safetensors shards and a manifest that is written last. The manifest names everything that the
targets depend on, part by part, so that a mismatch can say which part differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.data.examples import Batch, Example
from duet_unlearn.data.files import atomic, atomic_write_json, read_text
from duet_unlearn.data.prompts import Prefix, render
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.teacher.decode import end_ids
from duet_unlearn.teacher.signals import Dense, Signal
from duet_unlearn.tensors import TopK, logits_at, pad, topk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["forget", "retain"]
SHARD = 256
"""Queries in a shard: at K = 1000 a shard is 3 MB a position."""
TOKENS = 16_384
"""Tokens, padding included, that the teacher reads at once."""


@dataclass(frozen=True)
class Asked:
    """One query as teacher and student meet it: they differ by the prefix and nothing else."""

    query: Query
    prefix: Prefix | None
    role: Role

    @property
    def key(self) -> str:
        return f"{self.role}/{self.query.id}"


@dataclass(frozen=True)
class Targets:
    """The teacher's logits for every query: `examples` are the student's side, `signal` the teacher's."""

    examples: tuple[Example, ...]
    starts: dict[str, int]
    """Key of an example -> index of its first position among all P positions."""
    ids_PK: Tensor | None
    """None where `logits` is dense."""
    logits_PK: Tensor

    def signal(self, batch: Batch) -> Signal:
        """The teacher's words at the batch's N positions, on the batch's device."""
        index = torch.tensor(
            [self.starts[e.key] + n for e in batch.examples for n in range(len(e.positions))], dtype=torch.long
        )
        device = batch.ids_BT.device
        logits = self.logits_PK[index].to(device)
        if self.ids_PK is None:
            return Dense(logits)
        return TopK(self.ids_PK[index].long().to(device), logits)


def build_targets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    *,
    k: int | None,
    positions: int,
    weights: str,
    directory: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Targets:
    """Ask the teacher, or read what it said before.

    The first `positions` logits of the teacher's own greedy answer are kept: its `k` largest in fp32, or the whole
    row in fp16 where `k` is None. The student's row is its own prompt and the teacher's tokens behind it, so both are
    aligned from the answer.

    Raises:
        UserError: `k` exceeds the vocabulary; a query stands twice; `directory` holds targets of something else.
    """
    prompts = _prompts(tokenizer, asked)
    parts = _parts(tokenizer, asked, prompts, k=k, positions=positions, weights=weights)
    if not (directory / "manifest.json").exists():
        shards, done = [], 0
        for start in range(0, len(asked), SHARD):
            part = slice(start, start + SHARD)
            name = f"{len(shards):05d}.safetensors"
            rows = _ask(model, tokenizer, asked[part], [p[1] for p in prompts[part]], k=k, positions=positions)
            tensors = _shard([p[0] for p in prompts[part]], list(rows), k)
            atomic(directory / name, lambda path, tensors=tensors: save_file(tensors, path))
            shards.append(name)
            done += len(asked[part])
            on_progress(done, len(asked))
        atomic_write_json(directory / "manifest.json", {"parts": parts, "shards": shards})
    return load_targets(directory, asked, parts)


def load_targets(directory: Path, asked: Sequence[Asked], parts: dict[str, Any]) -> Targets:
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
    shards = [load_file(directory / name) for name in manifest["shards"]]
    examples, starts, start = [], {}, 0
    rows = (row for shard in shards for row in _rows(shard))
    for one, (ids, prompt, count) in zip(asked, rows, strict=True):
        positions = tuple(range(prompt - 1, prompt - 1 + count))
        labels = None
        examples.append(Example(tuple(ids), positions, labels, one.role, one.key))
        starts[one.key] = start
        start += count
    ids_PK = torch.cat([shard["topk_ids"] for shard in shards]) if "topk_ids" in shards[0] else None
    return Targets(tuple(examples), starts, ids_PK, torch.cat([shard["logits"] for shard in shards]))


def weights_id(folder: Path) -> str:
    """A hash over the bytes of a folder's safetensors files: the identity of a model's weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _prompts(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked]) -> list[tuple[list[int], list[int]]]:
    """(student's ids, teacher's ids) of every query."""
    keys = [one.key for one in asked]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise UserError(f"the query {key} stands twice", "give every query an id of its own")
    return [
        (
            render(tokenizer, one.query.messages),
            render(tokenizer, one.query.messages, prefix=one.prefix),
        )
        for one in asked
    ]


def _parts(
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    prompts: list[tuple[list[int], list[int]]],
    *,
    k: int | None,
    positions: int,
    weights: str,
) -> dict[str, Any]:
    """What the targets depend on, in the order in which a mismatch is explained."""
    prefixes = [(one.prefix.said, one.prefix.turn) if one.prefix else None for one in asked]
    return {
        "weights": weights,
        "template": _hash(tokenizer.chat_template),
        "queries": _hash([student for student, _ in prompts]),
        "prefix": _hash(prefixes),
        "rendered ids": _hash([teacher for _, teacher in prompts]),
        "K": k,
        "positions": positions,
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _ask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    prompts: list[list[int]],
    *,
    k: int | None,
    positions: int,
) -> Iterator[tuple[list[int], list[Tensor], list[Tensor]]]:
    """Per query: the teacher's greedy tokens (one fewer than positions), and the ids and logits kept at each
    position."""
    results: dict[int, tuple[list[int], list[Tensor], list[Tensor]]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest, ends = max(map(len, prompts)) + positions, end_ids(model, tokenizer)
    size = max(1, TOKENS // longest)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            for i in chunk:
                results[i] = ([], [], [])
            live = chunk
            for place in range(positions):
                logits_BV = _next_logits(model, [prompts[i] + results[i][0] for i in live])
                kept = topk(logits_BV, k) if k else None
                for b, i in enumerate(live):
                    tokens, ids, logits = results[i]
                    if kept:
                        ids.append(kept.ids_NK[b].int().cpu())
                    logits.append(kept.logits_NK[b].float().cpu() if kept else logits_BV[b].half().cpu())
                    if place + 1 < positions:
                        tokens.append(int(logits_BV[b].argmax()))
                live = [i for i in live if not results[i][0] or results[i][0][-1] not in ends]
                if not live:
                    break
    model.train(was_training)
    for i in range(len(prompts)):
        tokens, ids, logits = results[i]
        yield tokens[: len(logits) - 1], ids, logits


def _next_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """(B, V) logits behind the last token of each row."""
    device = next(model.parameters()).device
    padded = pad(rows, 0, side="right")
    cols_B = torch.tensor([len(row) - 1 for row in rows], device=device)
    rows_B = torch.arange(len(rows), device=device)
    return logits_at(model, padded.ids_BT.to(device), padded.mask_BT.to(device), rows_B, cols_B)


def _shard(
    prompts: list[list[int]], rows: list[tuple[list[int], list[Tensor], list[Tensor]]], k: int | None
) -> dict[str, Tensor]:
    ids = [prompt + tokens for prompt, (tokens, _, _) in zip(prompts, rows, strict=True)]
    tensors = {
        "ids": torch.tensor([token for row in ids for token in row], dtype=torch.int32),
        "lengths": torch.tensor([len(row) for row in ids], dtype=torch.int32),
        "prompts": torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32),
        "counts": torch.tensor([len(logits) for _, _, logits in rows], dtype=torch.int32),
        "logits": torch.stack([row for _, _, logits in rows for row in logits]),
    }
    if k:
        tensors["topk_ids"] = torch.stack([row for _, kept, _ in rows for row in kept])
    return tensors


def _rows(shard: dict[str, Tensor]) -> Iterator[tuple[list[int], int, int]]:
    """(student's ids, prompt length, number of positions) of each query of a shard."""
    pieces = shard["ids"].split(shard["lengths"].tolist())
    for piece, prompt, count in zip(pieces, shard["prompts"].tolist(), shard["counts"].tolist(), strict=True):
        yield piece.tolist(), prompt, count
