"""RMU: representation misdirection (arXiv 2403.03218)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from duet_unlearn.config.sections import Positive, Whole
from duet_unlearn.data.examples import Role
from duet_unlearn.losses import mean_square
from duet_unlearn.methods.forget import token_term
from duet_unlearn.methods.material import Material
from duet_unlearn.models.blocks import BlockIndex, blocks_of, mlp_output, place_of
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Hidden, Keep
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class Rmu:
    """Inside the model the forget text is led to a random direction, and the retain text held where it was (RMU, arXiv
    2403.03218): mean squares of hidden states behind one block, at every token of question and answer. Of the weights
    only the last matrix of the MLP (`down_proj`) of a few blocks is trained; `model.lora` must be null."""

    name: Literal["rmu"] = "rmu"
    layer: Whole | None = None
    """Block, counted from 0, behind which hidden states are read; nothing above it is computed. null: the one at half
    the depth. Ours; the paper has 7 of Zephyr's 32."""
    c: Positive = 6.5
    """Length of the random vector; the paper's for Zephyr. What is long depends on the model: the lab's hidden states
    are 1,200 long."""
    alpha: Positive = 1200.0
    """Weight of the retain term; the paper's for Zephyr."""
    train_layers: tuple[Whole, ...] | None = None
    """Blocks whose matrix is trained; null: `layer` and the two before it, as in the paper."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "retain", "reference"})

    @property
    def reads(self) -> BlockIndex:
        """The block whose output the loss reads."""
        return "middle" if self.layer is None else self.layer

    def trains(self, model: nn.Module) -> list[nn.Parameter]:
        """The weights that are trained: matrices without their bias, as in the published code.

        Raises:
            UserError: a block that the model has not; one whose MLP has no last matrix.
        """
        blocks = blocks_of(model)
        top = place_of(self.reads, len(blocks))
        chosen = range(max(0, top - 2), top + 1) if self.train_layers is None else self.train_layers
        outputs = [mlp_output(blocks[place_of(place, len(blocks))]) for place in chosen]
        return [cast("nn.Parameter", output.weight) for output in outputs]

    def asks(self, material: Material) -> list[Asked]:
        """Questions and answers of both roles, as text."""
        return material.read_whole("forget") + material.read_whole("retain")

    def keep(self, role: Role) -> Keep | None:
        """The hidden states of the retain text."""
        return Keep("hidden", layer=self.reads) if role == "retain" else None

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget tokens of ``mean_d (h - c u)^2``, plus `alpha` times that of ``(h - h_ref)^2`` over the
        retain tokens."""
        hidden_ND = step.logits_NV
        aim_D = self.c * direction(hidden_ND.shape[-1], seed=step.seed).to(hidden_ND.device)
        forget = token_term(step, lambda part: mean_square(part.logits_NV, aim_D))
        retain = token_term(step, _moved, role="retain")
        return combine(step, forget, retain._replace(weight=self.alpha) if retain else None)


def direction(size: int, *, seed: int) -> Tensor:
    """(D,) a fixed unit vector: entries uniform in [0, 1), normalised. Of the seed alone, whatever the device."""
    draw = torch.Generator().manual_seed(random.Random(f"{seed}/rmu").getrandbits(63))
    vector_D = torch.rand(size, generator=draw)
    return vector_D / vector_D.norm()


def _moved(part: Part) -> Tensor:
    assert isinstance(part.signal, Hidden)
    return mean_square(part.logits_NV, part.signal.hidden_ND)
