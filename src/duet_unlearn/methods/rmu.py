"""RMU: representation misdirection (arXiv 2403.03218)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from duet_unlearn.config.sections import Positive, Settings, Whole
from duet_unlearn.data.examples import Example, Role, TrainingData
from duet_unlearn.errors import UserError
from duet_unlearn.losses import mean_square
from duet_unlearn.methods.base import Method, Need, token_term
from duet_unlearn.models.blocks import BlockIndex, blocks_of, mlp_output, place_of
from duet_unlearn.teacher.targets import Hidden, TargetSpec
from duet_unlearn.training.step import LossOut, Part, Step, combine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rmu(Method):
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
    takes_adapters: ClassVar[bool] = False

    def check_packing(self, settings: Settings, *, quantised: bool) -> None:
        """See ``Method``.

        Raises:
            UserError: adapters, or quantised weights.
        """
        if settings.model.lora or quantised:
            raise UserError(
                "method rmu trains chosen weights of the model itself, not adapters",
                "set model.lora to null, and take the unquantised model",
            )

    def check_model(self, model: PreTrainedModel, settings: Settings) -> None:
        """See ``Method``: its matrices must be in the model."""
        super().check_model(model, settings)
        self.trained_weights(model)

    @property
    def hidden_block(self) -> BlockIndex:
        """The block whose output the loss reads."""
        return "middle" if self.layer is None else self.layer

    def trained_weights(self, model: nn.Module) -> list[nn.Parameter]:
        """The weights that are trained: matrices without their bias, as in the published code.

        Raises:
            UserError: a block that the model has not; one whose MLP has no last matrix.
        """
        blocks = blocks_of(model)
        top = place_of(self.hidden_block, len(blocks))
        chosen = range(max(0, top - 2), top + 1) if self.train_layers is None else self.train_layers
        outputs = [mlp_output(blocks[place_of(place, len(blocks))]) for place in chosen]
        return [cast("nn.Parameter", output.weight) for output in outputs]

    def choose_weights(self, model: nn.Module) -> None:
        """Freeze all but the chosen matrices."""
        chosen = self.trained_weights(model)
        model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)

    def build_examples(self, data: TrainingData) -> list[Example]:
        """Questions and answers of both roles, as text."""
        return data.answers("forget", reads="text") + data.answers("retain", reads="text")

    def target_spec(self, role: Role) -> TargetSpec | None:
        """The hidden states of the retain text."""
        return TargetSpec("hidden", layer=self.hidden_block) if role == "retain" else None

    def loss(self, step: Step) -> LossOut:
        """Mean over the forget tokens of ``mean_d (h - c u)^2``, plus `alpha` times that of ``(h - h_ref)^2`` over the
        retain tokens."""
        hidden_ND = step.logits_NV
        aim_D = self.c * direction(hidden_ND.shape[-1], seed=step.seed).to(hidden_ND.device)
        forget = token_term(step, lambda part: mean_square(part.logits_NV, aim_D))

        def moved(part: Part) -> Tensor:
            assert isinstance(part.targets, Hidden)
            return mean_square(part.logits_NV, part.targets.hidden_ND)

        return combine(step, forget, token_term(step, moved, role="retain", weight=self.alpha))


def direction(size: int, *, seed: int) -> Tensor:
    """(D,) a fixed unit vector: entries uniform in [0, 1), normalised. Of the seed alone, whatever the device."""
    draw = torch.Generator().manual_seed(random.Random(f"{seed}/rmu").getrandbits(63))
    vector_D = torch.rand(size, generator=draw)
    return vector_D / vector_D.norm()
