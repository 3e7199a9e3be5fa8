"""A recipe: everything that decides a run's result, in one tree. The union of the methods below is their register."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, get_args

from duet_unlearn.config.sections import Settings
from duet_unlearn.methods.ascent import GradientAscent, NgDiff, Npo, SatImp, SimNpo, Wga
from duet_unlearn.methods.base import Method
from duet_unlearn.methods.bidirectional import Bidirectional
from duet_unlearn.methods.duet import Duet
from duet_unlearn.methods.guarded import Eco, Guard
from duet_unlearn.methods.preference import AltPo, Dpo, Flat, JensUn, Refusal
from duet_unlearn.methods.prompted import InContext, UnlearningPrefix
from duet_unlearn.methods.reinforced import Rkld, TaskVector, Whp
from duet_unlearn.methods.rmu import Rmu
from duet_unlearn.methods.self_distillation import Ceu, MaxEnt, Shred, Undial
from duet_unlearn.methods.uld import Uld
from duet_unlearn.methods.undo import Undo

AnyMethod = (
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
    | Eco
    | Guard
    | InContext
    | Uld
    | UnlearningPrefix
)
"""What a recipe may name under `method`."""
METHODS: tuple[type[Method], ...] = get_args(AnyMethod)


@dataclass(frozen=True)
class Recipe(Settings):
    """Everything that decides a run's result, in one tree."""

    method: AnyMethod
    """The unlearning method and its settings; `name` chooses it."""


HASHED_AS = {("data", "response_prefixes"): "openers"}
"""Keys that an earlier version named otherwise: the hash keeps the old name, so that a run that it began goes on."""


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of everything that decides the result: all fields but the name and the output folder."""
    values: dict[str, Any] = {key: value for key, value in asdict(recipe).items() if key not in ("name", "out")}
    for (section, key), old in HASHED_AS.items():
        values[section][old] = values[section].pop(key)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
