"""The reinforced model, on which some methods stand: the start model, trained on what is to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass, replace

from duet_unlearn.config.sections import Count, Positive, TrainConfig
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.sft import Sft
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.training.step import LossOut, Step


@dataclass(frozen=True)
class Reinforce:
    """How the reinforced model is trained: cross entropy of the forget answers, all other settings as in `train`. With
    `model.lora` by adapters of the same kind, so that no second model is in memory; else all weights of a copy. It is
    kept in the run folder, as `reinforced/model`."""

    epochs: Count = 3
    """Passes over the forget queries. Ours."""
    rate: Positive = 1e-5
    """Peak learning rate. Ours, as `train.rate`."""
    batch_size: Count = 16
    """Queries an optimiser step. Ours, as `train.batch_size`."""

    def asks(self, material: Material) -> list[Asked]:
        """The forget answers."""
        return material.answers("forget")

    def loss(self, step: Step) -> LossOut:
        """Plain fine-tuning."""
        return Sft().loss(step)


def reinforcing(train: TrainConfig, how: Reinforce) -> TrainConfig:
    """The loop's settings while a reinforced model is trained."""
    own = {"epochs": how.epochs, "rate": how.rate, "batch_size": how.batch_size}
    return replace(train, **own, validate_every=0, early_stop=None)
