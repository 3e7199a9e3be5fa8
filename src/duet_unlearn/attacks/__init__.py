"""What is done to a model in order to get back what it forgot: the list of all attacks, and suites of them.

A suite is a YAML file that says which attacks, with which settings. `result.py` says what an attack finds, and
`attack_base.py` what every attack stands on; each other chapter holds the attacks of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet_unlearn.attacks.attack_base import Attack, AttackGoal, Plain, draw_goal, given_away, run_attack
from duet_unlearn.attacks.contexts import FewShot, FormatShift, InContextRelearn, ManyTurn, NeighbourHops
from duet_unlearn.attacks.fine_tuning import Relearn, Relearned, relearn, relearn_with_adapters, worst
from duet_unlearn.attacks.hidden_states import LogitLens, Probe, RefusalDirection
from duet_unlearn.attacks.optimised_prompts import Gcg, SoftPrompt
from duet_unlearn.attacks.result import (
    AttackResult,
    Instance,
    NotApplicable,
    finding,
)
from duet_unlearn.attacks.rewording import IDEAS, Obfuscation, Renaming, Worded
from duet_unlearn.attacks.token_access import BanRefusals, Beams, Exposure, Logits, Membership, Prefill, Sampling
from duet_unlearn.attacks.weights import Noise, Pruning, Quantisation
from duet_unlearn.config.reading import LOG, SettingsLayer, lines_of, read_yaml, validated
from duet_unlearn.errors import UserError, nearest

ATTACKS: tuple[Attack, ...] = (
    Plain(),
    *(Worded(name) for name in IDEAS),
    Obfuscation(),
    Renaming(),
    FewShot(),
    InContextRelearn(),
    ManyTurn(),
    NeighbourHops(),
    FormatShift(),
    Relearn(),
    relearn_with_adapters(),
    Quantisation(),
    Pruning(),
    Noise(),
    RefusalDirection(),
    LogitLens(),
    Probe(),
    Membership(),
    Exposure(),
    Prefill(),
    Sampling(),
    Beams(),
    BanRefusals(),
    Logits(),
    Gcg(),
    SoftPrompt(),
)
"""Every attack, with its own defaults."""
PACKAGED = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class AttackSuite:
    """Attacks in the order in which they are carried out."""

    name: str
    attacks: tuple[Attack, ...]


def known_attacks() -> dict[str, Attack]:
    """Name -> the attack with its defaults."""
    return {one.name: one for one in ATTACKS}


def suite_names() -> list[str]:
    """Suites that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def load_suite(name: str, only: Sequence[str] = ()) -> AttackSuite:
    """A packaged suite or a suite file; `only` those of its attacks, or attacks that it lacks, with their defaults.

    Raises:
        UserError: no such suite or attack; a setting that an attack has not, or of the wrong type.
    """
    path = PACKAGED / f"{name}.yaml"
    if not path.is_file():
        if Path(name).suffix not in (".yaml", ".yml"):
            close = nearest(name, suite_names())
            hint = f"did you mean {close}?" if close else f"the suites are {', '.join(suite_names())}, or name a file"
            raise UserError(f"unknown attack suite {name!r}", hint)
        path = Path(name)
    values, node = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no attack suite", "a suite has one key, attacks: a list of them")
    layer = SettingsLayer(values, {key: f"{path}:{line}" for key, line in lines_of(node)})
    if extra := [key for key in layer.values if key != "attacks"]:
        raise UserError(f"{path}: {extra[0]}: unknown key", "a suite has one key, attacks: a list of them")
    listed = layer.values.get("attacks")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path}: attacks: is missing or no list", "list attacks, each as `- name: reverse`")
    attacks = [_attack(entry, number, layer, path) for number, entry in enumerate(listed)]
    names = [one.name for one in attacks]
    if twice := [one for one in names if names.count(one) > 1]:
        raise UserError(f"{path}: attack {twice[0]!r} is listed twice", "give one entry all its settings")
    added = [_known_attack(one, "--attack") for one in only]
    chosen = [one for one in attacks if not only or one.name in only]
    return AttackSuite(path.stem, (*chosen, *(one for one in added if one.name not in names)))


def _attack(entry: Any, number: int, layer: SettingsLayer, path: Path) -> Attack:
    """An entry of a suite: an attack's defaults, and the settings that the entry gives."""
    key = ("attacks", str(number))
    place = layer.places.get(key, str(path))
    if not isinstance(entry, dict) or not entry.get("name"):
        raise UserError(f"{place}: attacks.{number}: has no name", "write it as `- name: reverse`")
    default = _known_attack(str(entry["name"]), f"{place}: attacks.{number}.name")
    places = {inner[2:]: where for inner, where in layer.places.items() if inner[:2] == key and len(inner) > 2}
    settings = dict(entry)
    # A suite that was written for an earlier version still runs.
    for new, old in default.stored_names.items():
        if old in settings:
            where = places.pop((old,), place)
            LOG.warning("note: %s: attacks.%s.%s is called %s now", where, number, old, new)
            settings[new], places[(new,)] = settings.pop(old), where
    # Not the class's defaults: `relearn-lora` is a `Relearn` with others.
    layer = SettingsLayer(vars(default) | settings, places)
    return validated(type(default), layer, path, missing="docs/attacks.md describes every attack and its settings")


def _known_attack(name: str, where: str) -> Attack:
    known = known_attacks()
    if name not in known:
        close = nearest(name, list(known))
        hint = f"did you mean {close}?" if close else f"the attacks are {', '.join(known)}"
        raise UserError(f"{where}: unknown attack {name!r}", hint)
    return known[name]


__all__ = [
    "ATTACKS",
    "Attack",
    "AttackGoal",
    "AttackResult",
    "AttackSuite",
    "Instance",
    "NotApplicable",
    "Relearned",
    "draw_goal",
    "finding",
    "given_away",
    "known_attacks",
    "load_suite",
    "relearn",
    "run_attack",
    "suite_names",
    "worst",
]
