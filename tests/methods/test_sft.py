"""Fine-tuning's loss is the model's own loss on the labelled tokens."""

from __future__ import annotations

import pytest
import tiny
import torch

from duet_unlearn.data.examples import collate
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.training.step import Step, fine_tuning_loss


def test_defect_7_the_loss_is_that_of_transformers_on_the_same_tokens() -> None:
    model, batch = tiny.llama(), collate(tiny.examples([12, 5, 8], positions=3), tiny.EOS)
    labels_BT = torch.full_like(batch.ids_BT, -100)
    labels_BT[batch.rows_N, batch.cols_N + 1] = batch.ids_BT[batch.rows_N, batch.cols_N + 1]
    theirs = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=labels_BT).loss
    logits_NV = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    mine = fine_tuning_loss(Step(logits_NV, batch))
    assert (mine.count, mine.unit) == (9, "tokens")
    assert mine.sum.item() / mine.count == pytest.approx(theirs.item(), rel=1e-5)


def test_by_hand() -> None:
    logits_NV = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    batch = collate([tiny.example([2, 1, 0], [0, 1], "k", role="retain")], 0)
    got = fine_tuning_loss(Step(logits_NV, batch)).sum
    # log 4 for token 1, and log(e + 3) - 1 for token 0.
    assert got.item() == pytest.approx(1.386294 + 1.743668 - 1.0, rel=1e-5)


def test_defect_2_only_the_labelled_tokens_are_pushed() -> None:
    logits_NV = torch.zeros(2, 8, requires_grad=True)
    batch = collate([tiny.example([2, 1, 4], [0, 1], "k", role="retain")], 0)
    fine_tuning_loss(Step(logits_NV, batch)).sum.backward()
    assert logits_NV.grad is not None
    assert [row.argmin().item() for row in logits_NV.grad] == [1, 4]
    assert logits_NV.grad.sum(-1).abs().max() < 1e-6
