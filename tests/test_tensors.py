"""Masks, positions and gathers by hand; the head at named positions against the whole forward pass."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.models.blocks import head_at, logits_at
from duet_unlearn.models.lora import add_lora
from duet_unlearn.tensors import gather, pad, position_ids, sum_by_row, token_logps, topk

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}


@pytest.mark.parametrize(("side", "ids", "mask"), [("right", [1, 2, 9], [1, 1, 0]), ("left", [9, 1, 2], [0, 1, 1])])
def test_pad_by_hand(side: str, ids: list[int], mask: list[int]) -> None:
    padded = pad([[1, 2], [3, 4, 5]], 9, side=side)  # type: ignore[arg-type]
    assert padded.ids_BT.tolist() == [ids, [3, 4, 5]]
    assert padded.mask_BT.int().tolist() == [mask, [1, 1, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_defect_4_a_pad_id_inside_a_row_is_a_real_token(side: str) -> None:
    eos = 1
    padded = pad([[eos, 5, eos], [eos, eos, 6, 7, eos]], eos, side=side)  # type: ignore[arg-type]
    assert padded.mask_BT.sum(-1).tolist() == [3, 5]


def test_defect_21_positions_count_real_tokens_on_either_side() -> None:
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    assert position_ids(mask_BT).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_topk_gather_and_sums_by_hand() -> None:
    logits_NV = torch.tensor([[0.1, 3.0, -1.0, 2.0], [5.0, 1.0, 2.0, 0.0]])
    kept = topk(logits_NV, 2)
    assert kept.ids_NK.tolist() == [[1, 3], [0, 2]]
    assert torch.equal(kept.logits_NK, torch.tensor([[3.0, 2.0], [5.0, 2.0]]))
    assert torch.equal(gather(logits_NV, kept.ids_NK), kept.logits_NK)
    assert topk(logits_NV, None).ids_NK.tolist() == [[1, 3, 0, 2], [0, 2, 1, 3]]
    assert sum_by_row(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0]), 4).tolist() == [5.0, 0.0, 2.0, 0.0]


def test_token_logps_are_fp32_whatever_comes_in() -> None:
    logits_NV = torch.tensor([[2.0, 0.0, -1.0]])
    z = torch.tensor([2.0, 0.0, -1.0]).exp().sum().log()
    for dtype in (torch.float32, torch.bfloat16):
        got = token_logps(logits_NV.to(dtype), torch.tensor([1]))
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(-z.item(), abs=1e-6)


def gemma() -> PreTrainedModel:
    """Soft caps behind the head."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0)).eval()


def cohere() -> PreTrainedModel:
    """A scale behind the head."""
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)).eval()


def adapted() -> nn.Module:
    model = add_lora(tiny.llama(), LoraConfig(rank=2, alpha=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def whole(model: nn.Module, row: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([row])).logits[0]


@pytest.mark.parametrize("make", [tiny.llama, gemma, cohere, adapted])
@torch.no_grad()
def test_head_at_equals_the_whole_forward_pass(make: type) -> None:
    model, padded = make(), pad(ROWS, 0, side="right")
    rows_N, cols_N = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 1, 2, 3])
    got_NV = logits_at(model, padded.ids_BT, padded.mask_BT, rows_N, cols_N)
    expected = torch.stack([whole(model, ROWS[r])[c] for r, c in zip(rows_N.tolist(), cols_N.tolist(), strict=True)])
    torch.testing.assert_close(got_NV, expected, rtol=1e-4, atol=1e-5)
    assert got_NV.std() > 0.1


def test_soft_caps_and_scales_are_at_work_in_that_test() -> None:
    assert whole(gemma(), ROWS[0]).abs().max() < 2.0
    model = cohere()
    scaled = whole(model, ROWS[0])
    model.logit_scale = 1.0
    torch.testing.assert_close(scaled, 0.25 * whole(model, ROWS[0]))


def test_the_head_sees_the_named_positions_and_no_others() -> None:
    model, padded, seen = tiny.llama(hidden=16), pad(ROWS, 0, side="right"), []
    watch = model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, output: seen.append((tuple(inputs[0].shape), tuple(output.shape)))
    )
    logits_at(model, padded.ids_BT, padded.mask_BT, torch.tensor([0, 1]), torch.tensor([5, 2]))
    watch.remove()
    assert seen == [((1, 2, 16), (1, 2, tiny.VOCABULARY))]


def test_outside_the_context_the_head_is_whole_again_even_after_an_error() -> None:
    model = tiny.llama()
    with pytest.raises(RuntimeError, match="stop"), head_at(model, torch.tensor([0]), torch.tensor([0])):
        raise RuntimeError("stop")
    assert whole(model, ROWS[0]).shape == (6, tiny.VOCABULARY)


def test_gradients_of_the_named_positions_are_those_of_the_whole_pass() -> None:
    model, row = tiny.llama().double(), ROWS[0]
    ids_BT, mask_BT = torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool)
    logits_at(model, ids_BT, mask_BT, torch.tensor([0]), torch.tensor([4])).square().sum().backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    whole(model, row)[4].square().sum().backward()
    for mine, theirs in zip(got, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs)
