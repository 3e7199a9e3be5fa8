"""Numbers that take several sets, or another subject beside: model utility, forget quality, PrivLeak, a shift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from duet_unlearn.evals.likelihood import auc_score, priv_leak
from duet_unlearn.evals.summaries import performance_shift
from duet_unlearn.stats import Score

Sample = Mapping[str, Any]
AUC_OF = {
    "auc_min_k": "min_k",
    "auc_min_k_plus_plus": "min_k_plus_plus",
    "auc_loss": "loss",
    "auc_zlib": "zlib",
}
"""AUC -> the membership score that it is of."""


class Result(NamedTuple):
    """What one subject scored, and what it was scored on."""

    scores: Mapping[str, Mapping[str, Score]]
    """Set -> metric -> score."""
    samples: Sequence[Sample]

    def of(self, set_name: str) -> list[Sample]:
        """The samples of a set."""
        return [sample for sample in self.samples if sample["set"] == set_name]

    def membership(self, set_name: str, score: str) -> list[float]:
        """A membership score of each answer of a set, higher for non-members."""
        return [sample["likelihood"][score] for sample in self.of(set_name)]


@dataclass(frozen=True)
class Summary:
    """A column of its own in the table, made from other columns."""

    name: str
    title: str
    about: str
    better: Literal["low", "high", "zero"]
    scores: Mapping[str, Score]
    """Metric -> score; the first stands for it in a table."""

    @property
    def info(self) -> dict[str, str]:
        """What a report needs to know of it, as of a set."""
        return {
            "title": self.title,
            "group": "summary",
            "better": self.better,
            "about": self.about,
            "metric": next(iter(self.scores)),
        }


def bare(value: float, n: int) -> Score:
    """A number without an interval; NaN has no questions behind it."""
    return Score(value, 0 if math.isnan(value) else n, math.nan, math.nan)


def membership(
    own: Result, oracle: Result | None, *, name: str, members: str, non_members: str, unread: float, about: str
) -> Summary:
    """How well four membership scores tell two sets apart.

    Neither end of an AUC is good: the ideal is that of a model that never read the members. What stands for it in a
    table is therefore the AUC of min-k less the oracle's; where there is none, less `unread`: 0.5 for non-members that
    no model has read, NaN where nobody knows.
    """
    areas = {auc: _area(own, members, non_members, of) for auc, of in AUC_OF.items()}
    ideal = _area(oracle, members, non_members, "min_k").value if oracle else unread
    gap = bare(areas["auc_min_k"].value - ideal, areas["auc_min_k"].n)
    title = "Membership AUC less the ideal (min-k 20 %)"
    return Summary(f"{name}_membership", title, about, "zero", {"auc_gap": gap, **areas})


def privacy_leak(
    own: Result, oracle: Result | None, *, name: str, members: str, non_members: str, note: str = ""
) -> Summary:
    """PrivLeak (MUSE, arXiv 2407.06460) on min-k 40 % against the retrained model; NaN without one. `note` is what the
    reader must know of the two sets."""
    area = _area(own, members, non_members, "min_k_40")
    value = priv_leak(area.value, _area(oracle, members, non_members, "min_k_40").value) if oracle else math.nan
    about = (
        "PrivLeak: AUC of min-k 40 % against the retrained model's (the oracle's), in per cent; 0 ideal, below 0"
        " remembered, above 0 over-unlearned; n/a without an oracle."
    )
    about = f"{about} {note}".rstrip()
    return Summary(f"{name}_priv_leak", "PrivLeak", about, "zero", {"points": bare(value, area.n)})


def _area(result: Result, members: str, non_members: str, score: str) -> Score:
    """The AUC of a membership score between two sets."""
    return auc_score(result.membership(members, score), result.membership(non_members, score))


def shift(
    own: Result, base: Result | None, *, name: str, forget: Mapping[str, str], keep: Mapping[str, str]
) -> list[Summary]:
    """Performance Shift against the base (arXiv 2601.21283) over the sets, each with its metric; none for the base, or
    where a set was not asked."""
    parts = {**forget, **keep}
    if base is None or not set(parts) <= own.scores.keys() & base.scores.keys():
        return []
    mine, theirs = ({of: {"part": result.scores[of][metric]} for of, metric in parts.items()} for result in (own, base))
    score = performance_shift(theirs, mine, forget=tuple(forget), keep=tuple(keep), metric="part")
    about = f"Falls of {', '.join(forget)} plus changes of {', '.join(keep)} against the base, in points."
    return [Summary(f"{name}_shift", "Performance Shift", about, "high", {"points": score})]
