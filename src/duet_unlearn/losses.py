"""Losses as pure functions of tensors: fp32 inside, one number a position, no reduction over positions.

Shape suffixes as in ``tensors``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from duet_unlearn.tensors import token_logps


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


def cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """``-log p(label)`` in nats: (N,)."""
    return -token_logps(logits_NV, labels_N)
