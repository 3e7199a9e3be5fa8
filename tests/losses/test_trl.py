"""Our losses against TRL's, where TRL has a pure function for the same number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from duet_unlearn.evals.subject import _token_scores
from duet_unlearn.losses import cross_entropy, forward_kl
from duet_unlearn.tensors import token_logps


def random(*shape: int, seed: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = random(9, 40, seed=0), random(9, 40, seed=1)
LABELS = torch.randint(0, 40, (9,), generator=torch.Generator().manual_seed(2))


def test_token_log_probabilities_are_trls() -> None:
    from trl.trainer.utils import selective_log_softmax

    theirs = selective_log_softmax(STUDENT, LABELS)
    torch.testing.assert_close(token_logps(STUDENT, LABELS), theirs)
    torch.testing.assert_close(cross_entropy(STUDENT, LABELS), -theirs)


def test_the_mean_of_min_k_plus_plus_is_trls_entropy() -> None:
    """``mu = -H``: so (log p - mu) / sigma is 0 where log p = -H."""
    from trl.trainer.utils import entropy_from_logits

    logps, sigma = STUDENT.log_softmax(-1), []
    entropies = entropy_from_logits(STUDENT)
    for row, entropy in zip(logps, entropies, strict=True):
        sigma.append(float((row.exp() * (row + entropy).square()).sum().sqrt()))
    expected = (token_logps(STUDENT, LABELS) + entropies) / torch.tensor(sigma)
    assert _token_scores(STUDENT, LABELS).standardised == pytest.approx(expected.tolist(), rel=1e-4)


def test_forward_kl_is_trls_at_beta_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    theirs = GKDTrainer.generalized_jsd_loss(STUDENT, TEACHER, beta=0.0, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(STUDENT, TEACHER), theirs)
    other = GKDTrainer.generalized_jsd_loss(STUDENT, TEACHER, beta=1.0, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(TEACHER, STUDENT), other)
