"""Losses of whole answers: from summed log-probabilities of B sequences, (B,) each.

A reference is the frozen base model. Its log-probabilities never change, so they are computed once and no second
model is in memory.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Literal["total-variation", "kl", "js", "pearson"]
"""FLAT's f-divergences."""


def npo(logps_B: Tensor, reference_B: Tensor, *, beta: float = 0.1) -> Tensor:
    """``-(2 / beta) log sigmoid(-beta (log p - log p_ref))`` of the answers to forget: (B,).

    NPO, Zhang et al., arXiv 2404.05868. Log-probabilities, never raw logits (a defect of published code).
    """
    return 2 / beta * F.softplus(beta * (logps_B.float() - reference_B.float()))


def simnpo(logps_B: Tensor, lengths_B: Tensor, *, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    """``-(2 / beta) log sigmoid(-(beta / |y|) log p - gamma)``: NPO without a reference, by the token: (B,).

    SimNPO, Fan et al., arXiv 2410.07163; beta 2.5 to 4.5 on TOFU, 0.7 on MUSE books.
    """
    return 2 / beta * F.softplus(beta * logps_B.float() / lengths_B + gamma)


def dpo(
    win_B: Tensor, win_reference_B: Tensor, lose_B: Tensor, lose_reference_B: Tensor, *, beta: float = 0.1
) -> Tensor:
    """``-log sigmoid(beta [(log p - log p_ref)(win) - (log p - log p_ref)(lose)])``: (B,).

    DPO, Rafailov et al., arXiv 2305.18290; with refusals as wins it is TOFU's IDK. No factor 2 / beta, which some
    published unlearning code has.
    """
    margin_B = (win_B.float() - win_reference_B.float()) - (lose_B.float() - lose_reference_B.float())
    return F.softplus(-beta * margin_B)


def flat(win_B: Tensor, lose_B: Tensor, *, divergence: Divergence = "kl") -> Tensor:
    """``-g(P_win) + f*(g(P_lose))``: (B,). P: mean probability of an answer's tokens, 0..1: of a refusal text (win) and
    of the answer to forget (lose).

    FLAT, Wang et al., arXiv 2410.11143 (forget data only). Pairs (g(v), f*(u)): total variation tanh(v) / 2, u; KL
    v, exp(u - 1); JS log 2 - log(1 + exp(-v)), -log(2 - exp(u)); Pearson v, u^2 / 4 + u.
    """
    win_B, lose_B = _activate(win_B.float(), divergence), _activate(lose_B.float(), divergence)
    match divergence:
        case "total-variation":
            conjugate_B = lose_B
        case "kl":
            conjugate_B = torch.exp(lose_B - 1)
        case "js":
            conjugate_B = -torch.log(2 - torch.exp(lose_B))
        case "pearson":
            conjugate_B = lose_B.square() / 4 + lose_B
    return conjugate_B - win_B


def _activate(v_B: Tensor, divergence: Divergence) -> Tensor:
    if divergence == "total-variation":
        return torch.tanh(v_B) / 2
    if divergence == "js":
        return torch.log(torch.tensor(2.0)) - F.softplus(-v_B)
    return v_B
