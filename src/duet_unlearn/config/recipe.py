"""A recipe: everything that decides a run's result, in one tree."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from duet_unlearn.config.sections import DataConfig, EvalConfig, ModelConfig, PrefixConfig, TrainConfig
from duet_unlearn.methods import Method


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result, in one tree."""

    name: str
    """Name in tables; a file that gives none has its own."""
    concept: str
    """What is to be forgotten, as the prefix words it: "the story Amber Gate"."""
    model: ModelConfig
    """The model."""
    data: DataConfig
    """The queries."""
    method: Method
    """The unlearning method and its settings; `name` chooses it."""
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    """The teacher's prefix."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    """The evaluation."""
    after: str | None = None
    """A recipe whose method and training (its sections `method`, `train` and `model.lora`) come first, on this recipe's
    data; this one starts from its student. Its run lies in the folder `before` of this run. null: none."""
    seed: int = 0
    """Order of the queries and every other draw."""
    out: str | None = None
    """Run folder, relative to where the command is given; null: runs/<name>-<short hash of the recipe>."""


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of everything that decides the result: all fields but the name and the output folder."""
    values = {key: value for key, value in asdict(recipe).items() if key not in ("name", "out")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
