"""Seconds and peak bytes of named phases, and of the inside of a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from duet_unlearn.training.loop import peak_memory

OPTIMISER = "optimiser"
T = TypeVar("T")


def wait() -> None:
    """Until the device has done what it was told; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Seconds(NamedTuple):
    wall: float
    processor: float
    """Of this process, all threads together: what a busy machine stretches little."""


def timed(work: Callable[[], T], seconds: list[Seconds]) -> T:
    """What `work` gives; its time is put behind the others."""
    wait()
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    wait()
    seconds.append(Seconds(time.perf_counter() - wall, time.process_time() - processor))
    return result


def spread(values: Iterable[float]) -> dict[str, float]:
    """The middle, the lowest and the highest."""
    found = list(values)
    return {"median": median(found), "low": min(found), "high": max(found)}


@dataclass
class Clock:
    """Wall-clock seconds of each phase, and the peak up to its end."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wait()
        start = time.perf_counter()
        yield
        wait()
        self.seconds[name] = time.perf_counter() - start
        self.peak_bytes[name] = peak_memory()


@dataclass
class Marks:
    """Where a step's time goes: every event ends a stretch, and names it.

    Hooks on the model, on gradients and on the optimiser give the events, so that a contender's own code stays as it
    is. On CUDA every event waits for the device, so the steps that are watched are never those that are timed. The
    first step, in which the optimiser makes its state, is left out.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    last: float = 0.0
    optimiser_steps: int = 0

    def at(self, name: str) -> None:
        """The stretch since the last event was `name`."""
        wait()
        now = time.perf_counter()
        if self.optimiser_steps:
            self.seconds[name] += now - self.last
        self.last = now
        self.optimiser_steps += name == OPTIMISER

    def hook(self, name: str) -> Callable[..., None]:
        return lambda *_: self.at(name)

    def per_step(self) -> dict[str, float]:
        return {name: seconds / (self.optimiser_steps - 1) for name, seconds in self.seconds.items()}


@contextmanager
def watch(student: nn.Module, marks: Marks, *, teacher: nn.Module | None = None) -> Iterator[None]:
    """Inside, training steps of `student` leave their marks.

    The embedding's weight is also the head's: what is left of its gradient after the body (a dense gradient of the
    rows that were read, and the sum of both) is the backward of the embedding.
    """
    head, embedding = student.get_output_embeddings(), student.get_input_embeddings()  # type: ignore[operator]
    handles = [
        student.register_forward_pre_hook(marks.hook("everything else")),
        embedding.register_forward_hook(lambda _m, _i, out: _on_gradient(out, marks, "backward of the body")),
        head.register_forward_pre_hook(lambda _m, inputs: _before_head(inputs[0], marks)),
        head.register_forward_hook(lambda _m, _i, out: _after_head(out, marks)),
        register_optimizer_step_pre_hook(marks.hook("scaling and clipping gradients")),
        register_optimizer_step_post_hook(marks.hook(OPTIMISER)),
    ]
    for p in student.parameters():
        if p.requires_grad:
            handles.append(p.register_post_accumulate_grad_hook(_accumulated(p, embedding.weight, marks)))
    if teacher is not None:
        handles += [
            teacher.register_forward_pre_hook(marks.hook("everything else")),
            teacher.register_forward_hook(marks.hook("teacher")),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _accumulated(p: nn.Parameter, embedding: Tensor, marks: Marks) -> Callable[[Tensor], None]:
    return marks.hook("backward of the embedding" if p is embedding else "backward of the body")


def _before_head(hidden: Tensor, marks: Marks) -> None:
    marks.at("forward of the body" if torch.is_grad_enabled() else "sampling")
    _on_gradient(hidden, marks, "backward of the head")


def _after_head(logits: Tensor, marks: Marks) -> None:
    marks.at("forward of the head" if torch.is_grad_enabled() else "sampling")
    _on_gradient(logits, marks, "loss")


def _on_gradient(tensor: Tensor, marks: Marks, name: str) -> None:
    if tensor.requires_grad:
        tensor.register_hook(marks.hook(name))
