from __future__ import annotations

from typing import get_args

import pytest
import torch

from duet_unlearn.errors import UserError
from duet_unlearn.teacher.targets import Dense, Hidden, Logps, TargetSpec, TeacherTargets, TopLogps
from duet_unlearn.tensors import TopK

P = torch.tensor([[0.125, 0.5, 0.125, 0.25], [0.25, 0.25, 0.375, 0.125]])
LABELS = torch.tensor([1, 3])


def test_a_signal_is_one_of_five_tuples() -> None:
    assert set(get_args(TeacherTargets)) == {TopK, Dense, Logps, TopLogps, Hidden}
    assert not isinstance(Dense(torch.zeros(1, 4)), TopK)
    assert TopK._fields == ("ids_NK", "logits_NK")


def test_top_logps_are_over_the_whole_vocabulary_and_the_labels_whatever_its_rank() -> None:
    spec = TargetSpec("top-logps", 2)
    signal = spec.targets(spec.stored(P.log().bfloat16() + 8, LABELS))
    assert isinstance(signal, TopLogps)
    assert signal.ids_NK[0].tolist() == [1, 3]
    assert signal.ids_NK[1, 0].item() == 2
    assert signal.logps_NK.exp().flatten().tolist() == pytest.approx([0.5, 0.25, 0.375, 0.25], rel=0.02)
    assert signal.label_logps_N.exp().tolist() == pytest.approx([0.5, 0.125], rel=0.02)
    assert {signal.logps_NK.dtype, signal.label_logps_N.dtype} == {torch.float32}


@pytest.mark.parametrize("kind", ["topk", "top-logps"])
def test_more_than_the_vocabulary_is_two_lines(kind: str) -> None:
    with pytest.raises(UserError, match="the model's vocabulary has 4 tokens"):
        TargetSpec(kind, 5).check(4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec", [TargetSpec("topk", 3), TargetSpec("dense"), TargetSpec("logps"), TargetSpec("top-logps", 3)]
)
def test_the_size_is_that_of_what_is_stored(spec: TargetSpec) -> None:
    stored = spec.stored(P.log(), LABELS)
    assert sum(values.numel() * values.element_size() for values in stored.values()) == 2 * spec.size(4, 9)
