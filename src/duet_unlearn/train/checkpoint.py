"""Checkpoints: safetensors for weights and optimiser, JSON for the rest, a rename at the end; never pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.data.files import atomic_folder


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. Only the last one is kept; a kill while saving leaves the one before."""

    folder: Path

    def save(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]) -> None:
        """Write trainable weights, optimiser and `state` (JSON) under a temporary name, then swap.

        Raises:
            UserError: disk full.
        """
        new = self.folder / f"step-{state['step']:07d}"
        with atomic_folder(new) as temporary:
            save_file(trainable(model), temporary / "weights.safetensors")
            for number, optimizer in enumerate(optimizers):
                save_file(_flatten(optimizer), temporary / f"optimizer-{number}.safetensors")
            (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for old in self.folder.glob("step-*"):
            if old != new:
                shutil.rmtree(old)

    def load(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any] | None:
        """Put the last checkpoint into model and optimisers, and return its state; None where there is none."""
        latest = self.latest()
        if latest is None:
            return None
        put_weights(model, load_file(latest / "weights.safetensors"))
        for number, optimizer in enumerate(optimizers):
            _unflatten(optimizer, load_file(latest / f"optimizer-{number}.safetensors"))
        return json.loads((latest / "state.json").read_text(encoding="utf-8"))

    def latest(self) -> Path | None:
        return max(self.folder.glob("step-*"), default=None)

    def step(self) -> int:
        """The step of the last checkpoint, 0 where there is none."""
        latest = self.latest()
        return int(latest.name.removeprefix("step-")) if latest else 0

    @property
    def best(self) -> Path:
        """Weights of the best validation so far, where early stopping is on."""
        return self.folder / "best.safetensors"

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into the parameters of the same names."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, row in state.items() for key, value in row.items()}


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
