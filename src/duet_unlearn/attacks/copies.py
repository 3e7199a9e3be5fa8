"""A model as an attacker holds it who has the weights: whole, and to alter as he likes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from duet_unlearn.attacks.asking import ask, plain, whole
from duet_unlearn.attacks.goal import Goal
from duet_unlearn.attacks.result import Instance, NotApplicable, Watch
from duet_unlearn.evals.subject import ModelSubject, Subject
from duet_unlearn.models.blocks import blocks_of
from duet_unlearn.models.load import merged
from duet_unlearn.models.lora import has_adapter
from duet_unlearn.models.quantise import is_quantised

Change = Callable[[int, Tensor], Tensor]
"""The number of a matrix, and the matrix (outputs x inputs, fp32) -> the matrix in its place."""


class Way(NamedTuple):
    """One way of changing every matrix."""

    name: str
    change: Change


def bare(subject: Subject) -> ModelSubject:
    """The subject with its adapters merged into a copy; without adapters itself, not to be altered.

    Raises:
        NotApplicable: what it forgot is not in its weights; these are packed, or held by another program.
    """
    held = whole(subject)
    if not isinstance(held.model, nn.Module):
        raise NotApplicable("another program holds the weights, so nothing can be done to them here")
    if is_quantised(held.model):
        raise NotApplicable("the weights are packed (model.quantise); attack the model as it is saved")
    if not has_adapter(held.model):
        return held
    return replace(held, model=merged(copy.deepcopy(held.model)))


def copied(held: ModelSubject) -> ModelSubject:
    """The same with a model of its own, on the same device."""
    return replace(held, model=copy.deepcopy(held.model))


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Every linear layer of the decoder's blocks, GPT-2's kind too. Embeddings, head and norms are not among them, nor
    are experts that are one fused parameter."""
    from transformers.pytorch_utils import Conv1D

    return [layer for layer in blocks_of(model).modules() if isinstance(layer, nn.Linear | Conv1D)]


def matrices(model: nn.Module) -> list[Tensor]:
    """The weights of ``linear_layers``, outputs x inputs, as views to write into."""
    from transformers.pytorch_utils import Conv1D

    return [
        cast("Tensor", layer.weight).detach().T if isinstance(layer, Conv1D) else cast("Tensor", layer.weight).detach()
        for layer in linear_layers(model)
    ]


def altered(subject: Subject, goal: Goal, watch: Watch, ways: Sequence[Way]) -> list[Instance]:
    """Ask plainly after every way of changing the weights; one copy serves for all of them."""
    held = bare(subject)
    own = copied(held)
    found = []
    for number, way in enumerate(ways):
        with torch.no_grad():
            for place, (mine, weight) in enumerate(zip(matrices(own.model), matrices(held.model), strict=True)):
                mine.copy_(way.change(place, weight.float()))
        found.append(asked(own, goal, way.name))
        watch(number + 1, len(ways))
    return found


def asked(subject: Subject, goal: Goal, name: str, family: str = "") -> Instance:
    """The wanted questions as they are, as one instance."""
    (one,) = ask(subject, plain(goal), goal)
    return replace(one, name=name, family=family)
