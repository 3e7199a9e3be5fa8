"""DUET's loss by hand: what it reads, what it ignores, and its ablations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

from duet_unlearn.data.examples import Batch, Example, Role, collate
from duet_unlearn.errors import UserError
from duet_unlearn.losses import bild, forward_kl, gkd, reverse_kl, topk_huber
from duet_unlearn.methods.duet import Duet
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.teacher.targets import Dense, TargetSpec, TeacherTargets
from duet_unlearn.tensors import TopK, topk
from duet_unlearn.training.step import Step


def random(rows: int, *, seed: int, width: int = 12) -> Tensor:
    return 4 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def batch(*roles: str, positions: int = 1) -> Batch:
    at = tuple(range(positions))
    return collate([Example((5,) * (positions + 1), at, None, role, role) for role in roles], 1)  # type: ignore[arg-type]


def signals(what: Batch, signal: TeacherTargets) -> dict[Role, TeacherTargets]:
    """Each role's rows of a signal."""
    roles = [e.role for e in what.examples for _ in e.positions]
    return {
        role: type(signal)(*(values[[n for n, other in enumerate(roles) if other == role]] for values in signal))  # type: ignore[arg-type]
        for role in dict.fromkeys(roles)
    }


def loss(method: Duet, logits_NV: Tensor, what: Batch, signal: TeacherTargets) -> float:
    out = method.loss(Step(logits_NV, what, signals(what, signal)))
    assert (out.count, out.unit) == (len(logits_NV), "positions")
    return out.sum.item()


def test_equation_3_by_hand() -> None:
    student = torch.tensor([[1.0, 5.0, 9.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    teacher = TopK(torch.tensor([[1, 0], [3, 2]]), torch.tensor([[5.5, 3.0], [1.0, 0.5]]))
    # Row 0: 5 - 5.5 and 1 - 3; row 1: 3 - 1 and 0 - 0.5. The student's 9 on token 2 is not looked at.
    expected = (0.125 + 1.5) / 2 + (1.5 + 0.125) / 2
    assert loss(Duet(k=2), student, batch("forget", "retain"), teacher) == pytest.approx(expected)


def test_delta_is_passed_on() -> None:
    student, teacher = random(3, seed=0), random(3, seed=1)
    kept = topk(teacher, 5)
    expected = topk_huber(student.gather(-1, kept.ids_NK), kept.logits_NK, delta=0.2).sum().item()
    what = batch("forget", "retain", "forget")
    assert loss(Duet(k=5, delta=0.2), student, what, kept) == pytest.approx(expected)
    assert expected != pytest.approx(loss(Duet(k=5), student, what, kept), rel=0.1)


def test_forget_and_retain_weigh_the_same() -> None:
    student, teacher = random(2, seed=0), topk(random(2, seed=1), 5)
    for roles in (("forget", "retain"), ("retain", "forget"), ("forget", "forget")):
        assert loss(Duet(k=5), student, batch(*roles), teacher) == loss(
            Duet(k=5), student, batch("forget", "retain"), teacher
        )


def test_a_dense_teacher_is_its_own_top_k() -> None:
    student, teacher, what = random(3, seed=0), random(3, seed=1), batch("forget", "retain", "forget")
    assert loss(Duet(k=4), student, what, Dense(teacher)) == loss(Duet(k=4), student, what, topk(teacher, 4))
    dense = F.huber_loss(student, teacher, reduction="none").mean(-1).sum().item()
    assert loss(Duet(k=None), student, what, Dense(teacher)) == pytest.approx(dense, rel=1e-6)
    assert loss(Duet(k=12), student, what, topk(teacher, 12)) == pytest.approx(dense, rel=1e-6)


def test_kl_on_retain_is_the_ablation_of_table_4() -> None:
    student, teacher = random(6, seed=0), random(6, seed=1)
    what = batch("forget", "retain", "forget", positions=2)
    method = Duet(k=3, retain_loss="kl")
    kept = topk(teacher, 3)
    huber_N, kl_N = topk_huber(student.gather(-1, kept.ids_NK), kept.logits_NK), forward_kl(student, teacher)
    expected = huber_N[[0, 1, 4, 5]].sum() + kl_N[2:4].sum()
    assert loss(method, student, what, Dense(teacher)) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"distance": "kl"}, forward_kl),
        ({"distance": "reverse_kl"}, reverse_kl),
        ({"distance": "gkd", "beta": 0.1}, lambda student, teacher: gkd(student, teacher, beta=0.1)),
        (
            {"distance": "bild", "k": 4, "temperature": 2.0},
            lambda student, teacher: bild(student, teacher, k=4, temperature=2.0),
        ),
    ],
    ids=["kl", "reverse_kl", "gkd", "bild"],
)
def test_another_distance_in_its_place(settings: dict[str, Any], expected: Callable[[Tensor, Tensor], Tensor]) -> None:
    """On every row of both roles, with each one's settings passed on; whole rows are kept for it."""
    student, teacher, method = random(3, seed=0), random(3, seed=1), Duet(**settings)
    what = batch("forget", "retain", "forget")
    assert loss(method, student, what, Dense(teacher)) == pytest.approx(expected(student, teacher).sum().item())
    assert method.target_spec("forget") == method.target_spec("retain") == TargetSpec("dense")


def test_retain_queries_may_have_a_distance_of_their_own() -> None:
    student, teacher, what = random(2, seed=0), random(2, seed=1), batch("forget", "retain")
    got = loss(Duet(k=4, distance="bild", retain_loss="reverse_kl"), student, what, Dense(teacher))
    expected = bild(student, teacher, k=4)[0] + reverse_kl(student, teacher)[1]
    assert got == pytest.approx(expected.item())


def test_k_over_the_vocabulary_is_two_lines_for_the_ablation_too() -> None:
    """Its cache holds whole rows, so that K is met by the loss alone."""
    student, teacher = random(1, seed=0), random(1, seed=1)
    with pytest.raises(UserError, match=r"method\.k is 13, but the model's vocabulary has 12 tokens"):
        loss(Duet(k=13, retain_loss="kl"), student, batch("forget"), Dense(teacher))


@pytest.mark.parametrize("role", ["forget", "retain"])
def test_kl_with_one_role_in_the_batch(role: str) -> None:
    student, teacher = random(2, seed=0).requires_grad_(), random(2, seed=1)
    out = Duet(k=3, retain_loss="kl").loss(Step(student, batch(role, role), signals(batch(role, role), Dense(teacher))))
    out.sum.backward()
    assert torch.isfinite(out.sum)
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_defect_3_prompt_and_padding_are_not_in_the_loss() -> None:
    """The rows of a padded batch give what each gives alone."""
    model, rows = tiny.llama(), tiny.examples([12, 5, 8], positions=1)
    signal = topk(random(3, seed=1, width=tiny.VOCABULARY), 20)

    def of(examples: list[Example], kept: TopK) -> float:
        what = collate(examples, tiny.EOS)
        logits_NV = logits_at(model, what.ids_BT, what.mask_BT, what.rows_N, what.cols_N)
        return loss(Duet(k=20), logits_NV, what, kept)

    alone = [of([row], TopK(signal.ids_NK[[i]], signal.logits_NK[[i]])) for i, row in enumerate(rows)]
    assert of(rows, signal) == pytest.approx(sum(alone), rel=1e-5)


def test_bf16_logits_are_compared_in_fp32() -> None:
    student, teacher = random(2, seed=0).bfloat16(), topk(random(2, seed=1), 5)
    what = batch("forget", "retain")
    assert Duet(k=5).loss(Step(student, what, signals(what, teacher))).sum.dtype == torch.float32
    assert loss(Duet(k=5), student, what, teacher) == loss(Duet(k=5), student.float(), what, teacher)


def test_what_the_cache_must_hold() -> None:
    assert Duet().target_spec("forget") == TargetSpec("topk", 1000)
    assert Duet(k=None).target_spec("forget") == TargetSpec("dense")
    assert Duet(k=5, retain_loss="kl").target_spec("retain") == TargetSpec("dense")  # KL reads whole rows


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"k": 0}, "method.k is 0; it must be at least 1"),
        ({"positions": 0}, "method.positions is 0; it must be at least 1"),
        ({"delta": 0.0}, "method.delta is 0.0; it must be above 0"),
        ({"temperature": 0.0}, "method.temperature is 0.0; it must be above 0"),
        ({"beta": 1.0}, "method.beta is 1.0; it must lie between 0 and 1"),
        ({"distance": "bild", "k": None}, "method.k is None; bild compares pairs of k tokens"),
        ({"retain_loss": "bild", "k": 2}, "method.k is 2; bild compares pairs of k tokens"),  # of 2 there is one alone
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Duet(**values)
