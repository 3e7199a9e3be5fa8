"""Every loss of answers, through the method itself, with numbers by hand: two answers of different lengths, so that a
mean over tokens, over rows and a mean of means are three numbers."""

from __future__ import annotations

from dataclasses import fields, replace
from math import exp, log, tanh

import pytest
import torch
from torch import Tensor

from duet_unlearn.data.examples import Example, Role, collate
from duet_unlearn.methods.ascent import GradientAscent, Npo, SatImp, SimNpo, Wga
from duet_unlearn.methods.base import Method
from duet_unlearn.methods.preference import AltPo, Dpo, Flat, Refusal
from duet_unlearn.methods.self_distillation import Ceu, MaxEnt, Shred, Undial
from duet_unlearn.teacher.targets import Dense, Logps, TeacherTargets, TopLogps
from duet_unlearn.training.step import Step

LIKELY, EVEN, EIGHTH = (1 / 2, 1 / 6, 1 / 6, 1 / 6), (1 / 4,) * 4, (1 / 8, 5 / 8, 1 / 8, 1 / 8)
HALF = (1 / 2, 1 / 2, 1e-30, 1e-30)
STUDENT: dict[str, list[tuple[Role, list[tuple[tuple[float, ...], int]]]]] = {
    # The probability of the label: 1/2 and 1/4; 1/2.
    "forget": [("forget", [(LIKELY, 0), (EVEN, 1)]), ("forget", [(LIKELY, 0)])],
    # 1/4; 1/2 and 1/2.
    "preferred": [("preferred", [(EVEN, 2)]), ("preferred", [(HALF, 0), (HALF, 1)])],
    # 1/8.
    "retain": [("retain", [(EIGHTH, 0)])],
}
BASE_LOGPS: dict[str, list[float]] = {"forget": [1 / 4, 1 / 4, 1 / 2], "preferred": [1 / 16, 1 / 2, 1 / 2]}
"""The frozen model's probabilities of the same labels."""
BASE_ROWS: dict[str, list[tuple[float, ...]]] = {
    "forget": [LIKELY, (0.4, 0.1, 0.3, 0.2), LIKELY],
    "retain": [EVEN],
}


def logits(rows: list[tuple[float, ...]]) -> Tensor:
    """A constant on top, which no loss may see."""
    return torch.tensor(rows).log() + 3.0


def step_of(method: Method, roles: tuple[str, ...]) -> Step:
    """One micro-batch, a pair side by side."""
    chosen = [STUDENT[role] for role in roles]
    rows = [row for together in zip(*chosen, strict=True) for row in together] if len(chosen) > 1 else chosen[0]
    if getattr(method, "retain", "none") != "none":
        rows = rows + STUDENT["retain"]
    examples = [
        Example((9,) * len(said), tuple(range(len(said))), tuple(label for _, label in said), role, str(number))
        for number, (role, said) in enumerate(rows)
    ]
    batch = collate(examples, 0)
    logits_NV = logits([p for _, said in rows for p, _ in said])
    return Step(logits_NV, batch, {e.role: signal for e in examples if (signal := signal_of(method, e.role))})


def signal_of(method: Method, role: Role) -> TeacherTargets | None:
    keep = method.target_spec(role)
    match keep.kind if keep else None:
        case "logps":
            return Logps(torch.tensor(BASE_LOGPS[role]).log())
        case "dense":
            return Dense(logits(BASE_ROWS[role]))
        case "top-logps":
            p_NV = torch.tensor(BASE_ROWS[role])
            best, ids = p_NV.topk(4)
            return TopLogps(ids, best.log(), p_NV[[0, 1, 2], [0, 1, 0]].log())
    return None


L2 = log(2)
FORGET, PAIRS = ("forget",), ("forget", "preferred")
BY_HAND: list[tuple[Method, tuple[str, ...], float]] = [
    (GradientAscent(), FORGET, (-L2 - 2 * L2 - L2) / 3),
    # p / p_ref: (1/8) / (1/16) = 2 and 1.
    (Npo(beta=1.0), FORGET, (2 * log(1 + 2) + 2 * log(1 + 1)) / 2),
    (Npo(beta=2.0), FORGET, (log(1 + 4) + log(2)) / 2),
    # Mean log p: -3/2 log 2 and -log 2.
    (SimNpo(beta=2.0), FORGET, (log(1 + 2**-3) + log(1 + 2**-2)) / 2),
    (SimNpo(beta=1.0, gamma=L2), FORGET, (2 * log(1 + 2 * 2**-1.5) + 2 * log(1 + 1)) / 2),
    # p / p_ref of the wins: 4 and 1; of the answers 2 and 1.
    (Dpo(beta=1.0), PAIRS, (log(1 + 1 / 2) + L2) / 2),
    (AltPo(beta=2.0), PAIRS, (log(1 + 1 / 4) + L2) / 2),
    # Mean probabilities of answers 3/8 and 1/2, of wins 1/4 and 1/2.
    (Flat(), PAIRS, (exp(3 / 8 - 1) - 1 / 4 + exp(1 / 2 - 1) - 1 / 2) / 2),
    (Flat(divergence="total-variation"), PAIRS, (tanh(3 / 8) - tanh(1 / 4)) / 4),
    (Flat(divergence="pearson"), PAIRS, ((3 / 16) ** 2 + 3 / 8 - 1 / 4 + (1 / 4) ** 2) / 2),
    (Refusal(), ("preferred",), (2 * L2 + L2 + L2) / 3),
    # Pushing down by log 3 makes (1/2, 1/6, 1/6, 1/6) even; (4, 1, 3, 2)/10 becomes (4, 1/3, 3, 2) / (28/3).
    (Undial(beta=log(3)), FORGET, (2 * (L2 + 3 * log(6)) / 4 + log(4)) / 3),
    (MaxEnt(), FORGET, 2 * ((L2 + 3 * log(6)) / 4 - log(4)) / 3),
    (Wga(), FORGET, -(1 / 2 * L2 + 1 / 4 * 2 * L2 + 1 / 2 * L2) / 3),
    (Wga(beta=2.0), FORGET, -(1 / 4 * L2 + 1 / 16 * 2 * L2 + 1 / 4 * L2) / 3),
    (SatImp(beta1=1.0, beta2=1.0), FORGET, -(1 / 4 * L2 + 3 / 16 * 2 * L2 + 1 / 4 * L2) / 3),
    (SatImp(), FORGET, -(2 / 64 * L2 + 3 / 4 / 1024 * 2 * L2) / 3),
    # The first token is left alone: of the first answer the second is read, whose others are 1/4 each.
    (Ceu(), FORGET, log(4)),
    (Ceu(skip=0), FORGET, (log(6) + log(4) + log(6)) / 3),
    # Of two tokens the less likely goes: (4, 3, 2) / 9 against even ones. The only token of the second goes, too.
    (
        Shred(k=4, percent=50.0),
        FORGET,
        (4 / 9 * log(16 / 9) + 3 / 9 * log(12 / 9) + 2 / 9 * log(8 / 9) + L2) / 3,
    ),
    # The nucleus 0.4 + 0.3 and the label 0.1 go, and 0.2 is all that is left; (1/2) is label and nucleus in one.
    (Shred(k=4, percent=50.0, variant="B", nucleus=0.45), FORGET, (log(4) + L2) / 3),
]


def name(case: tuple[Method, tuple[str, ...], float]) -> str:
    return repr(case[0])


@pytest.mark.parametrize("case", BY_HAND, ids=name)
def test_by_hand(case: tuple[Method, tuple[str, ...], float]) -> None:
    method, roles, expected = case
    step = step_of(method, roles)
    out = method.loss(step)
    assert (out.count, out.unit) == (len(step.batch.examples), "sequences")
    assert out.sum.item() / out.count == pytest.approx(expected, rel=1e-5)


RETAINING = [case for case in BY_HAND if "retain" in {field.name for field in fields(case[0])}]


@pytest.mark.parametrize("case", RETAINING, ids=name)
@pytest.mark.parametrize(
    # p = 1/8. KL from even ones to (1/8, 5/8, 1/8, 1/8).
    ("term", "value"),
    [("ce", 3 * L2), ("kl", 3 / 4 * L2 + 1 / 4 * log(2 / 5))],
)
def test_the_retain_term_is_a_mean_of_its_own(
    case: tuple[Method, tuple[str, ...], float], term: str, value: float
) -> None:
    """One token beside three others counts as much as they do, times its weight."""
    method, roles, expected = case
    held = replace(method, retain=term, retain_weight=0.5)  # type: ignore[call-arg]
    out = held.loss(step_of(held, roles))
    assert out.sum.item() / out.count == pytest.approx(expected + 0.5 * value, rel=1e-5, abs=1e-6)
