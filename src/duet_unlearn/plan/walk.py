"""One optimiser step walked through without data: what it holds at its worst moment, and how much it computes.

The model, adapters, loss and optimiser are the ones that the loop uses, so that every architecture that transformers
knows is followed operation by operation: which tensors autograd keeps, autocast's copies of the weights, the head at
the loss's positions only, the dense gradient of the embedding, recomputation under gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.examples import Batch, Example, ResponsePrefix, Role, TrainingData, collate, items
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.losses import generic
from duet_unlearn.methods.base import Method
from duet_unlearn.models.blocks import logits_at, reader
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.plan.blueprint import on_paper
from duet_unlearn.plan.ledger import Kind, Ledger
from duet_unlearn.teacher.targets import (
    ROWS_AT_ONCE,
    SHARD,
    TOKENS_AT_ONCE,
    LiveTargets,
    TargetSpec,
    TeacherTargets,
    is_live,
)
from duet_unlearn.training.optimizers import make_optimizers, taken_gradients
from duet_unlearn.training.step import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAYS_TO_OPEN = 16
"""Ways to open an answer, of methods that open it: about as many as ten openers and an answer of a few words give."""


@dataclass(frozen=True)
class Workload:
    """What a recipe does not say before its queries are read."""

    tokens: int = 64
    """Longest student's prompt, in tokens, the chat template included."""
    prefix: int = 32
    """Tokens that the teacher's prompt has more."""
    queries: int = 200
    """Forget and retain queries together: as many as the paper's 100 + 100."""
    answer: int = 32
    """Tokens of an answer, for methods that read answers."""


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
    recipe.method.choose_weights(model)
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
    method = recipe.method
    rows_asked = [one for one in _examples(method, load) if not one.target_key]
    asked = max(([one] for one in rows_asked), key=lambda item: _logits(method, item))[0]
    spec, positions = method.target_spec(asked.role), len(asked.positions)
    width, own = load.prefix + len(asked.ids), asked.labels is None
    rows = min(max(1, TOKENS_AT_ONCE // (width + own)), SHARD if own else ROWS_AT_ONCE, load.queries)
    ledger = Ledger()
    with _without_data(model):
        on_paper(model).eval()
        ledger.book([*model.parameters(), *model.buffers()], "weights")
        second = _second(model, recipe)
        ledger.book(second, "weights")
        at_once = 1 if own else positions  # an answer of the model's own is decoded token by token
        ids_BT, labels_N = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows * at_once, dtype=torch.long)
        rows_N = torch.arange(rows).repeat_interleave(at_once)
        cols_N = torch.arange(width - at_once, width).repeat(rows)
        with ledger:
            mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
            if spec and spec.kind != "live":
                _ask(method, spec, model, (ids_BT, mask_BT, rows_N, cols_N), labels_N)
    times = _times(load, rows_asked, len(rows_asked))
    return Asking(ledger.peak, ledger.flops * (positions if own else 1) * times // rows)


def _ask(method: Method, spec: TargetSpec, model: nn.Module, where: tuple[Tensor, ...], labels_N: Tensor) -> None:
    """What is kept of the frozen model's logits, or of what they are less a second model's."""
    logits_NV = reader(spec.layer)(model, *where)
    if "reinforced" in method.needs:
        logits_NV = generic(logits_NV, logits_at(model, *where), alpha=1.0)
    spec.stored(logits_NV, labels_N)


def _second(model: nn.Module, recipe: Recipe) -> list[Tensor]:
    """The weights of a reinforced model beside the base, where it is no adapter."""
    if "reinforced" not in recipe.method.needs or recipe.model.lora:
        return []
    return [torch.empty_like(parameter) for parameter in model.parameters()]


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
    second = _second(student, recipe) if recipe.method.trains_a_copy else []
    if is_live(recipe.method.target_spec):
        second += [torch.empty_like(parameter) for parameter in student.parameters()]
    ledger.book(second, "weights")
    optimizers = make_optimizers(student, config)
    ledger.book(_state(optimizers, parameters), "optimizer")
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.book([p.grad], "gradients"))
    student.train()
    with ledger:
        flops, apart = 0, {}
        for role, rows in _passes(recipe):
            size = min(config.micro_batch_size or rows, rows)
            for _ in range(min(2, -(-rows // size))):
                ledger.flops = 0
                _backward(student, recipe, size, load, role)
            flops += ledger.flops * rows // size
            if role:
                apart[role] = taken_gradients(parameters)
        if apart:
            for parameter, gradient in zip(parameters, recipe.method.combine_gradients(apart), strict=True):
                parameter.grad = gradient
        ledger.flops = flops
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(0.5)
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm or 1.0, norm)
        for optimizer in optimizers:
            optimizer.step()
    return ledger


def _passes(recipe: Recipe) -> list[tuple[Role | None, int]]:
    """The rows of a step that go through the model as one, all or a role's half of them."""
    rows = recipe.train.batch_size
    if not recipe.method.splits_gradients:
        return [(None, rows)]
    return [("forget", -(-rows // 2)), ("retain", max(1, rows // 2))]


def _state(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The optimisers' state, which they make at their first step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [value for one in optimizers for row in one.state.values() for value in row.values()]


def _backward(student: nn.Module, recipe: Recipe, rows: int, load: Workload, role: Role | None) -> None:
    """Forward and backward pass of one micro-batch of longest prompts, of a role's rows or of all."""
    method = recipe.method
    batch = _batch(method, rows, load, role)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        read = reader(method.hidden_block)
        logits_NV = read(student, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    targets = _targets(method, batch, logits_NV.shape[-1])
    if is_live(method.target_spec):  # the student stands for the frozen copy, which is as large
        targets |= LiveTargets(student, method.target_spec, lambda _: {})(batch)
    method.loss(Step(logits_NV, batch, targets)).sum.backward()


def _examples(method: Method, load: Workload) -> list[Example]:
    """The method's rows of one forget and one retain query, in the workload's lengths."""
    queries = [
        Query(role, ({"role": "user", "content": "?"},), answer="!", wrong=(".",)) for role in ("forget", "retain")
    ]
    ways = (ResponsePrefix((), (0,)), *[ResponsePrefix((0,) * load.answer, (0,))] * WAYS_TO_OPEN)
    data = TrainingData(
        queries[:1],
        queries[1:],
        Prefix("."),
        refusals=("-",),
        texts=queries[1:],
        reversals=("-",),
        prefix_pools={f"{query.id}/{query.id}": ways for query in queries},
    )
    return [_as_long(one, load) for one in method.build_examples(data)]


def _as_long(one: Example, load: Workload) -> Example:
    """An example without token ids in the workload's lengths."""
    prompt = load.tokens + len(one.response_prefix)
    answer = one.num_positions - 1 if one.answer is None else load.answer
    start = 0 if one.reads == "text" else prompt - 1
    places = tuple(range(start, prompt + answer))
    labels = None if one.answer is None else (0,) * len(places)
    return replace(one, ids=(0,) * (prompt + answer), positions=places, labels=labels)


def _items(method: Method, load: Workload) -> list[list[Example]]:
    """What an epoch meets of those rows: of each pool the first, those of a pair together."""
    return items([one for one in _examples(method, load) if not one.pool or one.key == f"{one.pool}/0"])


def _times(load: Workload, examples: Sequence[Example], count: int) -> int:
    """How often the workload's queries have what the walk's have `count` times."""
    return load.queries * count // len({one.query.id for one in examples if one.query})


def rows_of_epoch(method: Method, load: Workload) -> int:
    """Rows that an epoch meets; those of a pair count once, and of a pool it meets one."""
    return _times(load, _examples(method, load), len(_items(method, load)))


def _logits(method: Method, item: Sequence[Example]) -> tuple[int, int, bool]:
    """How much of an item is kept and read: to plan for the dearest."""
    dense = sum(len(e.positions) for e in item if (spec := method.target_spec(e.role)) and spec.kind == "dense")
    return dense, sum(len(e.positions) for e in item), item[0].role == "retain"


def _batch(method: Method, size: int, load: Workload, role: Role | None) -> Batch:
    """A micro-batch of `size` items: the dearest, then by turns."""
    found = [item for item in _items(method, load) if role in (None, item[0].role)]
    ordered = sorted(found, key=lambda item: _logits(method, item), reverse=True)
    return collate([e for _, item in zip(range(size), cycle(ordered), strict=False) for e in item], 0)


def _targets(method: Method, batch: Batch, vocabulary: int) -> dict[Role, TeacherTargets]:
    """What the cache would hold about those positions."""
    found: dict[Role, TeacherTargets] = {}
    for role in {example.role for example in batch.examples}:
        count = sum(len(e.positions) for e in batch.examples if e.role == role)
        if (spec := method.target_spec(role)) and spec.kind != "live":
            labels_N = torch.zeros(count, dtype=torch.long)
            found[role] = spec.targets(spec.stored(torch.zeros(count, vocabulary), labels_N))
    return found


def target_bytes(method: Method, load: Workload, vocabulary: int, hidden: int) -> int:
    """What the target cache takes, of as many queries as the workload has, half of them forget queries; `hidden` is
    the width of a hidden state."""
    examples, total = _examples(method, load), 0
    for one in examples:
        if (spec := method.target_spec(one.role)) and not one.target_key:
            total += len(one.positions) * spec.size(vocabulary, hidden)
    return _times(load, examples, total)
