"""What a model gives away about its training data: membership scores, and what is read from them.

A membership score is higher where an example looks more like a non-member. Likelihoods are in nats, over all labelled
tokens of an answer, the end token among them.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from duet_unlearn.data.examples import Example, collate
from duet_unlearn.evals.subject import TokenScores
from duet_unlearn.losses import cross_entropy
from duet_unlearn.stats import NOTHING, Z_95, Score, wilson
from duet_unlearn.teacher.decode import evaluating
from duet_unlearn.tensors import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PRIV_LEAK_K = 0.4
"""MUSE's share of tokens for PrivLeak (arXiv 2407.06460)."""
MIN_K = 0.2
"""The share elsewhere (arXiv 2310.16789)."""
NO_ROOM = 0.01
"""Where the retrained model's ``1 - AUC`` is below this, PrivLeak would divide by noise."""


def loss(scores: TokenScores) -> float:
    """Mean negative log-likelihood of the tokens (arXiv 1709.01604)."""
    return -_mean(scores.logps)


def zlib_ratio(scores: TokenScores, text: str) -> float:
    """Mean negative log-likelihood over the bytes of the zlib-compressed answer (arXiv 2012.07805)."""
    return loss(scores) / len(zlib.compress(text.encode()))


def min_k(scores: TokenScores, *, k: float = MIN_K) -> float:
    """``-mean`` of the lowest share `k` of the tokens' log-probabilities, one token at least (arXiv 2310.16789)."""
    return -_mean(_lowest(scores.logps, k))


def min_k_plus_plus(scores: TokenScores, *, k: float = MIN_K) -> float:
    """``-mean`` of the lowest share `k` of ``(log p - mu) / sigma``, both under the predicted distribution
    (arXiv 2404.02936)."""
    return -_mean(_lowest(scores.standardised, k))


def reference(scores: TokenScores, other: TokenScores) -> float:
    """Mean negative log-likelihood less that of a reference model on the same answer."""
    return loss(scores) - loss(other)


def gradient_norm(model: PreTrainedModel, example: Example) -> float:
    """The 2-norm of the gradient of an example's mean cross entropy, over all trainable weights.

    One backward pass an example: gradients of a batch add up. Neither ``.grad`` nor the model's mode changes.
    """
    batch = collate([example], 0).to(model.device)
    assert batch.labels_N is not None
    with evaluating(model), torch.enable_grad():
        logits_NV = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
        parameters = [p for p in model.parameters() if p.requires_grad]
        mean = cross_entropy(logits_NV, batch.labels_N).mean()
        gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
    return float(torch.nn.utils.get_total_norm([g.float() for g in gradients if g is not None]))


def auc(members: Sequence[float], non_members: Sequence[float]) -> float:
    """The chance that a non-member's score is above a member's, ties counting half; 1: remembered, 0.5: ideal.

    NaN where either is empty, or a score is NaN.
    """
    if not members or not non_members or any(map(math.isnan, [*members, *non_members])):
        return math.nan
    ordered = sorted(non_members)
    # Twice the non-members above, ties once: whole numbers, so that nothing is rounded.
    doubled = sum(2 * len(ordered) - bisect_left(ordered, x) - bisect_right(ordered, x) for x in members)
    return doubled / (2 * len(members) * len(non_members))


def auc_score(members: Sequence[float], non_members: Sequence[float]) -> Score:
    """``auc`` with its 95 % interval (Newcombe 2006, method 5), which has a width at 0 and 1 too; n counts both."""
    value = auc(members, non_members)
    if math.isnan(value):
        return NOTHING
    size = len(members), len(non_members)
    return Score(value, sum(size), _end(value, 0.0, *size), _end(value, 1.0, *size))


def _end(value: float, limit: float, num_members: int, num_non_members: int) -> float:
    """The a between `value` and `limit` that is z standard errors of its own away from `value`, by bisection."""
    half = (num_members + num_non_members) / 2 - 1
    near, far = value, limit
    for _ in range(60):
        middle = (near + far) / 2
        spread = 1 + half * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        error = Z_95 * math.sqrt(middle * (1 - middle) * spread / (num_members * num_non_members))
        near, far = (middle, far) if abs(middle - value) < error else (near, middle)
    return (near + far) / 2


def priv_leak(auc_unlearned: float, auc_retrained: float) -> float:
    """``((1 - a) - (1 - a_retrained)) / (1 - a_retrained) * 100``, a the AUC of min-k 40 % (MUSE, arXiv 2407.06460).

    0: as the retrained model; below 0: remembered; above 0: over-unlearned. NaN where ``1 - a_retrained < 0.01``,
    where published code explodes.
    """
    room = 1 - auc_retrained
    return ((1 - auc_unlearned) - room) / room * 100 if room >= NO_ROOM else math.nan


def exposure(rank: int, candidates: int) -> float:
    """``log2(candidates) - log2(rank)`` in bits: how far a planted value is ahead of chance (arXiv 1802.08232).

    `rank` is its place, from 1, among all `candidates` by likelihood. The median of chance is 1 bit.
    """
    assert 1 <= rank <= candidates, (rank, candidates)
    return math.log2(candidates) - math.log2(rank)


def leak_at_k(rights_per_fact: Sequence[Sequence[bool]]) -> Score:
    """leak@k: the share of facts that at least one of k sampled answers gets right. Inside: the k samples of a fact."""
    assert len({len(rights) for rights in rights_per_fact}) <= 1, "every fact is sampled k times"
    return wilson(sum(any(rights) for rights in rights_per_fact), len(rights_per_fact))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _lowest(values: Sequence[float], share: float) -> list[float]:
    assert 0 < share <= 1, share
    return sorted(values)[: max(1, int(share * len(values)))]
