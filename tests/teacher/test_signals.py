from __future__ import annotations

from typing import get_args

import torch

from duet_unlearn.teacher.signals import Dense, Signal
from duet_unlearn.tensors import TopK


def test_a_signal_is_top_k_or_whole_rows() -> None:
    assert set(get_args(Signal)) == {TopK, Dense}
    assert not isinstance(Dense(torch.zeros(1, 4)), TopK)
    assert TopK._fields == ("ids_NK", "logits_NK")
