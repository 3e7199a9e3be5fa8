"""SHRED's choice of tokens: which of an answer go, and what goes with them."""

from __future__ import annotations

import math

import pytest
import torch

from duet_unlearn.losses import demoted
from duet_unlearn.methods.self_distillation import in_nucleus, least_likely


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        # Rows of 4, 1 and 3 tokens. 25 % are 1, 1 and 1 of them; 50 % are 2, 1 and 2; 75 % are 3, 1 and 3.
        (25.0, [0, 0, 1, 0, 1, 1, 0, 0]),
        (50.0, [1, 0, 1, 0, 1, 1, 0, 1]),
        (75.0, [1, 1, 1, 0, 1, 1, 1, 1]),
        (100.0, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_least_likely_of_each_answer_go(percent: float, expected: list[int]) -> None:
    """A share of every answer, however likely it is as a whole."""
    logps_N = torch.tensor([-2.0, -1.0, -3.0, -0.5, -0.1, -9.0, -7.0, -8.0])
    assert least_likely(logps_N, (4, 1, 3), percent).int().tolist() == expected


def test_of_equal_ones_the_first_goes() -> None:
    assert least_likely(torch.full((4,), -1.0), (4,), 50.0).tolist() == [True, True, False, False]


def test_the_nucleus_is_the_fewest_that_have_the_mass() -> None:
    logps_NK = torch.tensor([[0.6, 0.2, 0.1, 0.05], [0.2, 0.2, 0.2, 0.2]]).log()
    assert in_nucleus(logps_NK, 0.5).tolist() == [[True, False, False, False], [True, True, False, False]]
    assert in_nucleus(logps_NK, 0.7).tolist()[0] == [True, True, False, False]


def test_a_token_is_left_where_the_nucleus_is_all_that_is_kept() -> None:
    """A distribution so flat that K tokens have not the mass: all but two go, and the label at most."""
    logps_NK = torch.full((1, 5), math.log(1e-3))
    inside_NK = in_nucleus(logps_NK, 0.9)
    assert inside_NK.sum().item() == 3
    for label in range(5):
        out_NK = inside_NK | (torch.arange(5) == label)[None]
        target_NK = demoted(logps_NK, out_NK).softmax(-1)
        assert torch.equal(target_NK > 0, ~out_NK)
