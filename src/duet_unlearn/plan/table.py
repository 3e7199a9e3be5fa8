"""The ways of training a model side by side: memory, disk, time, and which of them this machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.errors import UserError
from duet_unlearn.plan.blueprint import Counts, count, draw, read_config
from duet_unlearn.plan.machine import Machine, this_machine
from duet_unlearn.plan.walk import (
    Asking,
    Training,
    Workload,
    rows_of_epoch,
    target_bytes,
    walk_asking,
    walk_training,
)

if TYPE_CHECKING:
    from duet_unlearn.config.recipe import AnyMethod

PACKED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes of a packed weight. NF4: 4 bits, 8 for the scale of 64 weights and 32 for that of 256 scales (double
quantisation, arXiv 2305.14314, section 3); int8: a byte, and scales of whole rows, which are few."""
TEBI = 1e12


@dataclass(frozen=True)
class Mode:
    """A way of training."""

    name: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    adapters: bool = False
    quantise: Literal["nf4", "int8"] | None = None


MODES = (
    Mode("full, fp32"),
    Mode("full, bf16 autocast", precision="bf16"),
    Mode("full, bf16 weights", dtype="bfloat16"),
    Mode("LoRA, fp32", adapters=True),
    Mode("LoRA, bf16 weights", dtype="bfloat16", adapters=True),
    Mode("QLoRA, nf4 weights", dtype="bfloat16", adapters=True, quantise="nf4"),
)


@dataclass(frozen=True)
class Row:
    """One way of training. Sizes are bytes."""

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
    """Peak while the teacher is asked."""
    peak: int
    """The higher of the two."""
    checkpoint: int
    """On disk; twice that for a moment, when one replaces the one before."""
    student: int
    """On disk: the whole model, or the adapter."""
    flops: float
    """Operations of asking once and of all steps."""
    seconds: float
    """At the machine's rate for the type of arithmetic."""
    fits: bool
    """Whether the peak, with the imports, is within the machine's memory."""


@dataclass(frozen=True)
class Plan:
    """What `duet plan` prints."""

    model: str
    architecture: str
    parameters: Counts
    settings: dict[str, Any]
    """What it was computed for."""
    steps: int
    targets: int
    """Bytes of the teacher's logits on disk."""
    machine: Machine
    rows: tuple[Row, ...]
    refusal: str | None
    """Why rows with adapters are missing, where the architecture takes none."""


def make_plan(path: str, recipe: Recipe, load: Workload, *, rate: float | None = None) -> Plan:
    """Plan the training of a model folder, config.json or hub id with a recipe's settings, in every way.

    `rate` is operations a second; a matrix product is timed here where it is not given. No weights are read.

    Raises:
        UserError: a method that trains no model; no usable config; K above the vocabulary; adapters that do not fit.
    """
    if not recipe.method.changes_weights:
        raise UserError(
            f"method {recipe.method.name}: the model is not trained, so there is no training to plan",
            "what it needs is the model itself, as for asking it",
        )
    machine, config = this_machine(rate), read_config(path)
    sizes = config.get_text_config()
    recipe.method.check_targets(sizes.vocab_size)
    counts = count(draw(path, config, dtype="float32"))
    asked: dict[tuple[str, bool], Asking] = {}
    trained: dict[Mode, list[Training]] = {}
    rows, refusal = [], None
    for mode in _modes(recipe):
        own, unpacked = _as(mode, recipe), replace(mode, name="", quantise=None)
        alike = (mode.dtype, mode.adapters and "reinforced" in recipe.method.needs)
        if alike not in asked:
            asked[alike] = walk_asking(draw(path, config, dtype=mode.dtype), own, load)
        if unpacked not in trained:
            try:
                trained[unpacked] = [
                    walk_training(draw(path, config, dtype=mode.dtype), one, load) for one in _trainings(own)
                ]
            except UserError as error:
                if not mode.adapters or recipe.model.lora:
                    raise
                refusal = error.message
                continue
        facts = (counts, machine, asked[alike], trained[unpacked])
        rows.append(_row(mode, own, load, *facts, chosen=own == recipe))
    return Plan(
        model=path,
        architecture=str(config.model_type),
        parameters=counts,
        settings=_settings(_trainings(recipe)[0], load),
        steps=_steps(_trainings(recipe)[0], load),
        targets=target_bytes(recipe.method, load, sizes.vocab_size, sizes.hidden_size),
        machine=machine,
        rows=tuple(rows),
        refusal=refusal,
    )


def _modes(recipe: Recipe) -> tuple[Mode, ...]:
    """The usual ones, and the recipe's own where it is another; without adapters where the method takes none."""
    model = recipe.model
    own = Mode("the recipe's", model.dtype, recipe.train.precision, model.lora is not None, model.quantise)
    usual = tuple(mode for mode in MODES if recipe.method.takes_adapters or not mode.adapters)
    return usual if any(replace(mode, name=own.name) == own for mode in usual) else (*usual, own)


def _trainings(recipe: Recipe) -> list[Recipe]:
    """What is trained: the student, and a second model before it or in its place."""
    trainings = recipe.method.trainings(recipe.train)
    return [replace(recipe, method=cast("AnyMethod", method), train=train) for method, train in trainings]


def _as(mode: Mode, recipe: Recipe) -> Recipe:
    lora = (recipe.model.lora or LoraConfig()) if mode.adapters else None
    model = replace(recipe.model, dtype=mode.dtype, lora=lora, quantise=mode.quantise)
    return replace(recipe, model=model, train=replace(recipe.train, precision=mode.precision))


def _steps(recipe: Recipe, load: Workload) -> int:
    return recipe.train.epochs * -(-rows_of_epoch(recipe.method, load) // recipe.train.batch_size)


def _row(
    mode: Mode,
    recipe: Recipe,
    load: Workload,
    counts: Counts,
    machine: Machine,
    asked: Asking,
    trainings: Sequence[Training],
    *,
    chosen: bool,
) -> Row:
    saved = _saved(mode, counts)
    unpacked = 2 * counts.largest if mode.quantise else 0  # one matrix at a time, for its product
    trained = max(trainings, key=lambda one: one.peak)
    training, asking = trained.peak - saved + unpacked, asked.peak - saved + unpacked
    steps = [_steps(one, load) for one in _trainings(recipe)]
    flops = float(asked.flops + sum(n * one.flops for n, one in zip(steps, trainings, strict=True)))
    half = mode.precision == "bf16" or mode.dtype == "bfloat16"
    lora, peak = recipe.model.lora, max(training, asking)
    whole = counts.total * (4 if mode.dtype == "float32" else 2)
    return Row(
        name=mode.name,
        chosen=chosen,
        trained=trained.trained,
        weights=trained.weights - saved,
        gradients=trained.gradients,
        optimizer=trained.optimizer,
        activations=trained.activations + unpacked,
        training=training,
        asking=asking,
        peak=peak,
        checkpoint=trained.gradients + trained.optimizer if recipe.train.checkpoint_every else 0,
        student=trained.gradients if lora and lora.save == "adapter" else whole,
        flops=flops,
        seconds=flops / machine.rates["bf16" if half else "fp32"],
        fits=peak + machine.imports <= machine.memory,
    )


def _saved(mode: Mode, counts: Counts) -> int:
    """Bytes by which packing makes bf16 weights smaller."""
    return round(counts.linear * (2 - PACKED[mode.quantise])) if mode.quantise else 0


def _settings(recipe: Recipe, load: Workload) -> dict[str, Any]:
    train, lora = recipe.train, recipe.model.lora or LoraConfig()
    names = ("epochs", "batch_size", "micro_batch_size", "gradient_checkpointing", "optimizer")
    method = {"method": recipe.method.name} | {
        name: value for name, value in asdict(recipe.method).items() if name in ("k", "positions")
    }
    return {**{name: getattr(train, name) for name in names}, **method, "lora_rank": lora.rank, **asdict(load)}
