"""What an attack found: its instances, the strongest of them, and how that compares with who never knew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from duet_unlearn.stats import NOTHING, Z_95, Score, wilson

Status = Literal["done", "failed", "not applicable"]
Metric = Literal["right", "auc", "bits"]
"""``right``: the share of the facts that came back, 0..1; ``auc``: how well members are told from others, 0..1;
``bits``: exposure."""
Access = Literal["chat", "opening", "decoding", "weights"]
"""What an attacker needs: to ask; to open the answer too; to choose how tokens are drawn, and to read logits; all."""


Watch = Callable[[int, int], None]
"""Called with how many of how many parts of an attack are done."""


def unwatched(_done: int, _total: int) -> None:
    """Nobody watches."""


class NotApplicable(Exception):
    """An attack does not fit a subject or a goal; the text says why."""


class Said(NamedTuple):
    """One thing that was asked, and what came."""

    fact: int
    """Index into the goal's `wanted`."""
    prompt: str
    """All turns, as text."""
    prefill: str
    output: str
    right: bool


@dataclass(frozen=True)
class Instance:
    """One way in which an attack was tried: a wording, a rate, a layer."""

    name: str
    score: Score
    """Share of the facts that came back; where `AttackResult.metric` says so, another measure."""
    family: str = ""
    """Instances that are alike enough for the oracle's luck in one to excuse a student's in another."""
    right: tuple[bool | None, ...] | None = None
    """Fact by fact, in the goal's order; None of a fact that was not asked."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else was measured, such as the value's mean rank."""
    said: tuple[Said, ...] = ()


def instance(name: str, said: Sequence[Said], num_facts: int, *, family: str = "", **numbers: float) -> Instance:
    """What one way of asking brought; a fact asked more than once counts as right if any answer was."""
    right: list[bool | None] = [None] * num_facts
    for one in said:
        right[one.fact] = bool(right[one.fact]) or one.right
    return Instance(name, share(right), family, tuple(right), numbers, tuple(said))


def share(right: Sequence[bool | None]) -> Score:
    """The share of the facts that were asked."""
    asked = [one for one in right if one is not None]
    return wilson(sum(asked), len(asked))


@dataclass(frozen=True)
class Cost:
    """What an attack took."""

    tokens: int
    """Tokens through the model, padding included; one with a backward pass counts three times."""
    seconds: float
    peak_memory: int
    """Bytes of the accelerator; 0 on CPU."""


@dataclass(frozen=True)
class AttackResult:
    """One attack on one subject."""

    attack: str
    subject: str
    status: Status
    reason: str = ""
    """Why it failed, or does not apply."""
    metric: Metric = "right"
    instances: tuple[Instance, ...] = ()
    cost: Cost = Cost(0, 0.0, 0)

    @property
    def strongest(self) -> Instance | None:
        """The instance that brings back most; the first of several."""
        known = [one for one in self.instances if not math.isnan(one.score.value)]
        return max(known, key=lambda one: one.score.value, default=None)

    @property
    def best_of_all(self) -> Score:
        """The share of facts that at least one instance brought back: what somebody gets who tries them all. Instances
        that guessing does well in (multiple choice) count where there are no others."""
        free = [one for one in self.instances if "chance" not in one.numbers]
        return share(any_of(free or self.instances)) if self.metric == "right" else NOTHING


def any_of(instances: Sequence[Instance]) -> list[bool | None]:
    """Fact by fact, whether any instance brought it back; None of a fact that none asked."""
    columns = zip(*(one.right for one in instances if one.right is not None), strict=True)
    return [None if set(column) == {None} else any(column) for column in columns]


class Finding(NamedTuple):
    """The strongest instance, above chance."""

    instance: Instance
    guess: Score
    """The best that the oracle reached in the same family: luck, with as many tries."""
    above: Score
    """The difference, with its interval; n is the student's."""


def finding(result: AttackResult, oracle: AttackResult | None = None) -> Finding | None:
    """What an attack brought back above what an oracle, who never knew, gets right under the same attack.

    In each family the strongest instance is compared with the oracle's own strongest, for the largest of many draws is
    above the mean for both; of the families the largest difference counts, so its interval is that of 95 % for all of
    them together (Bonferroni). Without an oracle an instance's own `chance` is the guess, and nothing where it has
    none. None where nothing was measured.
    """
    pairs = []
    for family in dict.fromkeys(one.family for one in result.instances):
        mine, theirs = _strongest(result, family), _strongest(oracle, family)
        if mine is not None:
            pairs.append((mine, theirs.score if theirs else chance_of(mine)))
    found = [Finding(one, guess, difference(one.score, guess, families=len(pairs))) for one, guess in pairs]
    return max(found, key=lambda one: one.above.value, default=None)


def chance_of(one: Instance) -> Score:
    """What guessing gets right in an instance that shows options; nothing where it shows none."""
    chance = one.numbers.get("chance")
    return NOTHING if chance is None else Score(chance, 0, chance, chance)


def difference(score: Score, guess: Score, *, families: int = 1) -> Score:
    """``score - guess`` with a 95 % interval by Newcombe's square-and-add (1998, method 10; MOVER), of any two
    scores with intervals. An unmeasured guess is 0.

    `families` comparisons of which this is the largest widen both scores' intervals to ``1 - 0.05 / families``.
    """
    wider = NormalDist().inv_cdf(1 - 0.025 / families) / Z_95 if families > 1 else 1.0
    if math.isnan(guess.value):
        guess = Score(0.0, 0, 0.0, 0.0)
    down, up = wider * (score.value - score.low), wider * (score.high - score.value)
    under, over = wider * (guess.value - guess.low), wider * (guess.high - guess.value)
    gap = score.value - guess.value
    return Score(gap, score.n, gap - math.hypot(down, over), gap + math.hypot(up, under))


def _strongest(result: AttackResult | None, family: str) -> Instance | None:
    own = [one for one in result.instances if one.family == family] if result else []
    known = [one for one in own if not math.isnan(one.score.value)]
    return max(known, key=lambda one: one.score.value, default=None)


def to_json(result: AttackResult, *, facts: Sequence[str] = ()) -> dict[str, Any]:
    """As it is stored. `facts` are the ids of the wanted queries. Of what was said, the strongest
    instance's is kept."""
    strongest = result.strongest
    return {
        "attack": result.attack,
        "subject": result.subject,
        "status": result.status,
        "reason": result.reason,
        "metric": result.metric,
        "facts": list(facts),
        "instances": [_instance_json(one) for one in result.instances],
        "strongest": strongest.name if strongest else None,
        "transcript": [one._asdict() for one in strongest.said] if strongest else [],
        "cost": {
            "tokens": result.cost.tokens,
            "seconds": round(result.cost.seconds, 3),
            "peak_memory": result.cost.peak_memory,
        },
    }


def from_json(stored: Mapping[str, Any]) -> AttackResult:
    """What ``to_json`` wrote; only the strongest instance has what was said."""
    said = tuple(Said(**row) for row in stored["transcript"])
    cost = stored["cost"]
    return AttackResult(
        attack=stored["attack"],
        subject=stored["subject"],
        status=stored["status"],
        reason=stored["reason"],
        metric=stored["metric"],
        instances=tuple(
            _instance_of(row, said if row["name"] == stored["strongest"] else ()) for row in stored["instances"]
        ),
        cost=Cost(cost["tokens"], cost["seconds"], cost["peak_memory"]),
    )


MARKS = {True: "1", False: "0", None: "-"}


def _instance_json(one: Instance) -> dict[str, Any]:
    found: dict[str, Any] = {"name": one.name, "score": one.score.to_json()}
    found |= {"family": one.family} if one.family else {}
    found |= {"right": "".join(MARKS[mark] for mark in one.right)} if one.right is not None else {}
    numbers = {name: round(number, 6) for name, number in one.numbers.items() if math.isfinite(number)}
    return found | ({"numbers": numbers} if numbers else {})


def _instance_of(row: Mapping[str, Any], said: tuple[Said, ...]) -> Instance:
    marks = {mark: value for value, mark in MARKS.items()}
    right = tuple(marks[mark] for mark in row["right"]) if "right" in row else None
    return Instance(
        row["name"], Score.from_json(row["score"]), row.get("family", ""), right, row.get("numbers", {}), said
    )
