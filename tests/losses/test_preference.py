"""Sequence losses against numbers by hand, the equations written out, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from duet_unlearn.losses import dpo, flat, npo, simnpo

P, REF = torch.tensor([-3.0, -20.0, -0.5]), torch.tensor([-3.0, -5.0, -4.0])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_npo_written_out() -> None:
    expected = [-(2 / 0.1) * log_sigmoid(-0.1 * (p - r)) for p, r in zip(P.tolist(), REF.tolist(), strict=True)]
    assert npo(P, REF).tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] == pytest.approx(20 * math.log(2))


def test_npo_is_gradient_ascent_for_small_beta_and_weighs_what_is_still_known() -> None:
    """The gradient in log p is 2 sigmoid(beta (log p - log p_ref)): 1 as beta falls."""
    for beta in (1e-4, 0.1, 1.0):
        logps = P.clone().requires_grad_()
        npo(logps, REF, beta=beta).sum().backward()
        assert logps.grad is not None
        torch.testing.assert_close(logps.grad, 2 * torch.sigmoid(beta * (P - REF)))


def test_simnpo_written_out_by_the_token() -> None:
    lengths = torch.tensor([3, 10, 1])
    expected = [
        -(2 / 2.5) * log_sigmoid(-(2.5 / n) * p - 0.7) for p, n in zip(P.tolist(), lengths.tolist(), strict=True)
    ]
    assert simnpo(P, lengths, gamma=0.7).tolist() == pytest.approx(expected, rel=1e-5)


def test_dpo_written_out() -> None:
    win, win_reference = torch.tensor([-2.0, -6.0, -1.0]), torch.tensor([-5.0, -5.0, -5.0])
    expected = [
        -log_sigmoid(0.1 * ((w - wr) - (p - r)))
        for w, wr, p, r in zip(win.tolist(), win_reference.tolist(), P.tolist(), REF.tolist(), strict=True)
    ]
    assert dpo(win, win_reference, P, REF).tolist() == pytest.approx(expected, rel=1e-5)
    assert dpo(P, P, REF, REF).tolist() == pytest.approx([math.log(2)] * 3)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("total-variation", math.tanh(0.4) / 2 - math.tanh(0.8) / 2),
        ("kl", math.exp(0.4 - 1) - 0.8),
        # g(v) = log 2 - log(1 + e^-v); f*(u) = -log(2 - e^u).
        ("js", -math.log(2 - 2 / (1 + math.exp(-0.4))) - (math.log(2) - math.log1p(math.exp(-0.8)))),
        ("pearson", 0.4**2 / 4 + 0.4 - 0.8),
    ],
)
def test_flat_by_hand(divergence: str, expected: float) -> None:
    got = flat(torch.tensor([0.8]), torch.tensor([0.4]), divergence=divergence)  # type: ignore[arg-type]
    assert got.tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("divergence", ["total-variation", "kl", "js", "pearson"])
def test_flat_wants_the_refusal_and_not_the_answer(divergence: str) -> None:
    win, lose = torch.tensor([0.3], requires_grad=True), torch.tensor([0.6], requires_grad=True)
    flat(win, lose, divergence=divergence).sum().backward()  # type: ignore[arg-type]
    assert win.grad is not None
    assert lose.grad is not None
    assert win.grad.item() < 0 < lose.grad.item()


def test_finite_at_extremes_and_fp32_out() -> None:
    logps = torch.tensor([-1e5, 0.0], dtype=torch.bfloat16, requires_grad=True)
    other = torch.tensor([0.0, -1e5], dtype=torch.bfloat16)
    for value in (npo(logps, other), simnpo(logps, torch.tensor([1, 1])), dpo(logps, other, other, logps)):
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        (grad,) = torch.autograd.grad(value.sum(), logps, retain_graph=True)
        assert torch.isfinite(grad).all()
