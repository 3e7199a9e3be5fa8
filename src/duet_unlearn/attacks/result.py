"""What an attack found: its instances, the strongest of them, and how that compares with a model that never knew.

Results are stored as JSON by ``to_json`` and read back by ``from_json``. Where a key of that JSON is not the name of a
field here, it is what an earlier version called it, so that old results still open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from duet_unlearn.stats import NOTHING, Z_95, Score, wilson

Status = Literal["done", "failed", "not applicable"]
Metric = Literal["right", "auc", "bits"]
"""``right``: the share of the facts that came back, 0..1; ``auc``: how well members are told from others, 0..1;
``bits``: exposure."""
Access = Literal["chat", "opening", "decoding", "weights"]
"""What an attacker needs: to ask; to open the answer too; to choose how tokens are drawn, and to read logits; all."""
OnProgress = Callable[[int, int], None]
"""Called with how many of how many parts of an attack are done."""


def no_progress(_done: int, _total: int) -> None:
    """Nobody wants to know."""


class NotApplicable(Exception):
    """An attack does not fit a subject or a goal; the text says why."""


class AttackAnswer(NamedTuple):
    """One question of an attack, and what the subject answered."""

    fact: int
    """Index into the goal's `target_facts`."""
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
    """Instances that are so alike that what the oracle guesses under one may be guessed by a student under another."""
    right: tuple[bool | None, ...] | None = None
    """Fact by fact, in the goal's order; None of a fact that was not asked."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else was measured, such as the value's mean rank."""
    answers: tuple[AttackAnswer, ...] = ()


@dataclass
class Cost:
    """What an attack took; counted while it goes on."""

    tokens: int = 0
    """Tokens through the model, padding included; one with a backward pass counts three times."""
    seconds: float = 0.0
    peak_memory: int = 0
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
    cost: Cost = field(default_factory=Cost)

    @property
    def strongest(self) -> Instance | None:
        """The instance that brings back most; the first of several."""
        return _strongest(self.instances)

    @property
    def best_of_all(self) -> Score:
        """The share of facts that at least one instance brought back: what somebody gets who tries them all. Instances
        that guessing does well in (multiple choice) count where there are no others."""
        if self.metric != "right":
            return NOTHING
        instances = [one for one in self.instances if "chance" not in one.numbers] or self.instances
        columns = zip(*(one.right for one in instances if one.right is not None), strict=True)
        return _share_right([None if set(column) == {None} else any(column) for column in columns])


class AttackFinding(NamedTuple):
    """The strongest instance, above chance."""

    instance: Instance
    chance: Score
    """The best that the oracle reached in the same family, with as many tries: the chance level."""
    above: Score
    """The difference, with its interval; n is the student's."""


def instance(
    name: str, answers: Sequence[AttackAnswer], num_facts: int, *, family: str = "", **numbers: float
) -> Instance:
    """What one way of asking brought; a fact asked more than once counts as right if any answer was."""
    right: list[bool | None] = [None] * num_facts
    for one in answers:
        right[one.fact] = bool(right[one.fact]) or one.right
    return Instance(name, _share_right(right), family, tuple(right), numbers, tuple(answers))


def finding(result: AttackResult, oracle: AttackResult | None = None) -> AttackFinding | None:
    """What an attack brought back above what an oracle, who never knew, gets right under the same attack.

    In each family the strongest instance is compared with the oracle's own strongest, for the largest of many draws is
    above the mean for both; of the families the largest difference counts, so its interval is that of 95 % for all of
    them together (Bonferroni). Without an oracle an instance's own `chance` is subtracted, and nothing where it has
    none. None where nothing was measured.
    """
    pairs = []
    for family in dict.fromkeys(one.family for one in result.instances):
        own, other = (
            _strongest([one for one in each.instances if one.family == family]) if each else None
            for each in (result, oracle)
        )
        if own is None:
            continue
        if other is not None:
            pairs.append((own, other.score))
        elif "chance" in own.numbers:  # it shows options, of which one is drawn blindly
            chance = own.numbers["chance"]
            pairs.append((own, Score(chance, 0, chance, chance)))
        else:
            pairs.append((own, NOTHING))
    found = [AttackFinding(own, chance, difference(own.score, chance, families=len(pairs))) for own, chance in pairs]
    return max(found, key=lambda one: one.above.value, default=None)


def difference(score: Score, chance: Score, *, families: int = 1) -> Score:
    """``score - chance`` with a 95 % interval by Newcombe's square-and-add (1998, method 10; MOVER), of any two
    scores with intervals. An unmeasured chance level is 0.

    `families` comparisons of which this is the largest widen both scores' intervals to ``1 - 0.05 / families``.
    """
    wider = NormalDist().inv_cdf(1 - 0.025 / families) / Z_95 if families > 1 else 1.0
    # An oracle that was not measured leaves the score as it is, and its interval too.
    if math.isnan(chance.value):
        chance = Score(0.0, 0, 0.0, 0.0)
    down, up = wider * (score.value - score.low), wider * (score.high - score.value)
    chance_down, chance_up = wider * (chance.value - chance.low), wider * (chance.high - chance.value)
    gap = score.value - chance.value
    return Score(gap, score.n, gap - math.hypot(down, chance_up), gap + math.hypot(up, chance_down))


def _strongest(instances: Sequence[Instance]) -> Instance | None:
    measured = [one for one in instances if not math.isnan(one.score.value)]
    return max(measured, key=lambda one: one.score.value, default=None)


def _share_right(right: Sequence[bool | None]) -> Score:
    """The share of the facts that were asked."""
    asked = [one for one in right if one is not None]
    return wilson(sum(asked), len(asked))


# How results are stored ----------------------------------------------------------------------------------------------

STORED_AS_THEY_ARE = ("attack", "subject", "status", "reason", "metric")
MARKS = {True: "1", False: "0", None: "-"}


def to_json(result: AttackResult, *, facts: Sequence[str] = ()) -> dict[str, Any]:
    """As it is stored. `facts` are the ids of the target facts' queries. Only the strongest instance's answers are
    kept, as `transcript`."""
    strongest = result.strongest
    rows = []
    for one in result.instances:
        row: dict[str, Any] = {"name": one.name, "score": one.score.to_json()}
        row |= {"family": one.family} if one.family else {}
        row |= {"right": "".join(MARKS[mark] for mark in one.right)} if one.right is not None else {}
        # JSON has neither NaN nor infinity, so such a number is left out.
        numbers = {name: round(number, 6) for name, number in one.numbers.items() if math.isfinite(number)}
        rows.append(row | ({"numbers": numbers} if numbers else {}))
    return {
        **{name: getattr(result, name) for name in STORED_AS_THEY_ARE},
        "facts": list(facts),
        "instances": rows,
        "strongest": strongest.name if strongest else None,
        "transcript": [one._asdict() for one in strongest.answers] if strongest else [],
        "cost": asdict(replace(result.cost, seconds=round(result.cost.seconds, 3))),
    }


def from_json(stored: Mapping[str, Any]) -> AttackResult:
    """What ``to_json`` wrote; only the strongest instance has its answers."""
    transcript = tuple(AttackAnswer(**row) for row in stored["transcript"])
    marks = {mark: value for value, mark in MARKS.items()}
    instances = [
        Instance(
            row["name"],
            Score.from_json(row["score"]),
            row.get("family", ""),
            tuple(marks[mark] for mark in row["right"]) if "right" in row else None,
            row.get("numbers", {}),
            transcript if row["name"] == stored["strongest"] else (),
        )
        for row in stored["instances"]
    ]
    plain = {name: stored[name] for name in STORED_AS_THEY_ARE}
    return AttackResult(**plain, instances=tuple(instances), cost=Cost(**stored["cost"]))
