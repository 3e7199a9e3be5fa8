"""Whether what was forgotten can be brought back, by the evaluation's sets and by attacks, and what was not tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from duet_unlearn.attacks.result import difference
from duet_unlearn.attacks.suite import known_attacks, title_of
from duet_unlearn.report.run_data import SUBJECTS, Column, RunData
from duet_unlearn.report.verdict import OUTCOME_WORDS, AttackSummary, Outcome, attack_summaries, outcome_of
from duet_unlearn.stats import NOTHING, Score

Source = Literal["evaluation", "attack", "by itself"]
INFERENCE = "Using the model without what stands beside it"
ADAPTER = "Taking the adapter off"


@dataclass(frozen=True)
class Entry:
    """One way to the knowledge, and what came of it."""

    source: Source
    """``by itself``: nothing was measured, for the base's weights are in the student."""
    name: str
    title: str
    access: str
    metric: str
    status: str
    outcome: Outcome
    scores: Mapping[str, Score]
    """Of every subject that was asked or attacked: of an attack its strongest instance's."""
    above: Score
    """The student's, less the oracle's."""
    best_of_all: Score = NOTHING
    instance: str = ""
    num_instances: int = 0
    tokens: float = math.nan
    """Through the model, for each fact."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As in ``audit.json``."""
        return {
            **{part: getattr(self, part) for part in ("source", "name", "title", "access", "metric", "status")},
            "outcome": OUTCOME_WORDS[self.outcome],
            **{name: self.scores.get(name, NOTHING).to_json() for name in SUBJECTS},
            "above": self.above.to_json(),
            "best_of_all": self.best_of_all.to_json(),
            "instance": self.instance,
            "instances": self.num_instances,
            "tokens_per_fact": None if math.isnan(self.tokens) else round(self.tokens, 1),
            "notes": list(self.notes),
        }


def entries(run: RunData, *, unmerged: bool, inference: bool, weights: str | None) -> list[Entry]:
    """What the student is by itself, then the evaluation's forget sets, then attacks on the weights of today."""
    attacks = [_attacked(way) for way in attack_summaries(run) if not stale(run, way, weights)]
    return [*_by_itself(unmerged, inference), *_sets(run), *attacks]


def stale(run: RunData, way: AttackSummary, weights: str | None) -> bool:
    """Whether an attack was on other weights than the student's of today; None: they are not known by a hash."""
    stored = run.attacks[way.name].get("student", {})
    return weights is not None and stored.get("weights", weights) != weights


def not_tried(run: RunData, weights: str | None) -> list[dict[str, str]]:
    """What nobody can say anything about, and why; `weights` are the student's identity."""
    found = []
    known = known_attacks()
    if not run.attacks:
        found.append(_gap("attacks", "All attacks", "not attacked: run `duet attack RUN`"))
    for name, one in known.items():
        if run.attacks and "student" not in run.attacks.get(name, {}):
            found.append(_gap(name, title_of(one), "was not run"))
    for way in attack_summaries(run):
        student = way.results.get("student")
        if student and student.status != "done":
            reason = f": {student.reason}" if student.reason else ""
            found.append(_gap(way.name, way.title, f"{student.status}{reason}"))
        if stale(run, way, weights):
            found.append(
                _gap(way.name, way.title, "was run on other weights than the student's of today; run it again")
            )
        found += [
            _gap(way.name, way.title, note) for note in way.notes if note.startswith(("base: att", "oracle: att"))
        ]
    if "oracle" not in run.subjects:
        found.append(
            _gap("oracle", "Comparison with a model that never knew", "no model.oracle; luck counts as nothing")
        )
    elif run.attacks and not any("oracle" in way.results for way in attack_summaries(run)):
        found.append(_gap("oracle", "Comparison with a model that never knew", "the oracle was not attacked"))
    return found


def _gap(name: str, what: str, why: str) -> dict[str, str]:
    return {"name": name, "what": what, "why": why}


def _by_itself(unmerged: bool, inference: bool) -> list[Entry]:
    if not unmerged and not inference:
        return []
    name, title = ("without", INFERENCE) if inference else ("adapter-off", ADAPTER)
    why = "the method changes no weights" if inference else "the run's model is an adapter, saved without its base"
    note = f"{why}: whoever has the weights has the base, and all that it knows"
    entry = Entry("by itself", name, title, "weights", "right", "done", "back", {}, NOTHING, tokens=0.0, notes=(note,))
    return [entry]


def _sets(run: RunData) -> list[Entry]:
    columns = [c for c in run.columns if c.goal == "forget" and c.metric == "right" and c.group != "privacy"]
    return [_set(run, column) for column in columns]


def _set(run: RunData, column: Column) -> Entry:
    scores = {name: found.score(column.name, "right") for name, found in run.subjects.items()}
    guess = scores.get("oracle", NOTHING)
    student, base = (scores.get(name, NOTHING) for name in ("student", "base"))
    above, base_above = (NOTHING if math.isnan(one.value) else difference(one, guess) for one in (student, base))
    outcome = outcome_of("right", above, base_above, oracle=not math.isnan(guess.value))
    status = "not measured" if math.isnan(above.value) else "done"
    access = "" if column.group in ("robustness", "deployer") else "chat"
    return Entry("evaluation", column.name, column.title, access, "right", status, outcome, scores, above)


def _attacked(way: AttackSummary) -> Entry:
    student = way.results.get("student")
    return Entry(
        source="attack",
        name=way.name,
        title=way.title,
        access=way.access,
        metric=way.metric,
        status=student.status if student else "not run",
        outcome=way.outcome,
        scores={name: way.strongest(name) for name in way.results},
        above=way.above,
        best_of_all=student.best_of_all if student else NOTHING,
        instance=way.instance,
        num_instances=len(student.instances) if student else 0,
        tokens=way.tokens_per_fact("student") if student and student.status == "done" else math.nan,
        notes=way.notes,
    )


def verdict_of(found: Sequence[Entry]) -> dict[str, Any]:
    """By what it is recoverable and by what not, in words and as lists of names."""
    lists: Mapping[str, tuple[Outcome, ...]] = {
        "recoverable_by": ("back",),
        "recoverable_in_part_by": ("part",),
        "not_recoverable_by": ("nothing",),
        "inconclusive": ("open", "weak"),
        "traces_under": ("trace",),
        "no_traces_under": ("no trace",),
    }
    members = {name: [one for one in found if one.outcome in outcomes] for name, outcomes in lists.items()}
    return {
        "level": _level(found, members),
        "sentences": _sentences(members) or ["Nothing that was measured tells whether it can be brought back."],
        **{name: [f"{one.source}/{one.name}" for one in own] for name, own in members.items()},
    }


def _level(found: Sequence[Entry], members: Mapping[str, Sequence[Entry]]) -> str:
    if members["recoverable_by"]:
        return "recoverable"
    if members["recoverable_in_part_by"]:
        return "recoverable in part"
    if not any(one.source == "attack" and one.status == "done" for one in found):
        return "not attacked"
    return "inconclusive" if members["inconclusive"] or not members["not_recoverable_by"] else "not recovered"


def _sentences(members: Mapping[str, Sequence[Entry]]) -> list[str]:
    """One of each list that is not empty."""
    words = {
        "recoverable_by": "Recoverable by",
        "recoverable_in_part_by": "Recoverable in part by",
        "not_recoverable_by": "Not recoverable by",
        "inconclusive": "Inconclusive",
        "traces_under": "Traces of it under",
        "no_traces_under": "No trace under",
    }
    return [f"{head}: {'; '.join(map(_named, members[name]))}." for name, head in words.items() if members[name]]


def _named(one: Entry) -> str:
    """``Few-shot (48 %)``: what came back above luck."""
    if one.source == "by itself":
        return f"{one.title} (needs the weights)"
    size = {
        "right": f"{100 * one.above.value:.0f} %",
        "auc": f"AUC {one.above.value:+.2f}",
        "bits": f"{one.above.value:+.1f} bits",
    }
    return f"{one.title} ({size[one.metric]})"
