"""Losses as pure functions of tensors: fp32 inside, one number a position (N,) or a sequence (B,), nothing reduced.

A function knows no model, no config and no device; shape suffixes are those of ``tensors``. All are to be *minimised*:
those that forget fall as the label becomes unlikely. Losses of whole answers take the summed log-probabilities of B
sequences; a reference there is the frozen base model, whose log-probabilities never change, so they are computed once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from duet_unlearn.tensors import gather, token_logps, topk


def cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """``-log p(label)`` in nats: (N,)."""
    return -token_logps(logits_NV, labels_N)


def gradient_ascent(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """``log p(label)``: the cross entropy with its sign turned, unbounded below. Jang et al., arXiv 2210.01504."""
    return token_logps(logits_NV, labels_N)


def _weighted_ascent(logps_N: Tensor, weights_N: Tensor) -> Tensor:
    """Gradient ascent on each token by its own weight, through which no gradient goes."""
    return weights_N * logps_N


def _soft_cross_entropy(logits_NV: Tensor, target_NV: Tensor) -> Tensor:
    """``-sum_i q_i log p_i`` in nats, q the target's probabilities."""
    return -(target_NV * logits_NV.float().log_softmax(-1)).sum(-1)


def wga(logits_NV: Tensor, labels_N: Tensor, *, beta: float = 1.0) -> Tensor:
    """``sg[p(label)^beta] log p(label)``: gradient ascent that leaves tokens alone once they are unlikely.

    Weighted GA, Wang et al., arXiv 2502.19301. sg: no gradient through the weight.
    """
    logps_N = token_logps(logits_NV, labels_N)
    return _weighted_ascent(logps_N, logps_N.detach().mul(beta).exp())


def satimp(logits_NV: Tensor, labels_N: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """``sg[p^beta1 (1 - p)^beta2] log p(label)``: neither what is forgotten already nor what is still certain.

    Yang et al., arXiv 2505.11953.
    """
    logps_N = token_logps(logits_NV, labels_N)
    p_N = logps_N.detach().exp()
    return _weighted_ascent(logps_N, p_N.pow(beta1) * (1 - p_N).clamp_min(0).pow(beta2))


def undial(logits_NV: Tensor, labels_N: Tensor, reference_NV: Tensor, *, beta: float = 10.0) -> Tensor:
    """``-sum_i q_i log p_i`` with ``q = softmax(z_ref - beta onehot(label))``: the frozen model's own distribution with
    the label pushed down.

    UNDIAL, Dong et al., arXiv 2402.10052. Positions without a label never come here: a label of -100 used as an index
    would punish another token (a defect of published code).
    """
    down_N1 = reference_NV.new_full((len(labels_N), 1), -beta, dtype=torch.float32)
    target_NV = reference_NV.float().scatter_add(-1, labels_N[:, None], down_N1)
    return _soft_cross_entropy(logits_NV, target_NV.softmax(-1))


def ceu(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """``-sum_i q_i log p_i`` with ``q = softmax(sg[z], label at -inf)``: the model's own words without the label.

    CE-U, Yang, arXiv 2503.01224. The paper skips the first answer token; which positions are given is the caller's.
    """
    target_NV = logits_NV.detach().float().scatter(-1, labels_N[:, None], -torch.inf).softmax(-1)
    return _soft_cross_entropy(logits_NV, target_NV)


def maxent(logits_NV: Tensor) -> Tensor:
    """``KL(uniform || p) = -log V - 1/V sum_i log p_i`` in nats: 0 where nothing is known.

    Maximum entropy, Yuan et al., arXiv 2410.08109.
    """
    logps_NV = logits_NV.float().log_softmax(-1)
    return -math.log(logps_NV.shape[-1]) - logps_NV.mean(-1)


def label_jsd(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """``1/2 KL(onehot(label) || m) + 1/2 KL(p || m)``, ``m = (onehot(label) + p) / 2``, in nats: from 0 where the label
    is certain to log 2 where it is impossible, so that no token pulls without bound.

    With ``q = p(label)``: ``log 2 - [(1 + q) log(1 + q) - q log q] / 2``. JensUn, Singh et al., arXiv 2509.02820.
    """
    logps_N = token_logps(logits_NV, labels_N)
    q_N = logps_N.exp()
    return math.log(2) - ((1 + q_N) * torch.log1p(q_N) - q_N * logps_N) / 2


def topk_huber(student_NK: Tensor, teacher_NK: Tensor, *, delta: float = 1.0) -> Tensor:
    """Huber distance of raw logits on the teacher's top-K tokens: (N,).

    ``loss_n = 1/K sum_{i in C_K} h(s_i - t_i)``, ``h(d) = d^2 / 2`` where ``|d| <= delta``, else ``delta (|d| -
    delta / 2)``.

    DUET (arXiv 2601.21283), Eq. 3. The paper sums over the K tokens; the mean is taken here, so that the learning
    rate does not depend on K. No softmax: the absolute size of a logit is part of the target.
    """
    return F.huber_loss(student_NK.float(), teacher_NK.float(), reduction="none", delta=delta).mean(-1)


def forward_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """``KL(teacher || student) = sum_i p_i (log p_i - log q_i)`` in nats over the last dimension: (N,)."""
    teacher_logp = torch.log_softmax(teacher_NV.float(), dim=-1)
    student_logp = torch.log_softmax(student_NV.float(), dim=-1)
    return F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(-1)


def topk_kl(student_NV: Tensor, ids_NK: Tensor, target_NK: Tensor) -> Tensor:
    """``KL(q || student) = sum_i q_i (log q_i - log p_i)`` in nats, ``q = softmax(target)`` on K named tokens and 0 on
    all others: (N,).

    The student's probabilities are those over its whole vocabulary.
    """
    target_NK, student_NK = target_NK.float().log_softmax(-1), gather(student_NV.float().log_softmax(-1), ids_NK)
    return F.kl_div(student_NK, target_NK, reduction="none", log_target=True).sum(-1)


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """``KL(student || teacher) = sum_i q_i (log q_i - log p_i)`` in nats: (N,)."""
    return forward_kl(teacher_NV, student_NV)


def gkd(student_NV: Tensor, teacher_NV: Tensor, *, beta: float = 0.5) -> Tensor:
    """``beta KL(teacher || m) + (1 - beta) KL(student || m)``, ``m = beta teacher + (1 - beta) student``: (N,).

    The generalised Jensen-Shannon divergence of GKD, Agarwal et al., arXiv 2306.13649, Eq. 1. `beta` lies strictly
    between 0 and 1; its ends are the two KL divergences.
    """
    student, teacher = student_NV.float().log_softmax(-1), teacher_NV.float().log_softmax(-1)
    weights = torch.tensor([1 - beta, beta], device=student.device).log()
    mixed = torch.logsumexp(torch.stack([student + weights[0], teacher + weights[1]]), dim=0)
    to_teacher = F.kl_div(mixed, teacher, reduction="none", log_target=True).sum(-1)
    return beta * to_teacher + (1 - beta) * F.kl_div(mixed, student, reduction="none", log_target=True).sum(-1)


def push_down(student_NV: Tensor, teacher_NV: Tensor, *, k: int, delta: float = 1.0) -> Tensor:
    """``mean_{i in B \\ A} Huber(s_i, min(s_i, t_i))``, A = top-K of the teacher, B = top-K of the student: (N,).

    The student's own confident tokens that the teacher does not hold are pushed down to the teacher's logit, never
    below; an empty ``B \\ A`` gives 0. Ours, after the description of bidirectional distillation (arXiv 2604.15482),
    whose equation is not public. Which tokens are in A and B carries no gradient.
    """
    ids_NK, allowed_NK = topk(student_NV.detach(), k).ids_NK, topk(teacher_NV, k).ids_NK
    outside_NK = ~(ids_NK[:, :, None] == allowed_NK[:, None, :]).any(-1)
    student_NK, teacher_NK = gather(student_NV, ids_NK).float(), gather(teacher_NV, ids_NK).float()
    target_NK = torch.minimum(student_NK, teacher_NK).detach()
    loss_NK = F.huber_loss(student_NK, target_NK, reduction="none", delta=delta) * outside_NK
    return loss_NK.sum(-1) / outside_NK.sum(-1).clamp_min(1)


def bild(student_NV: Tensor, teacher_NV: Tensor, *, k: int = 8, temperature: float = 3.0) -> Tensor:
    """Bi-directional logits difference: KL between all pairwise logit differences of both models, (N,).

    On the teacher's top-K ids and again on the student's: the K (K - 1) / 2 differences of each model, divided by the
    temperature, as a softmax; ``KL(teacher || student)``; the sum of the two. BiLD, Li et al., arXiv 2406.13555.
    """
    led = topk(teacher_NV, k).ids_NK, topk(student_NV.detach(), k).ids_NK
    rows, cols = torch.triu_indices(k, k, offset=1, device=student_NV.device)

    def differences(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
        kept_NK = gather(logits_NV, ids_NK).float() / temperature
        return kept_NK[:, rows] - kept_NK[:, cols]

    return sum(
        (forward_kl(differences(student_NV, ids), differences(teacher_NV, ids)) for ids in led),
        start=student_NV.new_zeros(len(student_NV), dtype=torch.float32),
    )


def generic(base_NV: Tensor, reinforced_NV: Tensor, *, alpha: float) -> Tensor:
    """``z_base - alpha ReLU(z_reinforced - z_base)``: (N, V) logits of a model without what the reinforced one has more
    of, to be distilled.

    WHP, Eldan and Russinovich, arXiv 2310.02238; RKLD, Wang et al., arXiv 2406.01983.
    """
    base_NV = base_NV.float()
    return base_NV - alpha * F.relu(reinforced_NV.float() - base_NV)


def demoted(teacher_NV: Tensor, demote_NV: Tensor) -> Tensor:
    """The teacher's logits with some tokens taken out: (N, V), to be distilled with ``forward_kl`` or ``topk_kl``.

    `demote_NV` is True where a token is demoted; a row without any is the teacher's own. Where all were, q would be
    uniform over them: the caller leaves one. SHRED (arXiv 2605.07482).
    """
    return teacher_NV.float().masked_fill(demote_NV, torch.finfo(torch.float32).min)


Divergence = Literal["total-variation", "kl", "js", "pearson"]
"""FLAT's f-divergences."""


def _tempered_ascent(scaled_B: Tensor, beta: float) -> Tensor:
    """``-(2 / beta) log sigmoid(-scaled)``: as `beta` falls to 0, gradient ascent on ``scaled / beta``."""
    return 2 / beta * F.softplus(scaled_B)


def npo(logps_B: Tensor, reference_B: Tensor, *, beta: float = 0.1) -> Tensor:
    """``-(2 / beta) log sigmoid(-beta (log p - log p_ref))`` of the answers to forget: (B,).

    NPO, Zhang et al., arXiv 2404.05868. Log-probabilities, never raw logits (a defect of published code).
    """
    return _tempered_ascent(beta * (logps_B.float() - reference_B.float()), beta)


def simnpo(logps_B: Tensor, lengths_B: Tensor, *, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    """``-(2 / beta) log sigmoid(-(beta / |y|) log p - gamma)``: NPO without a reference, by the token: (B,).

    SimNPO, Fan et al., arXiv 2410.07163; beta 2.5 to 4.5 on TOFU, 0.7 on MUSE books.
    """
    return _tempered_ascent(beta * logps_B.float() / lengths_B + gamma, beta)


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


def mean_square(hidden_ND: Tensor, target_ND: Tensor) -> Tensor:
    """``1/D sum_d (h_d - t_d)^2``: (N,). A target of one row is that of every position.

    RMU, Li et al., arXiv 2403.03218: the equations have the squared norm, a sum over D; its published code and the
    weights found with it (c 6.5, alpha 1200) have the mean.
    """
    return (hidden_ND.float() - target_ND.float()).square().mean(-1)
