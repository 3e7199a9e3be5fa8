"""What the frozen model says at the positions that a loss reads: asked once and cached on disk, or asked at every step.

A method declares by a ``TargetSpec`` what of the frozen model's logits (or hidden states) it reads on the rows of a
role. On disk a cache is safetensors shards and a manifest that is written last. The manifest names everything that
the targets depend on, part by part, so that a mismatch can say which part differs.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.data.examples import Batch, Example, Role, render_examples
from duet_unlearn.data.files import atomic, atomic_write_json, read_text
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import BlockIndex, logits_at, reader
from duet_unlearn.teacher.decoding import end_ids
from duet_unlearn.tensors import TopK, check_k, gather, pad, token_logps, topk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Dense(NamedTuple):
    """The whole row of logits at N positions."""

    logits_NV: Tensor


class Logps(NamedTuple):
    """The log-probability of the token that stands behind each of N positions, in nats: a reference's."""

    logps_N: Tensor


class TopLogps(NamedTuple):
    """The K largest log-probabilities at N positions, in falling order, and that of the token that stands behind each
    position, whatever its rank; in nats, over the whole vocabulary."""

    ids_NK: Tensor
    logps_NK: Tensor
    label_logps_N: Tensor


class Hidden(NamedTuple):
    """The hidden states behind a block at N positions."""

    hidden_ND: Tensor


TeacherTargets = TopK | Dense | Logps | TopLogps | Hidden
"""What a loss reads; it cannot tell a live model from a cached one."""


@dataclass(frozen=True)
class TargetSpec:
    """What is kept of a frozen model's row of logits, or of its hidden states."""

    kind: Literal["topk", "dense", "logps", "top-logps", "hidden", "live"]
    """``topk``: the `k` largest, in fp32. ``dense``: all, in fp16. ``logps``: the log-probability of the label, in
    fp32. ``top-logps``: the `k` largest log-probabilities and the label's, in fp32. ``hidden``: the
    hidden state behind the block `layer`, in fp32. ``live``: all, and nothing is stored: a frozen copy of the model is
    asked at every step."""
    k: int | None = None
    layer: BlockIndex | None = None
    """None: logits are read."""

    def check(self, vocabulary: int) -> None:
        """Raises UserError: `k` exceeds the vocabulary."""
        if self.kind in ("topk", "top-logps"):
            check_k(self.k, vocabulary)

    def size(self, vocabulary: int, hidden: int) -> int:
        """Bytes that are stored of a position; `hidden`: the width of a hidden state."""
        kept = self.k or vocabulary
        stored = {"topk": 8 * kept, "dense": 2 * vocabulary, "logps": 4, "top-logps": 8 * kept + 4, "live": 0}
        return (stored | {"hidden": 4 * hidden})[self.kind]

    def stored(self, logits_NV: Tensor, labels_N: Tensor | None) -> dict[str, Tensor]:
        """The tensors that are stored, on the CPU; what is live stays where it is. Of a layer, `logits_NV` are its (N,
        D) hidden states."""
        if self.kind == "live":
            return {"logits": logits_NV}
        if self.kind == "hidden":
            return {"hidden": logits_NV.float().cpu()}
        if self.kind == "dense":
            return {"logits": logits_NV.half().cpu()}
        if self.kind == "logps":
            assert labels_N is not None
            return {"logps": token_logps(logits_NV, labels_N).cpu()}
        if self.kind == "top-logps":
            assert labels_N is not None
            logps_NV = logits_NV.float().log_softmax(-1)
            best, label_logps_N1 = topk(logps_NV, self.k), gather(logps_NV, labels_N[:, None])
            kept = {"logps": best.logits_NK, "topk_ids": best.ids_NK.int(), "label_logps": label_logps_N1.squeeze(-1)}
            return {name: values.cpu() for name, values in kept.items()}
        kept = topk(logits_NV, self.k)
        return {"logits": kept.logits_NK.float().cpu(), "topk_ids": kept.ids_NK.int().cpu()}

    def targets(self, stored: dict[str, Tensor]) -> TeacherTargets:
        """The stored tensors as a loss reads them."""
        if self.kind == "logps":
            return Logps(stored["logps"])
        if self.kind == "hidden":
            return Hidden(stored["hidden"])
        if self.kind in ("dense", "live"):
            return Dense(stored["logits"])
        ids_NK = stored["topk_ids"].long()
        if self.kind == "top-logps":
            return TopLogps(ids_NK, stored["logps"], stored["label_logps"])
        return TopK(ids_NK, stored["logits"])


def rows_spec(k: int | None) -> TargetSpec:
    """The `k` largest logits of each row; None keeps whole rows."""
    return TargetSpec("topk", k) if k else TargetSpec("dense")


TOKENS_AT_ONCE = 16_384
"""Tokens, padding included, that the model reads at once."""
ROWS_AT_ONCE = 32
"""Given answers that are read at once, at most: their logits, a row a token, are what takes memory."""
SHARD = 256
"""Queries in a shard: at K = 1000 a shard is 3 MB a position."""
LogitsFn = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(N, V) logits of rows (ids and mask) at named positions (row and column), as ``logits_at`` gives a model's; or what
is read in their place."""
SpecOf = Callable[[Role], TargetSpec | None]
"""What is kept of what the frozen model says on a role's rows; None: it is not asked."""


@dataclass(frozen=True)
class CachedTargets:
    """What the frozen model says to every row: `examples` are the student's side."""

    examples: tuple[Example, ...]
    starts: Mapping[str, int]
    """Key of an example -> index of its first position among all positions of its kind of target."""
    stored: Mapping[TargetSpec, Mapping[str, Tensor]]
    specs: Mapping[Role, TargetSpec | None] = field(default_factory=dict)

    def of(self, examples: Sequence[Example], device: torch.device | None = None) -> TeacherTargets:
        """The targets at the N positions of examples that share one kind of target."""
        spec = self.specs[examples[0].role]
        assert spec is not None
        index = torch.tensor(
            [self.starts[e.key] + n for e in examples for n in range(len(e.positions))], dtype=torch.long
        )
        return spec.targets({name: stored[index].to(device) for name, stored in self.stored[spec].items()})

    def of_batch(self, batch: Batch) -> dict[Role, TeacherTargets]:
        """The targets of each role's rows of a batch, on its device."""
        roles = {e.role for e in batch.examples if self.specs.get(e.role)}
        device = batch.ids_BT.device
        return {role: self.of([e for e in batch.examples if e.role == role], device) for role in roles}


def build_targets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    spec: TargetSpec | SpecOf,
    weights: str,
    directory: Path,
    logits_fns: Mapping[Role, LogitsFn] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CachedTargets:
    """Ask the frozen model, or read what it said before.

    Args:
        examples: as a method built them; they are given token ids here.
        weights: identity of the frozen model, for the cache's key.
        logits_fns: the logits on given answers of the roles where they are not the model's own.

    Raises:
        UserError: K exceeds the vocabulary; a query stands twice; `directory` holds targets of something else.
    """
    spec_of: SpecOf = (lambda role: spec) if isinstance(spec, TargetSpec) else spec
    rows = render_examples(tokenizer, examples)
    parts = _cache_fingerprint(tokenizer, rows, spec_of, weights)
    if not (directory / "manifest.json").exists():
        shards, done, was_training = [], 0, model.training
        total = sum(not row.target_key for row in rows)
        model.eval()
        for kind, part in _shards(rows, spec_of):
            name = f"{len(shards):05d}.safetensors"
            with torch.no_grad():
                tensors = _ask_shard(model, tokenizer, logits_fns or {}, part, kind)
            atomic(directory / name, lambda path, tensors=tensors: save_file(tensors, path))
            shards.append(name)
            done += len(part)
            on_progress(done, total)
        model.train(was_training)
        # Last, so that a cache whose building was interrupted is not taken for a whole one.
        atomic_write_json(directory / "manifest.json", {"parts": parts, "shards": shards})
    return load_targets(directory, rows, parts, spec_of)


def load_targets(directory: Path, rows: Sequence[Example], parts: dict[str, Any], spec_of: SpecOf) -> CachedTargets:
    """Read a cache about rows that have their token ids.

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
    stored: dict[TargetSpec, list[dict[str, Tensor]]] = {}
    for name, (kind, part) in zip(manifest["shards"], _shards(rows, spec_of), strict=True):
        shard = load_file(directory / name)
        own = stored.setdefault(kind, []) if kind else []
        start = sum(len(next(iter(one.values()))) for one in own)
        # The files call the response tokens `said`, and keep that name.
        responses = [piece.tolist() for piece in shard["said"].split(shard["lengths"].tolist())]
        for row, response, count in zip(part, responses, shard["counts"].tolist(), strict=True):
            examples.append(row.with_response(response, count))
            answers[row.key] = response, count
            starts[row.key] = start
            start += count
        own.append({key: value for key, value in shard.items() if key not in ("said", "lengths", "counts")})
    for row in rows:
        if row.target_key:
            examples.append(row.with_response(*answers[row.target_key]))
            starts[row.key] = starts[row.target_key]
    joined = {kind: {key: torch.cat([o[key] for o in own]) for key in own[0]} for kind, own in stored.items()}
    return CachedTargets(tuple(examples), starts, joined, {row.role: spec_of(row.role) for row in rows})


def weights_id(folder: Path) -> str:
    """A hash over the bytes of a folder's safetensors files: the identity of a model's weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _cache_fingerprint(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], spec_of: SpecOf, weights: str
) -> dict[str, Any]:
    """What the targets depend on, in the order in which a mismatch is explained."""
    prefixes = [(row.prefix.instruction, row.prefix.turn) if row.prefix else None for row in rows]
    specs = {role: spec_of(role) for role in dict.fromkeys(row.role for row in rows)}
    own = {row.num_positions for row in rows if row.labels is None}
    return {
        "weights": weights,
        "template": _hash(tokenizer.chat_template),
        "queries": _hash([row.ids for row in rows]),
        "prefix": _hash(prefixes),
        "rendered ids": _hash([row.teacher_ids for row in rows]),
        "K": _one_or_all(spec.k if spec else None for spec in specs.values()),
        "kind of target": {role: asdict(spec) if spec else None for role, spec in specs.items()},
        "positions": _one_or_all(sorted(own)),
    }


def _one_or_all(values: Iterable[int | None]) -> int | list[int | None] | None:
    """The one value that all share, or all of them."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _shards(rows: Sequence[Example], spec_of: SpecOf) -> Iterator[tuple[TargetSpec | None, list[Example]]]:
    """Rows in groups that are stored together: neighbours with one kind of target, own answers and given apart. Rows
    whose target is another's have nothing of their own."""

    def alike(row: Example) -> tuple[TargetSpec | None, int]:
        return spec_of(row.role), row.num_positions if row.labels is None else 0

    for (kind, _), group in groupby((row for row in rows if not row.target_key), key=alike):
        same = list(group)
        for start in range(0, len(same), SHARD):
            yield kind, same[start : start + SHARD]


def _ask_shard(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    logits_fns: Mapping[Role, LogitsFn],
    rows: Sequence[Example],
    spec: TargetSpec | None,
) -> dict[str, Tensor]:
    """A shard: the responses (of own answers), positions a row, and what is kept of the logits."""
    if rows[0].labels is None:
        assert spec is not None
        assert spec.layer is None  # the model's own answer comes from logits
        own = list(_own_answers(model, tokenizer, rows, lambda logits_BV: spec.stored(logits_BV, None)))
        stacked = [{name: torch.stack([one[name] for one in kept]) for name in kept[0]} for _, kept in own]
        return _joined([response for response, _ in own], stacked)
    if spec is None:
        return {"said": torch.tensor([], dtype=torch.int32), "lengths": torch.zeros(len(rows), dtype=torch.int32)} | {
            "counts": torch.tensor([len(row.positions) for row in rows], dtype=torch.int32)
        }
    device, found, own_logits = next(model.parameters()).device, {}, partial(reader(spec.layer), model)
    for role in dict.fromkeys(row.role for row in rows):
        places = [place for place, row in enumerate(rows) if row.role == role]
        read = logits_fns.get(role, own_logits)
        for index, logits_PV in _given_answers(read, [rows[place] for place in places], device):
            labels_P = torch.tensor(rows[places[index]].labels, device=device)
            found[places[index]] = spec.stored(logits_PV, labels_P)
    return _joined([[] for _ in rows], [found[place] for place in range(len(rows))])


def _joined(responses: Sequence[Sequence[int]], tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        "said": torch.tensor([token for row in responses for token in row], dtype=torch.int32),
        "lengths": torch.tensor([len(row) for row in responses], dtype=torch.int32),
        "counts": torch.tensor([len(next(iter(one.values()))) for one in tensors], dtype=torch.int32),
        **{name: torch.cat([one[name] for one in tensors]) for name in tensors[0]},
    }


def _own_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    select: Callable[[Tensor], dict[str, Tensor]],
) -> Iterator[tuple[list[int], list[dict[str, Tensor]]]]:
    """Per row, the model's own greedy tokens (one fewer than positions, which all rows share), and what `select`
    keeps of its (B, V) logits at each position."""
    prompts, positions = [list(row.teacher_ids) for row in rows], rows[0].num_positions
    results: dict[int, tuple[list[int], list[dict[str, Tensor]]]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest, eos_ids = max(map(len, prompts)) + positions, end_ids(model, tokenizer)
    size = max(1, TOKENS_AT_ONCE // longest)
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        for i in chunk:
            results[i] = ([], [])
        live = chunk
        for place in range(positions):
            logits_BV = _next_logits(model, [prompts[i] + results[i][0] for i in live])
            stored = select(logits_BV)
            for b, i in enumerate(live):
                tokens, kept = results[i]
                kept.append({name: values[b] for name, values in stored.items()})
                if place + 1 < positions:
                    tokens.append(int(logits_BV[b].argmax()))
            live = [i for i in live if not results[i][0] or results[i][0][-1] not in eos_ids]
            if not live:
                break
    for i in range(len(prompts)):
        tokens, kept = results[i]
        yield tokens[: len(kept) - 1], kept


def _given_answers(logits_fn: LogitsFn, rows: Sequence[Example], device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Index of each row, and (P, V) logits at its positions."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].teacher_ids))
    start = 0
    while start < len(order):
        size = max(1, TOKENS_AT_ONCE // len(rows[order[min(start + ROWS_AT_ONCE, len(order)) - 1]].teacher_ids))
        chunk = order[start : start + min(size, ROWS_AT_ONCE)]
        start += len(chunk)
        padded = pad([rows[i].teacher_ids for i in chunk], 0, side="right")
        places = []
        for b, i in enumerate(chunk):
            # Both rows end alike, so a position lies as far from the end of the teacher's as of the student's.
            shift = len(rows[i].teacher_ids) - len(rows[i].ids)
            places += [(b, column + shift) for column in rows[i].positions]
        rows_N, cols_N = torch.tensor(places, device=device).unbind(-1)
        logits_NV = logits_fn(padded.ids_BT.to(device), padded.mask_BT.to(device), rows_N, cols_N)
        yield from zip(chunk, logits_NV.split([len(rows[i].positions) for i in chunk]), strict=True)


def _next_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """(B, V) logits behind the last token of each row."""
    device = next(model.parameters()).device
    padded = pad(rows, 0, side="right")
    cols_B = torch.tensor([len(row) - 1 for row in rows], device=device)
    rows_B = torch.arange(len(rows), device=device)
    return logits_at(model, padded.ids_BT.to(device), padded.mask_BT.to(device), rows_B, cols_B)


@dataclass(frozen=True)
class LiveTargets:
    """Targets of a batch: of some roles by asking the frozen model at every step, of the others from the cache."""

    frozen: nn.Module
    spec_of: SpecOf
    cached: Callable[[Batch], Mapping[Role, TeacherTargets]]

    def __call__(self, batch: Batch) -> dict[Role, TeacherTargets]:
        """What it says on each role's rows. The rows are the student's: a live teacher is shown no prefix."""
        found = dict(self.cached(batch))
        with torch.no_grad():
            logits_NV = logits_at(self.frozen, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
        roles = [example.role for example in batch.examples for _ in example.positions]
        for role in dict.fromkeys(roles):
            if (spec := self.spec_of(role)) and spec.kind == "live":
                index_N = torch.tensor([n for n, one in enumerate(roles) if one == role], device=logits_NV.device)
                found[role] = spec.targets(spec.stored(logits_NV[index_N], None))
        return found


def is_live(spec_of: SpecOf) -> bool:
    """Whether any role's rows are asked at every step."""
    return any((spec := spec_of(role)) and spec.kind == "live" for role in get_args(Role))


def stored_only(spec_of: SpecOf) -> SpecOf:
    """What the cache is to hold: nothing of what is asked at every step."""

    def stored(role: Role) -> TargetSpec | None:
        spec = spec_of(role)
        return None if spec and spec.kind == "live" else spec

    return stored


def targets_fn(
    model: nn.Module, spec_of: SpecOf, targets: CachedTargets
) -> Callable[[Batch], Mapping[Role, TeacherTargets]]:
    """The targets of a training run; where any is live, of a frozen copy of the model as it is now."""
    if not is_live(spec_of):
        return targets.of_batch
    return LiveTargets(copy.deepcopy(model).requires_grad_(False).eval(), spec_of, targets.of_batch)
