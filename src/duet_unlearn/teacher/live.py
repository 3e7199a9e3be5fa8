"""A teacher that is asked at every step: for more text than its logits could be stored of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from duet_unlearn.data.examples import Batch, Role
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.teacher.cache import Kept, Targets
from duet_unlearn.teacher.signals import Keep, Signal


@dataclass(frozen=True)
class Live:
    """Signals of a batch: of some roles by asking the frozen model, of the others from the cache."""

    frozen: nn.Module
    kept: Kept
    cached: Callable[[Batch], Mapping[Role, Signal]]

    def __call__(self, batch: Batch) -> dict[Role, Signal]:
        """What it says on each role's rows. The rows are the student's: a live teacher is told no prefix."""
        found = dict(self.cached(batch))
        with torch.no_grad():
            logits_NV = logits_at(self.frozen, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
        roles = [example.role for example in batch.examples for _ in example.positions]
        for role in dict.fromkeys(roles):
            if (keep := self.kept(role)) and keep.kind == "live":
                index_N = torch.tensor([n for n, one in enumerate(roles) if one == role], device=logits_NV.device)
                found[role] = keep.signal(keep.of(logits_NV[index_N], None))
        return found


def is_live(kept: Kept) -> bool:
    """Whether any role's rows are asked at every step."""
    return any((keep := kept(role)) and keep.kind == "live" for role in get_args(Role))


def stored_only(kept: Kept) -> Kept:
    """What the cache is to hold: nothing of what is asked at every step."""

    def stored(role: Role) -> Keep | None:
        keep = kept(role)
        return None if keep and keep.kind == "live" else keep

    return stored


def live_signals(model: nn.Module, kept: Kept, targets: Targets) -> Callable[[Batch], Mapping[Role, Signal]]:
    """The signals of a training run; where any is live, of a frozen copy of the model as it is now."""
    if not is_live(kept):
        return targets.signals
    return Live(copy.deepcopy(model).requires_grad_(False).eval(), kept, targets.signals)
