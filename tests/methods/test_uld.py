"""The assistant's loss, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch

from duet_unlearn.data.examples import TrainingData, collate
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.methods.uld import Uld
from duet_unlearn.training.step import Step

ROWS = [
    tiny.example([5, 0, 1], [0, 1], "f", role="forget"),
    tiny.example([5, 6, 7, 2], [2], "r", role="retain"),
]
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
"""Of three tokens: the forget row's labels are 0 and 1; the retain row's logits are (3, 0, 0)."""


def mean(method: Uld) -> float:
    out = method.loss(Step(LOGITS, collate(ROWS, 0)))
    return out.sum.item() / out.count


def test_answers_are_learnt_and_retain_answers_become_noise() -> None:
    forget = (math.log(math.exp(2) + 2) - 2 + math.log(math.exp(1) + 2) - 1) / 2  # mean of two cross entropies
    logps = [3 - math.log(math.exp(3) + 2), *[-math.log(math.exp(3) + 2)] * 2]
    uniform = -math.log(3) - sum(logps) / 3
    assert mean(Uld()) == pytest.approx(forget + 5 * uniform, rel=1e-6)
    assert mean(Uld(retain_weight=0.5)) == pytest.approx(forget + 0.5 * uniform, rel=1e-6)
    assert mean(Uld(retain_weight=0)) == pytest.approx(forget, rel=1e-6)


def test_an_assistant_that_knows_nothing_of_retain_answers_costs_nothing() -> None:
    batch = collate(ROWS[1:], 0)
    out = Uld().loss(Step(torch.zeros(1, 3), batch))
    assert out.sum.item() == pytest.approx(0.0, abs=1e-6)


def test_its_rows_are_answers_of_both_roles_and_no_model_is_asked() -> None:
    queries = [Query(n, ({"role": "user", "content": n},), answer="A.") for n in ("f", "r")]
    material = TrainingData(queries[:1], queries[1:], Prefix("."))
    method = Uld()
    assert [(one.role, one.answer, one.prefix) for one in method.build_examples(material)] == [
        ("forget", "A.", None),
        ("retain", "A.", None),
    ]
    assert method.target_spec("forget") is None
    with pytest.raises(UserError, match="has no answer"):
        method.build_examples(TrainingData([replace(queries[0], answer=None)], queries[1:], Prefix(".")))
