"""Attack suites: which attacks, with which settings, as a YAML file says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duet_unlearn.attacks.decoding import BanRefusals, Beams, Sampling
from duet_unlearn.attacks.directions import RefusalDirection
from duet_unlearn.attacks.examples import FewShot, InContextRelearn
from duet_unlearn.attacks.forms import FormatShift
from duet_unlearn.attacks.gcg import Gcg
from duet_unlearn.attacks.hidden import LogitLens, Probe
from duet_unlearn.attacks.logits import Logits
from duet_unlearn.attacks.plain import Plain
from duet_unlearn.attacks.prefill import Prefill
from duet_unlearn.attacks.privacy import Exposure, Membership
from duet_unlearn.attacks.prompts import IDEAS, Worded
from duet_unlearn.attacks.relearning import ADAPTERS, Relearn, with_adapters
from duet_unlearn.attacks.run import Attack
from duet_unlearn.attacks.soft import SoftPrompt
from duet_unlearn.attacks.spelling import Obfuscation, Renaming
from duet_unlearn.attacks.talk import ManyTurn, NeighbourHops
from duet_unlearn.attacks.weights import Noise, Pruning, Quantisation
from duet_unlearn.config.reading import SettingsLayer, lines_of, read_yaml, validated
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
    with_adapters(),
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
DESCRIBED = "docs/attacks.md describes every attack and its settings"


@dataclass(frozen=True)
class AttackSuite:
    """Attacks in the order in which they are carried out."""

    name: str
    attacks: tuple[Attack, ...]


def title_of(attack: Attack) -> str:
    """An attack's name for people."""
    if isinstance(attack, Worded):
        return IDEAS[attack.name][0]
    return ADAPTERS if isinstance(attack, Relearn) and attack.rank else attack.title


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
    path = _locate(name)
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
    known = known_attacks()
    for wanted in only:
        if wanted not in known:
            raise _unknown(wanted, "--attack")
    chosen = [one for one in attacks if not only or one.name in only]
    return AttackSuite(path.stem, (*chosen, *(known[one] for one in only if one not in names)))


def _locate(name: str) -> Path:
    packaged = PACKAGED / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    close = nearest(name, suite_names())
    hint = f"did you mean {close}?" if close else f"the suites are {', '.join(suite_names())}, or name a file"
    raise UserError(f"unknown attack suite {name!r}", hint)


def _attack(entry: Any, number: int, layer: SettingsLayer, path: Path) -> Attack:
    key = ("attacks", str(number))
    place = layer.places.get(key, str(path))
    if not isinstance(entry, dict) or not entry.get("name"):
        raise UserError(f"{place}: attacks.{number}: has no name", "write it as `- name: reverse`")
    found = known_attacks().get(str(entry["name"]))
    if found is None:
        raise _unknown(str(entry["name"]), f"{place}: attacks.{number}.name")
    own = {inner[2:]: where for inner, where in layer.places.items() if inner[:2] == key and len(inner) > 2}
    return validated(type(found), SettingsLayer(asdict(found) | entry, own), path, missing=DESCRIBED)


def _unknown(name: str, where: str) -> UserError:
    known = list(known_attacks())
    close = nearest(name, known)
    return UserError(
        f"{where}: unknown attack {name!r}",
        f"did you mean {close}?" if close else f"the attacks are {', '.join(known)}",
    )


__all__ = ["ATTACKS", "AttackSuite", "known_attacks", "load_suite", "suite_names", "title_of"]
