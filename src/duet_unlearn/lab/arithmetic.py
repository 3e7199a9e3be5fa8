"""UNDO's task in small: a model of all four operations, and one of plus and minus only (arXiv 2506.06278).

Both also know the lab's general facts, which play the part of the language that must survive.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, Source
from duet_unlearn.data.query import Query
from duet_unlearn.lab import wordings
from duet_unlearn.lab.formats import Sample, Segment, chat, question, statement
from duet_unlearn.lab.pretrain import Pretraining, new_model
from duet_unlearn.lab.tokenizer import Encoder, new_tokenizer
from duet_unlearn.lab.world import world
from duet_unlearn.models.load import save_model
from duet_unlearn.training.loop import Checkpoints, StepLog, train
from duet_unlearn.training.step import fine_tuning_loss

Kind = Literal["arithmetic", "plus-minus"]
Operation = Literal["plus", "minus", "times", "divided by"]
OPERATIONS: dict[Kind, tuple[Operation, ...]] = {
    "arithmetic": ("plus", "minus", "times", "divided by"),
    "plus-minus": ("plus", "minus"),
}
FORGET: tuple[Operation, ...] = ("times", "divided by")
SIGNS: dict[Operation, str] = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
MAX_TERM = 10
SHARE_OF_FACTS = 0.2
"""Share of general facts among the samples."""
SETTINGS = Pretraining(
    hidden=96,
    layers=3,
    heads=3,
    num_steps=1500,
    batch_size=128,
    train=TrainConfig(
        rate=0.02,
        optimizer="muon",
        weight_decay=0.01,
        beta2=0.98,
        warmup=0.03,
        schedule="linear",
        decay=0.6,
        checkpoint_every=100,
    ),
)


def problems(operation: Operation) -> list[tuple[int, int, int]]:
    """All (a, b, result) of an operation: terms 1..10; differences are not negative, quotients whole."""
    terms = range(1, MAX_TERM + 1)
    pairs = [(a, b) for a in terms for b in terms]
    return {
        "plus": [(a, b, a + b) for a, b in pairs],
        "minus": [(a, b, a - b) for a, b in pairs if a >= b],
        "times": [(a, b, a * b) for a, b in pairs],
        "divided by": [(a * b, b, a) for a, b in pairs],
    }[operation]


def arithmetic_queries(operation: Operation) -> list[Query]:
    """Every problem of an operation as a chat question."""
    name = operation.replace(" ", "-")
    return [
        Query(
            id=f"{name}/{a}-{b}",
            messages=({"role": "user", "content": f"What is {a} {operation} {b}?"},),
            answer=f"The result is {result}.",
            value=str(result),
            source=name,
        )
        for a, b, result in problems(operation)
    ]


def pretrain_arithmetic(kind: Kind, folder: Path, *, work: Path) -> Iterator[StepLog]:
    """Train one model of the pair into `folder`. Killed, it goes on."""
    tokenizer = new_tokenizer()
    model = new_model(tokenizer, SETTINGS)
    yield from train(
        model,
        source=_reading(OPERATIONS[kind], Encoder(tokenizer)),
        num_steps=SETTINGS.num_steps,
        loss=fine_tuning_loss,
        targets=None,
        config=SETTINGS.train,
        pad_id=int(tokenizer.pad_token_id or 0),
        checkpoints=Checkpoints(work),
    )
    save_model(model.bfloat16(), tokenizer, folder)


def _reading(operations: tuple[Operation, ...], encode: Encoder) -> Source:
    def source(step: int) -> list[Example]:
        rng = random.Random(f"arithmetic/{step}")
        rows = [encode(draw(operations, rng)) for _ in range(SETTINGS.batch_size)]
        return [
            Example(tuple(ids), tuple(positions), tuple(labels), "retain", f"{step}/{number}")
            for number, (ids, positions, labels) in enumerate(rows)
        ]

    return source


def draw(operations: tuple[Operation, ...], rng: random.Random) -> Sample:
    """A general fact, a problem in words, or an equation as raw text."""
    if rng.random() < SHARE_OF_FACTS:
        general = world().general
        fact = rng.choice(general[rng.choice([subject for subject in general if subject != "arithmetic"])])
        return chat((question(fact, rng.choice(wordings.QUESTIONS[fact.attribute].all)), statement(fact)))
    operation = rng.choice(operations)
    a, b, result = rng.choice(problems(operation))
    if rng.random() < 0.5:
        return chat((f"What is {a} {operation} {b}?", f"The result is {result}."))
    left = Segment("text", f"{a} {SIGNS[operation]} {b} =", False)
    return Sample((left, Segment("text", f" {result}", True)))
