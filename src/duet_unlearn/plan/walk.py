"""One optimiser step walked through without data: what it holds at its worst moment, and how much it computes.

The model, adapters, loss and optimiser are the ones that the loop uses, so that every architecture that transformers
knows is followed operation by operation: which tensors autograd keeps, autocast's copies of the weights, the head at
the loss's positions only, the dense gradient of the embedding, recomputation under gradient checkpointing. Memory is
booked storage by storage (``Ledger``); operations are counted by torch's ``FlopCounterMode``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.examples import Batch, Example, ResponsePrefix, Role, TrainingData, collate, items
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.losses import generic
from duet_unlearn.methods.base import Method
from duet_unlearn.models.blocks import logits_at, reader
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.teacher.targets import ROWS_AT_ONCE, SHARD, TOKENS_AT_ONCE, LiveTargets, TeacherTargets, is_live
from duet_unlearn.training.optimizers import make_optimizers, taken_gradients
from duet_unlearn.training.step import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_RESPONSE_PREFIXES = 16
"""Response prefixes of a query, for methods that train on them: about as many as ten openings and an answer of a few
words give."""
MemoryKind = Literal["weights", "gradients", "optimizer", "activations"]
MEMORY_KINDS: tuple[MemoryKind, ...] = ("weights", "gradients", "optimizer", "activations")
aten = torch.ops.aten


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
class TrainingCost:
    """What one optimiser step needs. Sizes are bytes; of the four, each is its own maximum."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """All else: what autograd keeps, autocast's copies of weights, logits, temporaries."""
    peak: int
    """At most the sum of the four, which do not all peak at one moment."""
    trained: int
    """Parameters that are trained."""
    flops: int
    """Operations of a step on a full batch of longest prompts; a multiply-add is two."""


@dataclass(frozen=True)
class TeacherCost:
    """What the frozen model needs while it makes the targets."""

    peak: int
    """Bytes: its weights, and the activations of as many prompts as it reads at once."""
    flops: int
    """Operations of reading every query once."""


def walk_training(model: PreTrainedModel, recipe: Recipe, load: Workload) -> TrainingCost:
    """One step of a model on the meta device, which is used up, on rows that are all as long as the longest.

    Raises:
        UserError: adapters that do not fit; a model whose arithmetic depends on its data.
    """
    recipe.method.choose_weights(model)
    student: nn.Module = model
    if recipe.model.lora:
        try:
            with torch.device("meta"):
                student = add_lora(model, recipe.model.lora, seed=recipe.seed)
        except ValueError as error:  # PEFT's own: Mamba's layers, for one, it does not adapt
            reason = f"{model.config.model_type}: takes no adapters ({str(error).splitlines()[0]})"
            raise UserError(reason, "train all its weights") from error
    ledger = Ledger()
    with _without_data(model):
        _on_paper(student)
        if recipe.train.gradient_checkpointing:
            save_gradient_memory(model)
        flops = _step(student, recipe, load, ledger)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return TrainingCost(**ledger.most, peak=ledger.peak, trained=trained, flops=flops)


@torch.no_grad()
def walk_teacher(model: PreTrainedModel, recipe: Recipe, load: Workload) -> TeacherCost:
    """The frozen model's logits on as many prompts as it reads at once; the meta model is used up.

    Raises:
        UserError: a model whose arithmetic depends on its data.
    """
    method = recipe.method
    read_rows = [one for one in _examples(method, load) if not one.target_key]
    dearest = max(([one] for one in read_rows), key=lambda item: _num_logits(method, item))[0]
    spec, positions = method.target_spec(dearest.role), len(dearest.positions)
    # An answer of the model's own is decoded token by token; a given one is read at all its positions at once.
    decodes = dearest.labels is None
    at_once, width = 1 if decodes else positions, load.prefix + len(dearest.ids)
    rows = min(max(1, TOKENS_AT_ONCE // (width + decodes)), SHARD if decodes else ROWS_AT_ONCE, load.queries)
    ledger, operations = Ledger(), OperationCounter()
    with _without_data(model):
        _on_paper(model).eval()
        copies = _reinforced_copy(model, recipe)  # held by this name while the model is walked through
        ledger.book([*model.parameters(), *model.buffers(), *copies], "weights")
        ids_BT, labels_N = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows * at_once, dtype=torch.long)
        rows_N = torch.arange(rows).repeat_interleave(at_once)
        cols_N = torch.arange(width - at_once, width).repeat(rows)
        with operations, ledger:
            where = (ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), rows_N, cols_N)
            if spec and spec.kind != "live":
                logits_NV = reader(spec.layer)(model, *where)
                if "reinforced" in method.needs:
                    logits_NV = generic(logits_NV, logits_at(model, *where), alpha=1.0)
                spec.stored(logits_NV, labels_N)
    times = _times(load, read_rows, len(read_rows)) * (positions if decodes else 1)
    return TeacherCost(ledger.peak, operations.get_total_flops() * times // rows)


def rows_of_epoch(method: Method, load: Workload) -> int:
    """Rows that an epoch meets; those of a pair count once, and of a pool it meets one."""
    return _times(load, _examples(method, load), len(_items(method, load)))


def target_bytes(method: Method, load: Workload, vocabulary: int, hidden: int) -> int:
    """What the target cache takes, of as many queries as the workload has, half of them forget queries; `hidden` is
    the width of a hidden state."""
    examples, total = _examples(method, load), 0
    for one in examples:
        if (spec := method.target_spec(one.role)) and not one.target_key:
            total += len(one.positions) * spec.size(vocabulary, hidden)
    return _times(load, examples, total)


# Memory and operations -----------------------------------------------------------------------------------------------


class Ledger(TorchDispatchMode):
    """Inside, what torch allocates is booked, from the operation that makes it to the moment it is dropped; meant for
    tensors without data, whose kernels never run.

    A storage is booked once, whatever views it has, as an activation unless ``book`` was given another kind.
    Workspaces inside a kernel are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[MemoryKind, int] = dict.fromkeys(MEMORY_KINDS, 0)
        self.most: dict[MemoryKind, int] = dict(self.live)
        """Each kind's own maximum."""
        self.peak = 0
        self._booked: dict[int, tuple[MemoryKind, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._grouped_mm.default:
            # The products of a mixture's experts: torch knows their shapes in bf16 only, its kernels do fp32 too.
            out = func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **(kwargs or {})).to(args[0].dtype)
        else:
            out = func(*args, **(kwargs or {}))
        self.book(tree_leaves(out), "activations")
        return out

    def book(self, tensors: Iterable[Any], kind: MemoryKind) -> None:
        """Count storages that are new; with another kind than activations, move those that are not."""
        for storage in (tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)):
            key = storage._cdata
            known, size = self._booked.get(key), storage.nbytes()
            if known is None:
                weakref.finalize(storage, self._drop, key)
            elif kind == "activations" or known[0] == kind:
                continue
            else:
                self.live[known[0]] -= known[1]
            self._booked[key] = (kind, size)
            self.live[kind] += size
            self.most[kind] = max(self.most[kind], self.live[kind])
            self.peak = max(self.peak, sum(self.live.values()))

    def _drop(self, key: int) -> None:
        kind, size = self._booked.pop(key)
        self.live[kind] -= size


class OperationCounter(FlopCounterMode):
    """torch's counter of the operations of products and attention, with the three kernels that it does not know.

    Its own formulas stand for the CPU's attention. Of a grouped product each row meets one matrix only, and a weight's
    gradient sums over the rows.
    """

    def __init__(self) -> None:
        known = {
            aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
                sdpa_backward_flop_count(grad, q, k, v)
            ),
            aten._grouped_mm: lambda rows, weights, *_, **__: 2 * rows[0] * rows[1] * weights[-1],
        }
        super().__init__(display=False, custom_mapping=known)
        # Its hooks on modules keep gradients for longer than training does, which the ledger would book.
        self.mod_tracker = _NoTracker()


class _NoTracker(ModuleTracker):
    def __enter__(self) -> _NoTracker:
        return self

    def __exit__(self, *_: object) -> None: ...


# A model without data ------------------------------------------------------------------------------------------------


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


def _on_paper(model: nn.Module) -> nn.Module:
    """A meta model as tensors that say they are on the CPU, for autocast asks where they are; the ``FakeTensorMode``
    around it gives them no data."""
    made: dict[int, Any] = {}  # a tied weight stays one tensor
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = tensor.requires_grad
                    made[id(tensor)] = nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty
                own[name] = made[id(tensor)]
    return model


def _reinforced_copy(model: nn.Module, recipe: Recipe) -> list[Tensor]:
    """The weights of a reinforced model that stands in memory with the base, where it is no adapter around it."""
    if "reinforced" not in recipe.method.needs or recipe.model.lora:
        return []
    return [torch.empty_like(parameter) for parameter in model.parameters()]


# One step ------------------------------------------------------------------------------------------------------------


def _step(student: nn.Module, recipe: Recipe, load: Workload, ledger: Ledger) -> int:
    """The loop's step, but for what reads numbers: micro-batches, clipping, optimiser. Returns its operations."""
    config, method = recipe.train, recipe.method
    parameters = [p for p in student.parameters() if p.requires_grad]
    ledger.book([*student.parameters(), *student.buffers()], "weights")
    copies = _reinforced_copy(student, recipe) if method.trains_a_copy else []
    if is_live(method.target_spec):
        copies += [torch.empty_like(parameter) for parameter in student.parameters()]
    ledger.book(copies, "weights")
    # The optimisers make their state at their first step; it is there already, as from the second step on.
    optimizers = make_optimizers(student, config)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ledger.book([value for one in optimizers for row in one.state.values() for value in row.values()], "optimizer")
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.book([p.grad], "gradients"))
    student.train()
    # Rows that go through the model as one: all of a step, or each role's half of them.
    rows = config.batch_size
    passes: list[tuple[Role | None, int]] = [(None, rows)]
    if method.splits_gradients:
        passes = [("forget", -(-rows // 2)), ("retain", max(1, rows // 2))]
    flops, apart = 0, dict[Role, list[Tensor | None]]()
    # The counter stands outside the ledger: it may take an operation apart, whose parts the ledger must not book.
    with OperationCounter() as operations, ledger:
        for role, rows in passes:
            size = min(config.micro_batch_size or rows, rows)
            for _ in range(min(2, -(-rows // size))):  # after two micro-batches the others add operations alone
                before = operations.get_total_flops()
                _backward(student, recipe, _batch(method, size, load, role))
            flops += (operations.get_total_flops() - before) * rows // size
            if role:
                apart[role] = taken_gradients(parameters)
        if apart:
            for parameter, gradient in zip(parameters, method.combine_gradients(apart), strict=True):
                parameter.grad = gradient
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(0.5)  # the loop divides by the count of the whole step
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm or 1.0, norm)
        before = operations.get_total_flops()
        for optimizer in optimizers:  # Muon's step consists of products
            optimizer.step()
    return flops + operations.get_total_flops() - before


def _backward(student: nn.Module, recipe: Recipe, batch: Batch) -> None:
    """Forward and backward pass of one micro-batch."""
    method = recipe.method
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        read = reader(method.hidden_block)
        logits_NV = read(student, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    targets = _targets(method, batch, logits_NV.shape[-1])
    if is_live(method.target_spec):  # the student stands for the frozen copy, which is as large
        targets |= LiveTargets(student, method.target_spec, lambda _: {})(batch)
    method.loss(Step(logits_NV, batch, targets)).sum.backward()


def _targets(method: Method, batch: Batch, vocabulary: int) -> dict[Role, TeacherTargets]:
    """What the cache would hold about those positions. A function of its own, for what it drops is not booked on."""
    found: dict[Role, TeacherTargets] = {}
    for role in {example.role for example in batch.examples}:
        count = sum(len(e.positions) for e in batch.examples if e.role == role)
        if (spec := method.target_spec(role)) and spec.kind != "live":
            labels_N = torch.zeros(count, dtype=torch.long)
            found[role] = spec.targets(spec.stored(torch.zeros(count, vocabulary), labels_N))
    return found


# The rows ------------------------------------------------------------------------------------------------------------


def _examples(method: Method, load: Workload) -> list[Example]:
    """The method's rows of one forget and one retain query, in the workload's lengths."""
    asked = ({"role": "user", "content": "?"},)
    queries = [Query(role, asked, answer="!", wrong=(".",)) for role in ("forget", "retain")]
    prefixes = (ResponsePrefix((), (0,)), *[ResponsePrefix((0,) * load.answer, (0,))] * NUM_RESPONSE_PREFIXES)
    data = TrainingData(
        queries[:1],
        queries[1:],
        Prefix("."),
        refusals=("-",),
        texts=queries[1:],
        reversals=("-",),
        prefix_pools={f"{query.id}/{query.id}": prefixes for query in queries},
    )
    found = []
    for one in method.build_examples(data):
        prompt = load.tokens + len(one.response_prefix)
        answer = one.num_positions - 1 if one.answer is None else load.answer
        places = tuple(range(0 if one.reads == "text" else prompt - 1, prompt + answer))
        labels = None if one.answer is None else (0,) * len(places)
        found.append(replace(one, ids=(0,) * (prompt + answer), positions=places, labels=labels))
    return found


def _items(method: Method, load: Workload) -> list[list[Example]]:
    """What an epoch meets of those rows: of each pool the first, those of a pair together."""
    return items([one for one in _examples(method, load) if not one.pool or one.key == f"{one.pool}/0"])


def _times(load: Workload, examples: Sequence[Example], count: int) -> int:
    """How often the workload's queries have what the walk's have `count` times."""
    return load.queries * count // len({one.query.id for one in examples if one.query})


def _num_logits(method: Method, item: Sequence[Example]) -> tuple[int, int, bool]:
    """How much of an item is kept and read: to plan for the dearest."""
    dense = sum(len(e.positions) for e in item if (spec := method.target_spec(e.role)) and spec.kind == "dense")
    return dense, sum(len(e.positions) for e in item), item[0].role == "retain"


def _batch(method: Method, size: int, load: Workload, role: Role | None) -> Batch:
    """A micro-batch of `size` items, of one role's or of all: the dearest, then by turns."""
    found = [item for item in _items(method, load) if role in (None, item[0].role)]
    ordered = sorted(found, key=lambda item: _num_logits(method, item), reverse=True)
    return collate([e for _, item in zip(range(size), cycle(ordered), strict=False) for e in item], 0)
