"""Every tensor's bytes from the operation that makes it to the moment it is dropped, and the operations themselves."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
Kind = Literal["weights", "gradients", "optimizer", "activations"]
KINDS: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "activations")


class Ledger(TorchDispatchMode):
    """Inside, what torch allocates is booked; meant for tensors without data, whose kernels never run.

    A storage is booked once, whatever views it has, as an activation unless ``book`` said otherwise. Workspaces
    inside a kernel are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.most: dict[Kind, int] = dict(self.live)
        """Each kind's own maximum."""
        self.peak = 0
        self.at_peak: dict[Kind, int] = dict(self.live)
        """What the peak consists of."""
        self.flops = 0
        """Operations of matrix products and attention; a multiply-add is two."""
        self._booked: dict[int, tuple[Kind, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        grouped = func is aten._grouped_mm.default
        out = _grouped_mm(func, args, kwargs) if grouped else func(*args, **kwargs)
        self.flops += _operations(func.overloadpacket, args, kwargs, out)
        self.book((out,) if isinstance(out, Tensor) else tree_leaves(out), "activations")
        return out

    def book(self, tensors: Iterable[Any], kind: Kind) -> None:
        """Count storages that are new; with another kind than activations, move those that are not."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._book(tensor.untyped_storage(), kind)

    def _book(self, storage: torch.UntypedStorage, kind: Kind) -> None:
        key = storage._cdata
        known = self._booked.get(key)
        if known is None:
            weakref.finalize(storage, self._drop, key)
        elif kind == "activations" or known[0] == kind:
            return
        else:
            self.live[known[0]] -= known[1]
        size = storage.nbytes()
        self._booked[key] = (kind, size)
        self.live[kind] += size
        self._look(kind)

    def _look(self, kind: Kind) -> None:
        self.most[kind] = max(self.most[kind], self.live[kind])
        total = sum(self.live.values())
        if total > self.peak:
            self.peak, self.at_peak = total, dict(self.live)

    def _drop(self, key: int) -> None:
        kind, size = self._booked.pop(key)
        self.live[kind] -= size


def _operations(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Operations of one call; 0 for what is no product."""
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(t.shape for t in args[:4]))
    if packet is aten._grouped_mm:
        rows, inner = args[0].shape  # each row meets one matrix only; a weight's gradient sums over the rows
        return 2 * rows * inner * args[1].shape[-1]
    return 0


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Tensor:
    """The products of a mixture's experts, for whose shapes torch knows bf16 only, though its kernels do fp32 too."""
    first, second, *rest = args
    out = func(first.bfloat16(), second.bfloat16(), *rest, **kwargs)
    return out.to(first.dtype)
