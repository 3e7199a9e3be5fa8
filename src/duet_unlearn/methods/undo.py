"""UNDO: unlearn, noise, distil on outputs (arXiv 2506.06278): a stage behind any method, against relearning."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from duet_unlearn.data.examples import Role
from duet_unlearn.losses import forward_kl
from duet_unlearn.methods.material import Material
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Dense, Keep
from duet_unlearn.training.step import LossOut, Need, Step


@dataclass(frozen=True)
class Undo:
    """An unlearned model (the recipe's `after`, or `model.start`) is the teacher; the student is its copy under noise,
    distilled on the text of `data.distil` by KL(teacher || student) over the whole vocabulary, a mean over all tokens
    (arXiv 2506.06278). All weights are trained."""

    name: Literal["undo"] = "undo"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.6
    """How much of every weight is replaced: ``(1 - alpha) theta + alpha beta N``. 0 leaves the model as it is. The
    paper recommends 0.6, and finds 0.3 and less to buy almost nothing."""
    beta: Annotated[float, Ge(0)] = 0.1
    """Scale of the noise, N being Xavier-uniform; 1 is that of a fresh model. The paper's; 0.05 to 0.5 do alike."""
    stop_at: Annotated[float, Gt(0), Le(1)] | None = 0.95
    """Distilling stops once the student answers this share of what the teacher answers right of
    data.validation_retain; the paper's share. Right is an answer with the query's value in it; where a query has none,
    tokens of the answers are counted, each after the right ones before it, which is laxer, for every sentence has words
    that are easy. null: train to the end."""
    stop_every: Annotated[int, Ge(1)] = 50
    """Steps between two looks at that. Ours."""

    needs: ClassVar[frozenset[Need]] = frozenset({"texts"})

    def asks(self, material: Material) -> list[Asked]:
        """The texts alone."""
        return material.whole_texts()

    def keep(self, role: Role) -> Keep:
        """Whole rows of every token are too many to store."""
        return Keep("live")

    def loss(self, step: Step) -> LossOut:
        """Sum over positions of ``KL(teacher || student)``, temperature 1."""
        signal = step.signals["retain"]
        assert isinstance(signal, Dense)
        return LossOut(forward_kl(step.logits_NV, signal.logits_NV).sum(), len(step.logits_NV), "tokens")


@torch.no_grad()
def add_noise(model: nn.Module, *, alpha: float, beta: float, seed: int) -> None:
    """``theta <- (1 - alpha) theta + alpha beta N`` in every trained tensor, once, tied ones too.

    N is Xavier-uniform, ``U(-a, a)`` with ``a = sqrt(6 / (rows + columns))``, in matrices and in each of a stack of
    matrices (experts), and 0 in vectors, so that a norm's scale only shrinks. UNDO (arXiv 2506.06278). Drawn on the
    CPU in fp32 from `seed`: one device's weights are another's.
    """
    draw = torch.Generator().manual_seed(random.Random(f"{seed}/undo").getrandbits(63))
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = xavier(parameter.shape, draw).to(parameter.device)
            parameter.copy_((1 - alpha) * parameter.float() + alpha * beta * noise)


def xavier(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Xavier-uniform noise; 0 for a vector."""
    if len(shape) < 2:
        return torch.zeros(shape)
    bound = (6 / (shape[-1] + shape[-2])) ** 0.5
    return bound * (2 * torch.rand(shape, generator=draw) - 1)
