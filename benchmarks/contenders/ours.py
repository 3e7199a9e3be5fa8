"""This library's own path: targets through the cache, then the product's training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from contenders.clock import Clock, Marks, watch
from contenders.setting import Setting, asked, train_config
from duet_unlearn.data.examples import collate, epochs_source
from duet_unlearn.methods.duet import Duet
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher.targets import CachedTargets, build_targets, rows_spec, weights_id
from duet_unlearn.training.loop import train


def run(setting: Setting, folder: Path, scratch: Path, *, watched: int) -> dict[str, Any]:
    """Load, build targets, train an epoch; then `watched` more steps to see where their time goes."""
    clock = Clock()
    with clock.phase("load"):
        model, tokenizer = load(setting, folder)
    with clock.phase("hash of the weights"):
        weights = weights_id(folder / "model")
    with clock.phase("targets"):
        targets = teach(setting, model, tokenizer, weights, scratch)
    with clock.phase("epoch"):
        losses = learn(setting, model, targets)
    marks = Marks()
    if watched:
        with watch(model, marks):
            learn(setting, model, targets, num_steps=watched)
    return {
        "seconds": clock.seconds,
        "peak_bytes": clock.peak_bytes,
        "losses": losses,
        "phases": marks.per_step(),
        "shape": shape(setting, targets),
    }


def load(setting: Setting, folder: Path) -> tuple[nn.Module, Any]:
    return load_model(str(folder / "model"), dtype=setting.dtype, device=torch.device(setting.device))


def teach(setting: Setting, model: nn.Module, tokenizer: Any, weights: str, scratch: Path) -> CachedTargets:
    """Ask the teacher, write the cache, read it back."""
    return build_targets(
        model, tokenizer, asked(setting), spec=rows_spec(setting.k), weights=weights, directory=scratch / "targets"
    )


def learn(setting: Setting, model: nn.Module, targets: CachedTargets, *, num_steps: int | None = None) -> list[float]:
    """The losses of an epoch, or of its first steps."""
    config = train_config(setting)
    source, every = epochs_source(targets.examples, batch_size=setting.batch, epochs=1, seed=setting.seed)
    logs = train(
        model,
        source=source,
        num_steps=every if num_steps is None else num_steps,
        loss=Duet(k=setting.k).loss,
        targets=targets.of_batch,
        config=config,
        pad_id=2,
    )
    return [log.loss for log in logs]


def shape(setting: Setting, targets: CachedTargets) -> dict[str, float]:
    """Means over an epoch's steps: what the operation counts need. Rows are padded to the batch's longest."""
    source, steps = epochs_source(targets.examples, batch_size=setting.batch, epochs=1, seed=setting.seed)
    sizes = [collate(source(step), 2).ids_BT.shape for step in range(steps)]
    return {
        "steps": steps,
        "rows": sum(rows for rows, _ in sizes) / steps,
        "student_tokens": sum(rows * width for rows, width in sizes) / steps,
        "teacher_tokens": sum(rows * (width + setting.prefix) for rows, width in sizes) / steps,
    }
