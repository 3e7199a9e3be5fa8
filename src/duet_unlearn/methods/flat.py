"""FLAT: an f-divergence between refusals and answers, from forget data alone (arXiv 2410.11143)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from duet_unlearn.data.examples import Role
from duet_unlearn.losses import Divergence, flat
from duet_unlearn.methods.forget import pair_term
from duet_unlearn.methods.material import Material, pairs
from duet_unlearn.teacher.ask import Asked
from duet_unlearn.teacher.signals import Keep
from duet_unlearn.training.step import LossOut, Need, Part, Step, combine


@dataclass(frozen=True)
class Flat:
    """A refusal made likely and the answer unlikely, apart by an f-divergence; reads forget queries alone (FLAT, arXiv
    2410.11143)."""

    name: Literal["flat"] = "flat"
    divergence: Divergence = "kl"
    """The f-divergence: one of the paper's four, of which none is best everywhere."""

    needs: ClassVar[frozenset[Need]] = frozenset({"answers", "refusals"})

    def asks(self, material: Material) -> list[Asked]:
        """The forget answers, each beside a refusal."""
        return pairs(material.answers("forget"), material.refused())

    def keep(self, role: Role) -> Keep | None:
        """Nothing: FLAT has no reference."""
        return None

    def loss(self, step: Step) -> LossOut:
        """Mean over the pairs."""
        term = pair_term(
            step,
            lambda win, lose: flat(mean_probability(win), mean_probability(lose), divergence=self.divergence),
        )
        return combine(step, term)


def mean_probability(part: Part) -> Tensor:
    """(B,) mean over each row's tokens of their probabilities."""
    return part.by_row(part.label_logps_N.exp()) / part.lengths_B
