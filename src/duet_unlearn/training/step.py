"""What a loss is given at a step, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from duet_unlearn.data.examples import Batch, Role, Totals, totals
from duet_unlearn.losses import cross_entropy
from duet_unlearn.teacher.targets import Logps, TeacherTargets
from duet_unlearn.tensors import sum_by_row, token_logps

Unit = Literal["tokens", "positions", "sequences"]


class Part(NamedTuple):
    """The rows of one role in a micro-batch, and what the frozen model says there."""

    logits_NV: Tensor
    labels_N: Tensor | None
    rows_N: Tensor
    """Row of each position, counted within the part."""
    counts: tuple[int, ...]
    """Positions of each row."""
    targets: TeacherTargets | None

    @property
    def num_rows(self) -> int:
        return len(self.counts)

    @property
    def tokens_N(self) -> Tensor:
        """The labels, of rows that have an answer."""
        assert self.labels_N is not None
        return self.labels_N

    @property
    def label_logps_N(self) -> Tensor:
        """Log-probability of each label, in fp32."""
        return token_logps(self.logits_NV, self.tokens_N)

    @property
    def logps_B(self) -> Tensor:
        """(B,) log-probability of each row's answer: the sum over its tokens."""
        return self.by_row(self.label_logps_N)

    @property
    def reference_B(self) -> Tensor:
        """The same of the frozen model."""
        assert isinstance(self.targets, Logps)
        return self.by_row(self.targets.logps_N)

    def by_row(self, values_N: Tensor) -> Tensor:
        """(B,) sums over each row's positions."""
        return sum_by_row(values_N, self.rows_N, self.num_rows)

    @property
    def lengths_B(self) -> Tensor:
        """(B,) positions of each row."""
        return torch.tensor(self.counts, dtype=torch.float32, device=self.rows_N.device)


class Step(NamedTuple):
    """One micro-batch: the student's logits at the batch's N positions, and what the frozen model says there.

    Of a method that reads a block, the (N, D) hidden states stand in place of the logits.
    """

    logits_NV: Tensor
    batch: Batch
    targets: Mapping[Role, TeacherTargets] = {}
    step_totals: Totals | None = None
    """Of the whole optimiser step; None: the micro-batch is all of it."""
    seed: int = 0
    """The run's, for what a method draws once and for all."""

    @property
    def totals(self) -> Totals:
        """Rows and positions of each role in the whole optimiser step."""
        return self.step_totals or totals(self.batch.examples)

    def part(self, role: Role) -> Part | None:
        """The rows of a role; None where the micro-batch has none."""
        examples, device = self.batch.examples, self.logits_NV.device
        chosen = [e.role == role for e in examples for _ in e.positions]
        if not any(chosen):
            return None
        index_N = torch.tensor([n for n, yes in enumerate(chosen) if yes], device=device)
        counts = tuple(len(e.positions) for e in examples if e.role == role)
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        labels_N = self.batch.labels_N
        return Part(
            logits_NV=self.logits_NV if all(chosen) else self.logits_NV[index_N],
            labels_N=labels_N if labels_N is None else labels_N[index_N],
            rows_N=torch.tensor(rows, device=device),
            counts=counts,
            targets=self.targets.get(role),
        )


class LossOut(NamedTuple):
    """A sum and how many units it is over; the loop divides by the count of the whole optimiser step."""

    sum: Tensor
    count: int
    unit: Unit


class Term(NamedTuple):
    """A part of a loss: the sum of its values in this micro-batch, how many values the whole optimiser step has, and
    its weight."""

    sum: Tensor
    total: int
    weight: float = 1.0


def combine(step: Step, *terms: Term | None) -> LossOut:
    """``sum_t weight_t * mean_t``, each mean over the whole optimiser step; None is a term without values here.

    The unit is the sequence; each term is scaled so that the loop's division by the step's sequences leaves means.
    """
    rows, num_rows = sum(step.totals.rows.values()), len(step.batch.examples)
    scaled = [term.sum * (term.weight * rows / term.total) for term in terms if term]
    return LossOut(sum(scaled, start=step.logits_NV.new_zeros((), dtype=torch.float32)), num_rows, "sequences")


def fine_tuning_loss(step: Step) -> LossOut:
    """Sum over the labelled tokens of -log p: plain fine-tuning, as in the lab's pretraining and in relearning."""
    assert step.batch.labels_N is not None
    loss_N = cross_entropy(step.logits_NV, step.batch.labels_N)
    return LossOut(loss_N.sum(), len(loss_N), "tokens")
