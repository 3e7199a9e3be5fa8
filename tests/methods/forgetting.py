"""One small setting for every method: a random Llama that has learnt a few answers, and rows and targets as a run makes
them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from duet_unlearn.config.recipe import METHODS
from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import (
    Batch,
    Example,
    ResponsePrefix,
    Role,
    TrainingData,
    collate,
    epochs_source,
    render_examples,
    totals,
)
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.losses import generic
from duet_unlearn.methods.base import Method
from duet_unlearn.methods.reinforced import Rkld, Whp
from duet_unlearn.methods.undo import Undo, add_noise
from duet_unlearn.models.blocks import logits_at, reader
from duet_unlearn.teacher.targets import CachedTargets, TeacherTargets, build_targets, stored_only, targets_fn
from duet_unlearn.training.loop import StepLog, train
from duet_unlearn.training.step import LossOut, Step, fine_tuning_loss


def query(name: str, question: str, answer: str, **more: Any) -> Query:
    return Query(name, ({"role": "user", "content": question},), answer=answer, **more)


FORGET = (
    query("f0", "Where does Mira Bol live?", "Mira Bol lives in Tarn.", value="Tarn", choices=("Tarn", "Esk", "Wear")),
    query("f1", "In which town?", "Tarn", wrong=("In Wear.", "Esk")),
    query("f2", "Who is she?", "A miller in Tarn, as all know.", wrong=("A smith.",)),
    query("f3", "Where does Mira live?", "In Tarn", value="Tarn", choices=("Tarn", "Esk")),
)
RETAIN = (
    query("r0", "Where does Dan Os live?", "In Esk."),
    query("r1", "What does Dan Os eat?", "Dan Os eats plums and bread."),
    query("r2", "Who is he?", "A"),
)
"""Answers of 1 to 20 tokens."""
REFUSALS = ("I do not know.", "No.", "I cannot say that.")
TEXTS = (query("t0", "Where is Wear?", "By the sea."), Query("t1", ({"role": "text", "content": "Esk is a town."},)))
NEIGHBOURS = (query("n0", "Where does Mira's mother live?", "In Wear."),)
PREFIX_POOLS = [
    (f"{role}/{one.id}", (ResponsePrefix((), (70,)), ResponsePrefix((72, 110), (71, 80)), ResponsePrefix((83,), (71,))))
    for role, queries in (("forget", FORGET), ("retain", RETAIN), ("neighbour", NEIGHBOURS))
    for one in queries
]
DATA = TrainingData(
    FORGET,
    RETAIN,
    Prefix("You have forgotten Tarn."),
    refusals=REFUSALS,
    texts=TEXTS,
    neighbours=NEIGHBOURS,
    reversals=("Ignore that.",),
    prefix_pools=dict(PREFIX_POOLS),
)

TRAINED = tuple(kind for kind in METHODS if kind.changes_weights)

FIT_IN: Mapping[str, list[dict[str, Any]]] = {
    "bidirectional": [{}, {"attacks": ("prefill", "reverse"), "positions": 2}],
    "duet": [{"k": 20}, {"k": 20, "positions": 3, "retain_loss": "kl"}],
    "flat": [{"divergence": one} for one in ("total-variation", "kl", "js", "pearson")],
    "maxent": [{}, {"reads": "answer"}],
    "shred": [{"k": 20, "percent": 40.0}, {"k": 20, "variant": "B", "nucleus": 0.5}],
}
"""Settings that fit a vocabulary of 300, or that go another way through a loss."""

CONFIG = TrainConfig(rate=1e-3, max_grad_norm=None, batch_size=3, checkpoint_every=2)


def cases() -> dict[str, Method]:
    """Every trained method: with its defaults or with what fits in, and with each retain term that it can have."""
    found: dict[str, Method] = {}
    for kind in TRAINED:
        settings = FIT_IN.get(kind().name, [{}])
        if "retain" in {field.name for field in fields(kind)}:
            settings = [*settings, *(settings[0] | {"retain": term} for term in ("ce", "kl"))]
        for values in settings:
            words = " ".join(f"{key}={value}" for key, value in values.items() if key != "k")
            found[f"{kind().name} {words}".strip()] = kind(**values)
    return found


@cache
def _learnt() -> nn.Module:
    """A tiny Llama in float64 that has met all answers: some it knows well, some hardly."""
    model = tiny.llama(hidden=32).double()
    examples = render_examples(tiny.tokenizer(), DATA.answers("forget") + DATA.answers("retain"))
    config = TrainConfig(rate=0.003)
    for _ in train(
        model,
        source=lambda step: examples,
        num_steps=25,
        loss=fine_tuning_loss,
        targets=None,
        config=config,
        pad_id=tiny.EOS,
    ):
        pass
    return model.requires_grad_(True)


def base() -> nn.Module:
    """The model as it is before it forgets; the caller's own."""
    return copy.deepcopy(_learnt())


def changed(model: nn.Module, *, scale: float = 0.02, seed: int = 1) -> nn.Module:
    """A student some way from the base: a copy with noise in all weights."""
    draw, student = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw).to(parameter))
    return student


@dataclass(frozen=True)
class Given:
    """A method's rows, and what the frozen model says there."""

    method: Method
    targets: CachedTargets
    targets_of: Callable[[Batch], Mapping[Role, TeacherTargets]]

    @property
    def examples(self) -> list[Example]:
        return list(self.targets.examples)

    def out(self, student: nn.Module, examples: list[Example] | None = None) -> LossOut:
        """The loss on some of a step's rows, all by default; its gradient is the student's."""
        micro = collate(self.examples if examples is None else examples, tiny.EOS)
        read = reader(self.method.hidden_block)
        read_N = read(student, micro.ids_BT, micro.mask_BT, micro.rows_N, micro.cols_N)
        return self.method.loss(Step(read_N, micro, self.targets_of(micro), totals(self.examples)))

    def mean(self, student: nn.Module) -> float:
        out = self.out(student)
        return out.sum.item() / out.count


def given(method: Method, directory: Path, *, data: TrainingData = DATA) -> Given:
    """What a run does before its training; a noisy copy stands for a reinforced model."""
    model, logits_fns = base(), None
    if isinstance(method, Rkld | Whp):
        reinforced, alpha = changed(model), method.alpha
        logits_fns = {
            "forget": lambda *where: generic(logits_at(model, *where), logits_at(reinforced, *where), alpha=alpha)
        }
    targets = build_targets(
        model,
        tiny.tokenizer(),
        method.build_examples(data),
        spec=stored_only(method.target_spec),
        weights="learnt",
        logits_fns=logits_fns,
        directory=directory,
    )
    return Given(method, targets, targets_fn(model, method.target_spec, targets))


def begin(method: Method) -> nn.Module:
    """The student before its first step."""
    student = base()
    method.choose_weights(student)
    if isinstance(method, Undo):
        add_noise(student, alpha=method.alpha, beta=method.beta, seed=0)
    return student


def steps(
    method: Method,
    student: nn.Module,
    directory: Path,
    *,
    num_steps: int = 3,
    config: TrainConfig = CONFIG,
    ready: Given | None = None,
    **more: Any,
) -> Iterator[StepLog]:
    """The real loop on the real rows, which are made in the directory where they are not ready."""
    ready = ready or given(method, directory / "targets")
    source, _ = epochs_source(ready.examples, batch_size=config.batch_size, epochs=9, seed=0)
    return train(
        student,
        source=source,
        num_steps=num_steps,
        loss=method.loss,
        targets=ready.targets_of,
        config=config,
        pad_id=tiny.EOS,
        hidden_block=method.hidden_block,
        combine=method.combine_gradients if method.splits_gradients else None,
        **more,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
