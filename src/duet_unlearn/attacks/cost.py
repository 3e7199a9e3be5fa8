"""What an attack costs, counted where it is paid: in the model's forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

import torch
from torch import nn

from duet_unlearn.attacks.result import Cost
from duet_unlearn.models.lora import has_adapter

BACKWARD = 3
"""A backward pass costs two forward passes more."""


@dataclass
class Meter:
    """Counts as the work goes on."""

    tokens: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    def cost(self) -> Cost:
        """What was counted so far."""
        return Cost(self.tokens, self.seconds, self.peak_memory)


@contextmanager
def metered(subject: object) -> Iterator[Meter]:
    """Count what goes through a subject's models, and through copies that are made of them inside."""
    meter, started = Meter(), time.perf_counter()

    def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is not None:
            meter.tokens += given.shape[0] * given.shape[1] * (BACKWARD if torch.is_grad_enabled() else 1)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with ExitStack() as hooks:
        for model in models_of(subject):
            hooks.callback(model.register_forward_pre_hook(count, with_kwargs=True).remove)
        try:
            yield meter
        finally:
            meter.seconds = time.perf_counter() - started
            meter.peak_memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def models_of(subject: object) -> list[nn.Module]:
    """Every model in a subject, whatever it is built of; of one with adapters the model inside, which merging keeps."""
    found: dict[int, nn.Module] = {}

    def walk(part: object) -> None:
        if isinstance(part, nn.Module):
            inner = cast("Any", part).get_base_model() if has_adapter(part) else part
            found[id(inner)] = inner
        elif is_dataclass(part) and not isinstance(part, type):
            for one in fields(part):
                walk(getattr(part, one.name))

    walk(subject)
    return list(found.values())
