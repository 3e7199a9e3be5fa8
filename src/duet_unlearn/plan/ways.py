"""What training a model takes, from its config.json alone: the ways of training in one table, with memory, disk and
time of each, and which of them this machine can do. ``walk`` finds the numbers of a step, this chapter what they are
compared with."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.errors import UserError, nearest
from duet_unlearn.models.load import default_device, find_on_hub
from duet_unlearn.plan.walk import (
    TeacherCost,
    TrainingCost,
    Workload,
    rows_of_epoch,
    target_bytes,
    walk_teacher,
    walk_training,
)
from duet_unlearn.training.loop import peak_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from duet_unlearn.config.recipe import AnyMethod

PACKED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes of a packed weight. NF4: 4 bits, 8 for the scale of 64 weights and 32 for that of 256 scales (double
quantisation, arXiv 2305.14314, section 3); int8: a byte, and scales of whole rows, which are few."""
HOLES = (
    "on a CPU, glibc's malloc keeps holes between tensors: up to as much again as the activations; with"
    " MALLOC_MMAP_THRESHOLD_=131072 in the environment it keeps none"
)


MODES = (
    ("full, fp32", "float32", "fp32", False, None),
    ("full, bf16 autocast", "float32", "bf16", False, None),
    ("full, bf16 weights", "bfloat16", "fp32", False, None),
    ("LoRA, fp32", "float32", "fp32", True, None),
    ("LoRA, bf16 weights", "bfloat16", "fp32", True, None),
    ("QLoRA, nf4 weights", "bfloat16", "fp32", True, "nf4"),
)
"""The usual ways: name, `model.dtype`, `train.precision`, whether adapters are trained, `model.quantise`."""


@dataclass(frozen=True)
class ModeCost:
    """What one way of training takes. Sizes are bytes."""

    name: str
    chosen: bool
    """Whether it is the recipe's own."""
    trained: int
    """Parameters that are trained."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    training: int
    """Peak of an optimiser step: at most the sum of the four before, each of which is its own maximum."""
    asking: int
    """Peak while the teacher makes the targets."""
    peak: int
    """The higher of the two."""
    checkpoint: int
    """On disk; twice that for a moment, when one replaces the one before."""
    student: int
    """On disk: the whole model, or the adapter."""
    flops: float
    """Operations of making the targets once and of all steps."""
    seconds: float
    """At the machine's rate for the type of arithmetic."""
    fits: bool
    """Whether the peak, with the imports, is within the machine's memory."""


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters; a head that is tied to the embedding counts once."""

    total: int
    active: int
    """Those that one token meets: of a mixture of experts, the chosen experts' alone."""
    linear: int
    """In linear layers other than the head: what QLoRA quantises."""
    largest: int
    """In the largest of those layers."""


@dataclass(frozen=True)
class Machine:
    """What this machine has and can do."""

    device: str
    memory: int
    """Bytes: of the GPU, or of the machine or container."""
    imports: int
    """Bytes that Python and the libraries hold before a model is loaded; 0 on CUDA, where they are elsewhere."""
    rates: dict[str, float]
    """Operations a second in fp32 and bf16: of a large matrix product measured here, or as given."""
    measured: bool


@dataclass(frozen=True)
class Plan:
    """What `duet plan` prints, and with `--json` writes."""

    model: str
    architecture: str
    parameters: Counts
    settings: dict[str, Any]
    """What it was computed for."""
    steps: int
    targets: int
    """Bytes of the teacher's logits on disk."""
    machine: Machine
    rows: tuple[ModeCost, ...]
    refusal: str | None
    """Why rows with adapters are missing, where the architecture takes none."""


def make_plan(path: str, recipe: Recipe, load: Workload, *, rate: float | None = None) -> Plan:
    """Plan the training of a model folder, config.json or hub id with a recipe's settings, in every way.

    `rate` is operations a second; a matrix product is timed here where it is not given. No weights are read.

    Raises:
        UserError: a method that trains no model; no usable config; K above the vocabulary; adapters that do not fit.
    """
    method = recipe.method
    if not method.changes_weights:
        raise UserError(
            f"method {method.name}: the model is not trained, so there is no training to plan",
            "what it needs is the model itself, as for asking it",
        )
    machine, config = this_machine(rate), read_config(path)
    sizes = config.get_text_config()
    method.check_targets(sizes.vocab_size)
    counts = count(draw(path, config, dtype="float32"))
    # What is trained: the student, and a second model before it or in its place.
    trainings = method.trainings(recipe.train)
    steps = [train.epochs * -(-rows_of_epoch(one, load) // train.batch_size) for one, train in trainings]
    teachers: dict[tuple[str, bool], TeacherCost] = {}
    trained: dict[tuple[str, str, bool], list[TrainingCost]] = {}
    rows, refusal = [], None
    for name, way in _ways(recipe):
        dtype, adapters = way.model.dtype, way.model.lora is not None
        own = (dtype, adapters and "reinforced" in method.needs)
        if own not in teachers:
            teachers[own] = walk_teacher(draw(path, config, dtype=dtype), way, load)
        unpacked = (dtype, way.train.precision, adapters)  # ways that differ in what is packed alone are walked once
        if unpacked not in trained:
            each = [replace(way, method=cast("AnyMethod", m), train=t) for m, t in method.trainings(way.train)]
            try:
                trained[unpacked] = [walk_training(draw(path, config, dtype=dtype), one, load) for one in each]
            except UserError as error:
                if not adapters or recipe.model.lora:
                    raise
                refusal = error.message
                continue
        costs = trained[unpacked]
        flops = teachers[own].flops + sum(n * one.flops for n, one in zip(steps, costs, strict=True))
        dearest, asking = replace(max(costs, key=lambda one: one.peak), flops=flops), teachers[own].peak
        rows.append(_mode_cost(name, way, dearest, asking, counts, machine, chosen=way == recipe))
    # The student's settings; K and positions of a method that has them.
    (first, train), lora = trainings[0], recipe.model.lora or LoraConfig()
    names = ("epochs", "batch_size", "micro_batch_size", "gradient_checkpointing", "optimizer")
    settings = {name: getattr(train, name) for name in names} | {"method": first.name}
    settings |= {name: value for name, value in asdict(first).items() if name in ("k", "positions")}
    return Plan(
        model=path,
        architecture=str(config.model_type),
        parameters=counts,
        settings=settings | {"lora_rank": lora.rank, **asdict(load)},
        steps=steps[0],
        targets=target_bytes(method, load, sizes.vocab_size, sizes.hidden_size),
        machine=machine,
        rows=tuple(rows),
        refusal=refusal,
    )


def _ways(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """The usual ones, and the recipe's own where it is another; without adapters where the method takes none."""
    ways: list[tuple[str, Recipe]] = []
    for name, dtype, precision, adapters, quantise in MODES:
        if recipe.method.takes_adapters or not adapters:
            lora = (recipe.model.lora or LoraConfig()) if adapters else None
            model = replace(recipe.model, dtype=dtype, lora=lora, quantise=quantise)
            ways.append((name, replace(recipe, model=model, train=replace(recipe.train, precision=precision))))
    return ways if any(way == recipe for _, way in ways) else [*ways, ("the recipe's", recipe)]


def _mode_cost(
    name: str, way: Recipe, trained: TrainingCost, asking: int, counts: Counts, machine: Machine, *, chosen: bool
) -> ModeCost:
    """`trained`: the dearest of what is trained, with the operations of everything; `asking`: peak of the teacher."""
    model, lora = way.model, way.model.lora
    # Packing makes bf16 weights smaller; one matrix at a time is unpacked, for its product.
    saved = round(counts.linear * (2 - PACKED[model.quantise])) if model.quantise else 0
    unpacked = 2 * counts.largest if model.quantise else 0
    training, asking = trained.peak - saved + unpacked, asking - saved + unpacked
    half = way.train.precision == "bf16" or model.dtype == "bfloat16"
    whole, peak = counts.total * (4 if model.dtype == "float32" else 2), max(training, asking)
    return ModeCost(
        name=name,
        chosen=chosen,
        trained=trained.trained,
        weights=trained.weights - saved,
        gradients=trained.gradients,
        optimizer=trained.optimizer,
        activations=trained.activations + unpacked,
        training=training,
        asking=asking,
        peak=peak,
        checkpoint=trained.gradients + trained.optimizer if way.train.checkpoint_every else 0,
        student=trained.gradients if lora and lora.save == "adapter" else whole,
        flops=float(trained.flops),
        seconds=trained.flops / machine.rates["bf16" if half else "fp32"],
        fits=peak + machine.imports <= machine.memory,
    )


# The model ------------------------------------------------------------------------------------------------------------


def read_config(path: str) -> PreTrainedConfig:
    """The config of a model folder, a config.json, or a hub id; of the hub nothing but this file is fetched.

    Raises:
        UserError: no config, an unknown type, an adapter, no causal language model, settings that do not fit together.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

    place = Path(path).expanduser()
    if place.is_dir() and not (place / "config.json").exists():
        if (place / "adapter_config.json").exists():
            raise UserError(f"{path}: is an adapter", "plan its base model, which adapter_config.json names")
        raise UserError(f"{path}: is no model (it has no config.json)", "name a folder that holds config.json")
    if not place.exists() and (path.startswith((".", "/", "~")) or path.count("/") != 1 or path.endswith(".json")):
        raise UserError(f"{path}: no such folder or file", "name a model folder, a config.json, or a hub id: org/model")
    try:
        values, _ = PreTrainedConfig.get_config_dict(str(place) if place.exists() else find_on_hub(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: its config cannot be read ({_first(error)})", "it must be a JSON object") from error
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        close = nearest(str(kind), CONFIG_MAPPING) if kind else None
        problem = f"its config names an unknown model_type {kind!r}" if kind else "its config names no model_type"
        hint = f"did you mean {close}?" if close else "transformers must know the architecture without its code"
        raise UserError(f"{path}: {problem}", hint)
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # each architecture has its own checks, with exceptions of any type
        raise UserError(f"{path}: the config does not fit together ({_first(error)})", "check config.json") from error
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True)
    if config.is_encoder_decoder or masked or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{path}: {kind} is no causal language model",
            "name a decoder that writes text from left to right, such as Llama, Qwen, Gemma, Phi or GPT-2",
        )
    return config


def draw(path: str, config: PreTrainedConfig, *, dtype: str) -> PreTrainedModel:
    """The model on the meta device: shapes without data.

    Raises:
        UserError: sizes that make no model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except Exception as error:  # as above: whatever a wrong size trips over
        problem = f"{path}: no model can be built from this config ({_first(error)})"
        raise UserError(problem, "check config.json") from error


def count(model: PreTrainedModel) -> Counts:
    """Exact numbers; with experts, `num_experts_per_tok` of those that are stacked in one tensor are active."""
    from transformers.pytorch_utils import Conv1D

    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    total = active = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        active += size * chosen // parameter.shape[0] if chosen and ".experts." in name else size
    head = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    linear = [layer.weight.numel() for layer in layers]
    return Counts(total, active, sum(linear), max(linear, default=0))


def _first(error: Exception) -> str:
    """The first line of an error's text, or its type's name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# The machine ----------------------------------------------------------------------------------------------------------


def this_machine(rate: float | None) -> Machine:
    """The GPU, or the CPU where there is none; `rate` is operations a second, and where it is None it is measured."""
    if torch.cuda.is_available():
        memory, imports = torch.cuda.get_device_properties(0).total_memory, 0
    else:
        memory, imports = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), peak_memory()
        limit = Path("/sys/fs/cgroup/memory.max")  # the share that a container may use
        text = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
        memory = min(memory, int(text)) if text.isdecimal() else memory
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = {name: rate or _matmul_rate(dtype) for name, dtype in kinds.items()}
    return Machine(str(default_device()), memory, imports, rates, measured=rate is None)


def _matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large linear layer: the best of what half a second allows."""
    device = default_device()
    size = 8192 if device.type == "cuda" else 512
    rows, weight = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight).sum().item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# The table ------------------------------------------------------------------------------------------------------------


def plan_text(plan: Plan) -> str:
    """A heading, a plain table with a line a way of training, and what fits."""
    own, counts, machine = plan.settings, plan.parameters, plan.machine
    unit = "GB" if max(row.peak for row in plan.rows) >= 1e9 else "MB"
    head = ["trained", "weights", "gradients", "optimiser", "activations", "asking", "peak", "of memory"]
    lines = [[unit, *head, "checkpoint", "student", "time"]]
    for row in plan.rows:
        memory = (row.weights, row.gradients, row.optimizer, row.activations, row.asking, row.peak)
        share = (row.peak + machine.imports) / machine.memory
        cells = [f"{row.name}{' *' if row.chosen else ''}", f"{row.trained / 1e6:,.2f} M"]
        cells += [*(_size(size, unit) for size in memory), f"{100 * share:,.0f} %"]
        lines.append([*cells, *(_size(size, unit) for size in (row.checkpoint, row.student)), _duration(row.seconds)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    active = f", {counts.active:,} of them active for a token" if counts.active != counts.total else ""
    micro = f" in micro-batches of {own['micro_batch_size']}" if own["micro_batch_size"] else ""
    saving = ", gradient checkpointing" if own["gradient_checkpointing"] else ""
    kept = f"K {own['k'] or 'all'}, " if "k" in own else f"{own['method']}, "
    heading = (
        f"{plan.model} ({plan.architecture}): {counts.total:,} parameters{active}\n"
        f"{own['queries']} queries of up to {own['tokens']} tokens (the teacher reads {own['prefix']} more),"
        f" batch {own['batch_size']}{micro}, {own['epochs']} epochs: {plan.steps:,} steps;"
        f" {kept}LoRA rank {own['lora_rank']}{saving}"
    )
    return "\n\n".join([heading, "\n".join(table), _verdict(plan)])


def _verdict(plan: Plan) -> str:
    """What fits, and how the columns are meant."""
    machine, rates = plan.machine, plan.machine.rates
    fitting = ", ".join(row.name.replace(",", "") for row in plan.rows if row.fits)
    libraries = f", {_size(machine.imports, 'GB')} of them for Python's libraries" if machine.imports else ""
    rate = " and ".join(f"{rates[kind] / 1e12:,.3g} TFLOP/s in {kind}" for kind in rates)
    lines = [
        f"fits into this machine ({machine.device}, {_size(machine.memory, 'GB')} GB{libraries}): {fitting or 'none'}",
        "peak: the worst moment of training or of asking the teacher; its parts do not all peak at once",
        f"time: operations at {rate} ({'measured here' if machine.measured else 'as given'}), so the least it takes;"
        " probe and evaluation come on top",
        f"disk: the teacher's logits take {plan.targets / 1e6:,.1f} MB more, and a checkpoint stands twice while it is"
        " replaced",
    ]
    if machine.device == "cpu":
        lines.insert(2, HOLES)
    if any(row.chosen for row in plan.rows):
        lines.append("*: what the recipe says")
    return "\n".join([*lines, *([plan.refusal] if plan.refusal else [])])


def _size(size: int, unit: str) -> str:
    return f"{size / (1e9 if unit == 'GB' else 1e6):,.2f}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
