"""Hidden states behind a block, in every family, against transformers' own and against whole forward passes."""

from __future__ import annotations

import pytest
import torch
from architectures import BY_NAME, FAMILIES, Family, model, tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import blocks_of, hidden_at, output_of, reader
from duet_unlearn.models.lora import save_gradient_memory
from duet_unlearn.tensors import pad

ROWS = [[9, 11, 12, 13, 14, 15], [20, 21], [30, 31, 32, 33]]
ROWS_N, COLS_N = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([5, 1, 0, 3, 0])


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def made(family: Family) -> PreTrainedModel:
    return model(family, tokenizer(family))


def read(of: nn.Module, layer: int) -> Tensor:
    padded = pad(ROWS, 0, side="right")
    return hidden_at(of, padded.ids_BT, padded.mask_BT, ROWS_N, COLS_N, layer=layer)


def behind(of: PreTrainedModel, layer: int, row: list[int]) -> Tensor:
    """(T, D) what a block puts out in a whole forward pass of a row alone."""
    seen: list[Tensor] = []
    watch = blocks_of(of)[layer].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    of(input_ids=torch.tensor([row]), use_cache=False)
    watch.remove()
    return seen[0][0]


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_hidden_states_are_those_of_a_whole_forward_pass(family: Family, layer: int) -> None:
    of = made(family)
    expected = [behind(of, layer, row) for row in ROWS]
    got_ND = read(of, layer)
    wanted_ND = torch.stack([expected[r][c] for r, c in zip(ROWS_N.tolist(), COLS_N.tolist(), strict=True)])
    torch.testing.assert_close(got_ND, wanted_ND, rtol=1e-4, atol=1e-4)
    assert got_ND.std() > 0.01
    if layer == 0:  # of the last block transformers gives what the final norm makes of it
        theirs = [of(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[1][0] for row in ROWS]
        for mine, row in zip(expected, theirs, strict=True):
            assert torch.equal(mine, row)


@torch.no_grad()
def test_what_lies_above_is_not_run_and_comes_back(family: Family) -> None:
    of, row = made(family), torch.tensor([ROWS[0]])
    before, names = of(input_ids=row).logits, [name for name, _ in of.named_parameters()]
    ran: list[str] = []
    for number, block in enumerate(blocks_of(of)):
        block.register_forward_hook(lambda *_, number=number: ran.append(f"block {number}"))
    of.get_output_embeddings().register_forward_hook(lambda _m, _i, output: ran.append(f"head {output.shape[-2]}"))
    read(of, 0)
    assert ran == ["block 0", "head 0"]  # the head sees no position
    assert torch.equal(of(input_ids=row).logits, before)
    assert [name for name, _ in of.named_parameters()] == names


def test_everything_comes_back_after_an_error() -> None:
    of = made(BY_NAME["llama-3"])
    before = of(input_ids=torch.tensor([ROWS[0]])).logits
    with output_of(of, 0):
        assert len(blocks_of(of)) == 1
    with pytest.raises(RuntimeError, match="stop"), output_of(of, 0):
        raise RuntimeError("stop")
    assert len(blocks_of(of)) == 2
    assert torch.equal(of(input_ids=torch.tensor([ROWS[0]])).logits, before)
    with pytest.raises(UserError, match=r"method.layer is 2, but the model's blocks are 0 to 1"):
        read(of, 2)
    assert len(blocks_of(of)) == 2


def test_the_middle_and_no_layer() -> None:
    of, padded = made(BY_NAME["qwen-3"]), pad(ROWS, 0, side="right")
    where = (padded.ids_BT, padded.mask_BT, ROWS_N, COLS_N)
    assert torch.equal(reader("middle")(of, *where), read(of, 1))
    assert reader(None)(of, *where).shape == (5, of.config.vocab_size)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_a_whole_forward_pass(family: Family, checkpointing: bool) -> None:
    """Also where the block's activations are computed again in the backward pass."""
    of, whole = made(family), made(family)
    if checkpointing:
        save_gradient_memory(of)
        of.train()
    read(of, 0).square().sum().backward()
    total = torch.zeros(())
    for r, c in zip(ROWS_N.tolist(), COLS_N.tolist(), strict=True):
        total = total + behind(whole, 0, ROWS[r])[c].square().sum()
    total.backward()
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    got = {name: p.grad for name, p in of.named_parameters() if p.grad is not None and p.grad.any()}
    assert got.keys() == {name for name, gradient in expected.items() if gradient.any()}
    assert len(got) >= 6
    assert not [name for name in got if ".1." in name]  # nothing of the block above
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * largest)
