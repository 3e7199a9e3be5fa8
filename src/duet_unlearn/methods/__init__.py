"""Every method is one frozen dataclass; the union below is the register."""

from __future__ import annotations

from typing import get_args

from torch import nn

from duet_unlearn.data.examples import Role
from duet_unlearn.errors import UserError
from duet_unlearn.methods.altpo import AltPo
from duet_unlearn.methods.bidirectional import Bidirectional
from duet_unlearn.methods.ceu import Ceu
from duet_unlearn.methods.detected import Eco, Guard
from duet_unlearn.methods.dpo import Dpo
from duet_unlearn.methods.duet import Duet
from duet_unlearn.methods.flat import Flat
from duet_unlearn.methods.ga import GradientAscent
from duet_unlearn.methods.jensun import JensUn
from duet_unlearn.methods.material import Material, packaged_texts
from duet_unlearn.methods.maxent import MaxEnt
from duet_unlearn.methods.ngdiff import NgDiff
from duet_unlearn.methods.npo import Npo
from duet_unlearn.methods.prompted import InContext, UnlearningPrefix
from duet_unlearn.methods.refusal import Refusal
from duet_unlearn.methods.reinforce import Reinforce
from duet_unlearn.methods.rkld import Rkld
from duet_unlearn.methods.rmu import Rmu
from duet_unlearn.methods.satimp import SatImp
from duet_unlearn.methods.sft import Sft
from duet_unlearn.methods.shred import Shred
from duet_unlearn.methods.simnpo import SimNpo
from duet_unlearn.methods.task_vector import TaskVector
from duet_unlearn.methods.uld import Uld
from duet_unlearn.methods.undial import Undial
from duet_unlearn.methods.undo import Undo
from duet_unlearn.methods.wga import Wga
from duet_unlearn.methods.whp import Whp
from duet_unlearn.models.blocks import BlockIndex
from duet_unlearn.training.step import Gradients, LossOut, Step

Trained = (
    AltPo
    | Bidirectional
    | Ceu
    | Dpo
    | Duet
    | Flat
    | GradientAscent
    | JensUn
    | MaxEnt
    | NgDiff
    | Npo
    | Refusal
    | Rkld
    | Rmu
    | SatImp
    | Shred
    | SimNpo
    | TaskVector
    | Undial
    | Undo
    | Wga
    | Whp
)
"""Methods that change weights: their student is a model."""
Inference = Eco | Guard | InContext | Uld | UnlearningPrefix
"""Methods that put something beside the model: its weights stay as they are, and their student is a subject."""
Learner = Trained | Uld
"""Methods for which the loop trains something: a model, or what stands beside it."""
Reinforced = Rkld | TaskVector | Whp
"""Methods that stand on a reinforced model; of a `TaskVector` that alone is trained, and the student is an edit."""
Method = Trained | Inference
"""What a recipe may name under `method`. `Sft` trains on answers and forgets nothing: the lab and relearning use it."""
METHODS: tuple[type[Method], ...] = get_args(Method)


def learner(method: Method) -> Learner:
    """The method, where the loop trains something for it.

    Raises:
        UserError: nothing is trained.
    """
    if isinstance(method, Learner):
        return method
    raise UserError(f"method {method.name}: trains nothing", "`duet run` needs little more than the model itself")


def check_keeps(method: Learner, vocabulary: int) -> None:
    """What the target cache is to hold must exist.

    Raises:
        UserError: K exceeds the vocabulary.
    """
    for role in get_args(Role):
        if keep := method.keep(role):
            keep.check(vocabulary)


def layer_of(method: Method) -> BlockIndex | None:
    """The block whose output a method's loss reads in place of logits."""
    return method.reads if isinstance(method, Rmu) else None


def gradients_of(method: Method) -> Gradients:
    """How a method's terms become a step's gradient."""
    return "unit by role" if isinstance(method, NgDiff) else "sum"


def choose_weights(method: Method, model: nn.Module) -> None:
    """Freeze what a method does not train.

    Raises:
        UserError: what it trains is not in the model.
    """
    if isinstance(method, Rmu):
        chosen = method.trains(model)
        model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)


__all__ = [
    "METHODS",
    "AltPo",
    "Bidirectional",
    "Ceu",
    "Dpo",
    "Duet",
    "Eco",
    "Flat",
    "GradientAscent",
    "Guard",
    "InContext",
    "Inference",
    "JensUn",
    "Learner",
    "LossOut",
    "Material",
    "MaxEnt",
    "Method",
    "NgDiff",
    "Npo",
    "Refusal",
    "Reinforce",
    "Reinforced",
    "Rkld",
    "Rmu",
    "SatImp",
    "Sft",
    "Shred",
    "SimNpo",
    "Step",
    "TaskVector",
    "Trained",
    "Uld",
    "Undial",
    "Undo",
    "UnlearningPrefix",
    "Wga",
    "Whp",
    "check_keeps",
    "choose_weights",
    "gradients_of",
    "layer_of",
    "learner",
    "packaged_texts",
]
