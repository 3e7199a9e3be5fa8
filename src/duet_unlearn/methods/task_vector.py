"""Task vectors: subtract what training on the forget answers adds (arXiv 2212.04089)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from duet_unlearn.config.sections import Positive
from duet_unlearn.data.examples import Role
from duet_unlearn.methods.material import Material
from duet_unlearn.methods.reinforce import Reinforce
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.training.step import LossOut, Need, Step


@dataclass(frozen=True)
class TaskVector:
    """An edit of the weights: ``theta - scale (theta_reinforced - theta)`` (task arithmetic, arXiv 2212.04089). Only
    the reinforced model is trained, as `reinforce` says; of the section `train` its epochs, rate and batch size have no
    effect. With `model.lora` the student is the reinforced model's adapter, turned round."""

    name: Literal["task-vector"] = "task-vector"
    scale: Positive = 1.0
    """How much of the difference is subtracted; to be chosen on held-out queries, as in the paper. 1 is all of it."""
    reinforce: Reinforce = field(default_factory=Reinforce)
    """How the reinforced model is trained."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "reinforced"})

    def asks(self, material: Material) -> list[Asked]:
        """What the reinforced model is trained on."""
        return self.reinforce.asks(material)

    def keep(self, role: Role) -> None:
        """Nothing: no frozen model is asked."""

    def loss(self, step: Step) -> LossOut:
        """That of the reinforced model."""
        return self.reinforce.loss(step)
