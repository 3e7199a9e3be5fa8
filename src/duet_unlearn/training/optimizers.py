"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from duet_unlearn.config.sections import TrainConfig

ADAMW_RATE_OF_MUON = 0.15
"""AdamW's rate for embeddings and norms, as a share of Muon's rate for the hidden matrices."""


def rate_factor(step: int, num_steps: int, config: TrainConfig) -> float:
    """The share of the peak rate at a step (from 0): a linear warm-up, then the schedule over what is left."""
    warmup = round(config.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    left = (num_steps - step) / max(1, num_steps - warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if config.schedule == "linear":
        return min(1.0, left / config.decay)
    return 1.0


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW on all trainable weights; or Muon on the hidden matrices and AdamW on the rest.

    Matrices decay, vectors do not. Each group carries its peak rate as ``peak``.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for _, p in trainable if p.ndim >= 2]
    vectors = [p for _, p in trainable if p.ndim < 2]
    if config.optimizer == "adamw":
        return [_adamw(matrices, vectors, config.rate, config)]
    hidden = [p for name, p in trainable if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inside = {id(p) for p in hidden}
    outer = [p for p in matrices if id(p) not in inside]
    muon = Muon(hidden, rate=config.rate, weight_decay=config.weight_decay)
    if not outer and not vectors:  # adapters are hidden matrices all
        return [muon]
    return [muon, _adamw(outer, vectors, ADAMW_RATE_OF_MUON * config.rate, config)]


def _adamw(
    matrices: Sequence[Tensor], vectors: Sequence[Tensor], rate: float, config: TrainConfig
) -> torch.optim.AdamW:
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "peak": rate},
        {"params": vectors, "weight_decay": 0.0, "peak": rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=rate, betas=(0.9, config.beta2), fused=True
    )


def set_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def taken_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradients, taken out of the parameters."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalised step (Jordan et al., 2024), for matrices inside the network.

    ``torch.optim.Muon`` does the same one matrix at a time in bf16, which a CPU without bf16 units does eight times
    slower than this: matrices of one shape are stacked, and the five Newton-Schulz rounds run in the weights' own type.
    """

    def __init__(self, params: Iterable[Tensor], *, rate: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": rate, "peak": rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                moved = torch.stack([self._move(p, group["momentum"]) for p in params])
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonalise(moved), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def _move(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum of a gradient."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        state["momentum_buffer"].mul_(momentum).add_(p.grad)
        return p.grad + momentum * state["momentum_buffer"]


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """(N, R, C) matrices with their singular values brought near 1 by Newton-Schulz rounds."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
