"""The inner search of a min-max problem: which row of each pool an epoch meets, chosen on the student of then."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from duet_unlearn.data.examples import Example, Pick, collate, draw, pools
from duet_unlearn.data.files import atomic_write_json, read_text
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.teacher.ask import SIZE
from duet_unlearn.teacher.decoding import evaluating
from duet_unlearn.tensors import batches, sum_by_row, token_logps

Scores = Callable[[Sequence[Example]], Sequence[float]]
"""How strong each row is."""


def picker(examples: Sequence[Example], *, scores: Scores, folder: Path, seed: int) -> Pick:
    """Of each pool the row whose forbidden continuation scores highest (of equals the first); where rows have none, one
    that is drawn.

    What is chosen depends on the student at an epoch's first step, so it is written to `folder` then, and read from
    there by a run that goes on.
    """
    rows = pools(examples)
    searched = {name: found for name, same in rows.items() if (found := [e for e in same if e.forbidden])}
    others = {name: same for name, same in rows.items() if name not in searched}

    def pick(epoch: int) -> frozenset[str]:
        path = folder / f"epoch-{epoch:04d}.json"
        with PartialState().main_process_first():  # the others read what it chose
            if not path.exists():
                atomic_write_json(path, draw(others, epoch=epoch, seed=seed) | _highest(searched, scores))
        return frozenset(json.loads(read_text(path)).values())

    return pick


def _highest(rows: dict[str, list[Example]], scores: Scores) -> dict[str, str]:
    """Pool -> the key of its highest row."""
    every = [example for same in rows.values() for example in same]
    scored = dict(zip((example.key for example in every), scores(every), strict=True))
    return {name: max(same, key=lambda example: scored[example.key]).key for name, same in rows.items()}


def forbidden_logps(model: nn.Module, examples: Sequence[Example], *, precision: str, pad_id: int) -> list[float]:
    """Mean log-probability, in nats, of each row's forbidden tokens behind its first position."""
    rows, found = [_continued(example) for example in examples], [0.0] * len(examples)
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with evaluating(model), autocast:
        for indices in batches([len(row.ids) for row in rows], batch_size=SIZE):
            batch = collate([rows[index] for index in indices], pad_id).to(device)
            assert batch.labels_N is not None
            logits_NV = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
            sums_B = sum_by_row(token_logps(logits_NV, batch.labels_N), batch.rows_N, len(indices))
            for index, value in zip(indices, sums_B.tolist(), strict=True):
                found[index] = value / len(rows[index].positions)
    return found


def _continued(example: Example) -> Example:
    """The row up to its first position, and behind it what is forbidden, as its labels."""
    start, labels = example.positions[0], example.forbidden
    ids = (*example.ids[: start + 1], *labels[:-1])
    return replace(example, ids=ids, positions=tuple(range(start, start + len(labels))), labels=labels)
