"""One optimiser step walked through without data: what it holds at its worst moment, and how much it computes.

The model, adapters, loss and optimiser are the ones that the loop uses, so that every architecture that transformers
knows is followed operation by operation: which tensors autograd keeps, autocast's copies of the weights, the head at
the loss's positions only, the dense gradient of the embedding, recomputation under gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from duet_unlearn.config import Recipe
from duet_unlearn.data.examples import Batch, Example, collate
from duet_unlearn.errors import UserError
from duet_unlearn.losses import forward_kl
from duet_unlearn.methods import LossOut, Method, Step
from duet_unlearn.plan.blueprint import on_paper
from duet_unlearn.plan.ledger import Kind, Ledger
from duet_unlearn.teacher.cache import SHARD, TOKENS
from duet_unlearn.teacher.signals import Dense
from duet_unlearn.tensors import TopK, head_at, logits_at, position_ids, topk
from duet_unlearn.train.loop import Loss
from duet_unlearn.train.lora import add_lora, save_gradient_memory
from duet_unlearn.train.optim import make_optimizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Workload:
    """What a recipe does not say before its queries are read."""

    tokens: int = 64
    """Longest student's prompt, in tokens, the chat template included."""
    prefix: int = 32
    """Tokens that the teacher's prompt has more."""
    queries: int = 200
    """Forget and retain queries together: as many as the paper's 100 + 100."""


@dataclass(frozen=True)
class Training:
    """What one optimiser step needs. Sizes are bytes; of the four, each is its own maximum."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """All else: what autograd keeps, autocast's copies of weights, logits, temporaries."""
    peak: int
    """At most the sum of the four, which do not all peak at one moment."""
    at_peak: dict[Kind, int]
    """What that peak consists of."""
    trained: int
    """Parameters that are trained."""
    flops: int
    """Operations of a step on a full batch of longest prompts."""


@dataclass(frozen=True)
class Asking:
    """What the teacher needs."""

    peak: int
    """Bytes: its weights, and the activations of as many prompts as it reads at once."""
    flops: int
    """Operations of asking about every query once."""


def walk_training(model: PreTrainedModel, recipe: Recipe, load: Workload) -> Training:
    """One step of a meta model (`draw`), which is used up, on rows that are all as long as the longest.

    Raises:
        UserError: adapters that do not fit; a model whose arithmetic depends on its data.
    """
    student = _with_adapters(model, recipe) if recipe.model.lora else model
    with _without_data(model):
        on_paper(student)
        if recipe.train.gradient_checkpointing:
            save_gradient_memory(model)
        ledger = _step(student, recipe, load)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return Training(**ledger.most, peak=ledger.peak, at_peak=ledger.at_peak, trained=trained, flops=ledger.flops)


def _with_adapters(model: PreTrainedModel, recipe: Recipe) -> nn.Module:
    assert recipe.model.lora is not None
    try:
        with torch.device("meta"):
            return add_lora(model, recipe.model.lora, seed=recipe.seed)
    except ValueError as error:  # PEFT's own: Mamba's layers, for one, it does not adapt
        kind = model.config.model_type
        raise UserError(f"{kind}: takes no adapters ({str(error).splitlines()[0]})", "train all its weights") from error


@torch.no_grad()
def walk_asking(model: PreTrainedModel, recipe: Recipe, load: Workload) -> Asking:
    """The teacher's first logits, of as many prompts as are asked at once; the meta model is used up.

    Raises:
        UserError: a model whose arithmetic depends on its data.
    """
    width = load.prefix + load.tokens
    rows = min(max(1, TOKENS // (width + recipe.method.positions)), SHARD, load.queries)
    ledger = Ledger()
    with _without_data(model):
        on_paper(model).eval()
        ledger.book([*model.parameters(), *model.buffers()], "weights")
        ids_BT, last_N = torch.zeros(rows, width, dtype=torch.long), torch.full((rows,), width - 1)
        with ledger:
            mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
            logits_NV = logits_at(model, ids_BT, mask_BT, torch.arange(rows), last_N)
            _ = topk(logits_NV, recipe.method.cached_k) if recipe.method.cached_k else logits_NV.half()
    return Asking(ledger.peak, ledger.flops * recipe.method.positions * load.queries // rows)


@contextmanager
def _without_data(model: PreTrainedModel) -> Iterator[None]:
    try:
        with FakeTensorMode():
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"{model.config.model_type}: what this architecture computes depends on its data ({error.func}),"
            " so it cannot be planned without weights",
            "count with four times its weights to train it whole, and add the activations of a batch",
        ) from error


def _step(student: nn.Module, recipe: Recipe, load: Workload) -> Ledger:
    """The loop's step, but for what reads numbers: micro-batches, clipping, optimiser.

    The optimiser has its state already, as from the second step on. After two micro-batches the others add nothing
    but operations.
    """
    config, ledger = recipe.train, Ledger()
    parameters = [p for p in student.parameters() if p.requires_grad]
    ledger.book([*student.parameters(), *student.buffers()], "weights")
    optimizers = make_optimizers(student, config)
    ledger.book(_state(optimizers, parameters), "optimizer")
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.book([p.grad], "gradients"))
    student.train()
    size = min(config.micro_batch_size or config.batch_size, config.batch_size)
    with ledger:
        for _ in range(min(2, -(-config.batch_size // size))):
            ledger.flops = 0
            _backward(student, recipe, size, load)
        ledger.flops = ledger.flops * config.batch_size // size
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(0.5)
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm or 1.0, norm)
        for optimizer in optimizers:
            optimizer.step()
    return ledger


def _state(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The optimisers' state, which they make at their first step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [value for one in optimizers for row in one.state.values() for value in row.values()]


def _backward(student: nn.Module, recipe: Recipe, rows: int, load: Workload) -> None:
    """Forward and backward pass of one micro-batch of longest prompts."""
    batch = _batch(rows, load.tokens, recipe.method.positions)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16")
    with autocast, head_at(student, batch.rows_N, batch.cols_N):
        output = student(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask_BT,
            position_ids=position_ids(batch.mask_BT),
            use_cache=False,
        )
    _loss(recipe.method)(Step(output.logits[0], batch, _signal(recipe.method, output.logits[0]))).sum.backward()


def _batch(rows: int, tokens: int, positions: int) -> Batch:
    """Prompts of that length, and behind each the teacher's words but the last."""
    ids = (0,) * (tokens + positions - 1)
    places = tuple(range(tokens - 1, tokens - 1 + positions))
    return collate([Example(ids, places, None, "retain", str(row)) for row in range(rows)], 0)


def _signal(method: Method, logits_NV: Tensor) -> TopK | Dense:
    """What the cache would hold about those positions."""
    rows, vocabulary = logits_NV.shape
    if method.cached_k is None:
        return Dense(torch.zeros(rows, vocabulary, dtype=torch.float16))
    shape = (rows, method.cached_k)
    return TopK(torch.zeros(shape, dtype=torch.long), torch.zeros(shape))


def _loss(method: Method) -> Loss:
    """The method's own; with KL on retain queries, as if all were: which are is data, and a walk has none."""
    if method.retain_loss == "topk_huber":
        return method.loss

    def kl(step: Step) -> LossOut:
        assert isinstance(step.signal, Dense)
        return LossOut(forward_kl(step.logits_NV, step.signal.logits_NV).sum(), len(step.logits_NV), "positions")

    return kl
