"""The training loop, for every method, for relearning and for the lab's pretraining: a generator of step logs.

The caller draws, logs or stops. Checkpoints are safetensors for weights and optimiser and JSON for the rest, renamed
into place at the end; never pickle.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Batch, Example, Role, Source, Totals, collate, items, totals
from duet_unlearn.data.files import atomic, atomic_folder
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import BlockIndex, reader
from duet_unlearn.runs import Run, add_timing
from duet_unlearn.teacher.targets import TeacherTargets
from duet_unlearn.training.optimizers import make_optimizers, rate_factor, set_rate, taken_gradients
from duet_unlearn.training.step import LossOut, Step


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
                rows = optimizer.state_dict()["state"].items()
                state_tensors = {f"{i}.{key}": torch.as_tensor(value) for i, row in rows for key, value in row.items()}
                save_file(state_tensors, temporary / f"optimizer-{number}.safetensors")
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


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


Loss = Callable[[Step], LossOut]
TargetsFn = Callable[[Batch], Mapping[Role, TeacherTargets]]
Gradients = Mapping[Role, Sequence[Tensor | None]]
"""Of each role, the gradient of each trained parameter."""
Combine = Callable[[Gradients], Sequence[Tensor | None]]
"""Makes one gradient of each role's own."""


@dataclass(frozen=True)
class StepLog:
    """What one optimiser step did."""

    step: int
    """From 1."""
    num_steps: int
    loss: float
    """Mean over the step's units."""
    grad_norm: float
    """Before clipping."""
    rate: float
    tokens: int
    """Tokens read, padding not counted."""
    seconds: float
    memory: int
    """Peak bytes so far: of the device on CUDA, of the process on a CPU."""
    validation: float | None = None
    """Mean loss on the validation examples, at the steps that validate."""


@dataclass
class TrainingProgress:
    """What a resumed run must know besides weights and optimiser."""

    step: int = 0
    best: float = float("inf")
    failures: int = 0


def train(
    model: nn.Module,
    *,
    source: Source,
    num_steps: int,
    loss: Loss,
    targets: TargetsFn | None,
    config: TrainConfig,
    pad_id: int,
    checkpoints: Checkpoints | None = None,
    validation: Sequence[Example] = (),
    validation_targets: TargetsFn | None = None,
    hidden_block: BlockIndex | None = None,
    combine: Combine | None = None,
    seed: int = 0,
) -> Iterator[StepLog]:
    """Train `model` in place, from the last checkpoint if there is one; `seed` draws dropout, where a model has it.

    With a `hidden_block` the loss reads the hidden states behind it in place of logits, and nothing above it runs. With
    `combine` each role's gradient is taken apart, and one is made of them.

    Micro-batches and processes share one count of units, so that neither changes the result beyond rounding. With
    ``config.early_stop`` the weights of the best validation are put back at the end.

    Raises:
        UserError: a loss or gradient that is not finite (before the step, naming the queries); disk full.
    """
    # Accelerate keeps one precision a process, and leaves it in the model's forward; autocast is the loop's own.
    accelerator = Accelerator(mixed_precision="no", cpu=next(model.parameters()).device.type == "cpu")
    run = _Run(
        accelerator, model, make_optimizers(model, config), loss, targets, config, pad_id, hidden_block, combine, seed
    )
    state = checkpoints.load(model, run.optimizers) if checkpoints else None
    progress = TrainingProgress(**state) if state else TrainingProgress()
    model.train()
    for step in range(progress.step, num_steps):
        if config.early_stop is not None and progress.failures >= config.early_stop:
            break
        log = run.step(step, num_steps, source(step))
        if validation and config.validate_every and log.step % config.validate_every == 0:
            log = replace(log, validation=run.validate(validation, validation_targets))
            _note(progress, log, model, checkpoints, config)
        progress.step = log.step
        yield log  # before its checkpoint: a kill between the two does the step again, and its log is never missing
        if checkpoints and config.checkpoint_every and log.step % config.checkpoint_every == 0:
            if accelerator.is_main_process:
                checkpoints.save(model, run.optimizers, vars(progress))
            accelerator.wait_for_everyone()
    if config.early_stop and checkpoints and checkpoints.best.exists():
        put_weights(model, load_file(checkpoints.best))
    model.eval()


@dataclass(eq=False)
class _Run:
    """One training run's moving parts."""

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss: Loss
    targets: TargetsFn | None
    config: TrainConfig
    pad_id: int
    hidden_block: BlockIndex | None
    combine: Combine | None
    seed: int

    def __post_init__(self) -> None:
        self.read = reader(self.hidden_block)
        self.wrapped = self.accelerator.prepare_model(self.model)

    def step(self, step: int, num_steps: int, examples: list[Example]) -> StepLog:
        start = time.perf_counter()
        set_rate(self.optimizers, rate_factor(step, num_steps, self.config))
        # Dropout depends on seed, step and process alone, so that a resumed run needs no state of the generator.
        torch.manual_seed(random.Random(f"{self.seed}/{step}/{self.accelerator.process_index}").getrandbits(63))
        sums = self._mean(examples) if self.combine is None else self._by_role(examples, self.combine)
        mean = float(sums[0] / sums[1])
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not (torch.isfinite(norm) and torch.isfinite(sums[0])):
            _stop_on_non_finite(step, examples)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return StepLog(
            step=step + 1,
            num_steps=num_steps,
            loss=mean,
            grad_norm=float(norm),
            rate=self.optimizers[0].param_groups[0]["lr"],
            tokens=int(sums[2]),
            seconds=time.perf_counter() - start,
            memory=peak_memory(),
        )

    def _mean(self, examples: list[Example]) -> Tensor:
        """Summed loss, count and tokens of a step; the gradient of the mean is left in the parameters."""
        sums = self._sum(examples, totals(examples))
        for parameter in self.model.parameters():
            if parameter.grad is not None:  # summed over this process, averaged over processes by DDP
                parameter.grad.mul_(self.accelerator.num_processes / float(sums[1]))
        return sums

    def _by_role(self, examples: list[Example], combine: Combine) -> Tensor:
        """The same, but with the gradient that is made of each role's own.

        The roles go through the model one after the other, so every row does so once, as ever.
        """
        whole, trained = totals(examples), [p for p in self.model.parameters() if p.requires_grad]
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        apart: dict[Role, list[Tensor | None]] = {}
        for role in whole.rows:
            sums = sums + self._sum([e for e in examples if e.role == role], whole)
            apart[role] = taken_gradients(trained)
        for parameter, gradient in zip(trained, combine(apart), strict=True):
            parameter.grad = gradient
        return sums

    def _sum(self, examples: list[Example], whole: Totals) -> Tensor:
        """Summed loss, count and tokens, over all processes."""
        mine = self._share(examples)
        own = self._gradients(mine, whole) if mine else self._join(items(examples)[0], whole)
        return self.accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=self.accelerator.device))

    def _share(self, examples: list[Example]) -> list[Example]:
        """This process's examples: every process gets others."""
        mine = items(examples)[self.accelerator.process_index :: self.accelerator.num_processes]
        return [example for item in mine for example in item]

    def _gradients(self, examples: list[Example], whole: Totals) -> tuple[float, int, int]:
        """Summed loss, count and tokens of the examples; gradients of the *sum* are left in the parameters."""
        total, count, tokens = 0.0, 0, 0
        micros = _micros(examples, self.config.micro_batch_size or len(examples))
        for number, micro in enumerate(micros):
            if number + 1 < len(micros):
                with self.accelerator.no_sync(self.wrapped):
                    out, batch = self._backward(micro, whole)
            else:
                out, batch = self._backward(micro, whole)
            total += float(out.sum.detach())
            count += out.count
            tokens += int(batch.mask_BT.sum())
        return total, count, tokens

    def _backward(self, micro: list[Example], whole: Totals) -> tuple[LossOut, Batch]:
        out, batch = self._forward(micro, whole, self.targets)
        out.sum.backward()  # not accelerate's: it divides by a number of micro-batches that its launcher may set
        return out, batch

    def _join(self, examples: list[Example], whole: Totals) -> tuple[float, int, int]:
        """A process that has no example of the step: it takes part in the averaging, and adds nothing."""
        out, _ = self._forward(examples, whole, self.targets)
        (0.0 * out.sum).backward()
        return 0.0, 0, 0

    def _forward(self, micro: list[Example], whole: Totals, targets: TargetsFn | None) -> tuple[LossOut, Batch]:
        """The model is read at the loss's positions and nowhere else."""
        device = self.accelerator.device
        batch = collate(micro, self.pad_id).to(device)
        where = (batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            read_N = self.read(self.model, *where, run=self.wrapped)
        return self.loss(Step(read_N, batch, targets(batch) if targets else {}, whole, self.seed)), batch

    @torch.no_grad()
    def validate(self, examples: Sequence[Example], targets: TargetsFn | None) -> float:
        """Mean loss on examples, without dropout or gradients."""
        self.model.eval()
        size = self.config.micro_batch_size or self.config.batch_size
        whole = totals(examples)
        outs = [self._forward(micro, whole, targets)[0] for micro in _micros(examples, size)]
        self.model.train()
        return sum(float(out.sum) for out in outs) / sum(out.count for out in outs)


def peak_memory() -> int:
    """Peak bytes since the last reset: of the CUDA device if one is in use, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Begin a new peak: on CUDA, or of this process, which Linux alone can put back."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _micros(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Micro-batches of about equally long rows; a pair counts once."""
    ordered = sorted(items(examples), key=lambda item: len(item[0].ids))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [[example for item in part for example in item] for part in parts]


def _note(
    progress: TrainingProgress, log: StepLog, model: nn.Module, checkpoints: Checkpoints | None, config: TrainConfig
) -> None:
    """Remember a validation, and the weights if they are the best so far."""
    assert log.validation is not None
    if log.validation < progress.best:
        progress.best, progress.failures = log.validation, 0
        if config.early_stop and checkpoints:
            atomic(checkpoints.best, lambda path: save_file(trainable(model), path))
    else:
        progress.failures += 1


def _stop_on_non_finite(step: int, examples: list[Example]) -> None:
    keys = ", ".join(example.key for example in examples[:5]) + (", .." if len(examples) > 5 else "")
    raise UserError(
        f"step {step + 1}: the loss or its gradient is not a finite number (queries {keys})",
        "lower train.rate, or look at those queries; the weights before this step are in the last checkpoint",
    )


@contextmanager
def timed(run: Run, phase: str) -> Iterator[None]:
    """Note seconds and peak memory of a run's phase."""
    start = time.perf_counter()
    reset_peak_memory()
    yield
    add_timing(run, phase, seconds=time.perf_counter() - start, peak_memory=peak_memory())
