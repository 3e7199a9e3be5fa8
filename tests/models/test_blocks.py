"""A decoder's blocks and the last matrix of their MLPs, in every family that is supported."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import blocks_of, mlp_output, place_of

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
FEW = SIZES | {"num_key_value_heads": 2}
OUTPUTS = {
    "llama": (FEW, "down_proj"),
    "gemma2": (FEW | {"head_dim": 8}, "down_proj"),
    "phi3": (FEW | {"pad_token_id": 0}, "down_proj"),
    "gpt_neox": (SIZES, "dense_4h_to_h"),
    "gpt2": ({"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2}, "c_proj"),
    "phi": (SIZES, "fc2"),
    "falcon": ({k: v for k, v in SIZES.items() if k != "intermediate_size"}, "dense_4h_to_h"),
    "mpt": ({"vocab_size": 40, "d_model": 16, "n_layers": 3, "n_heads": 2}, "down_proj"),
}


def model_of(kind: str, **sizes: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_last_matrix_of_every_blocks_mlp(kind: str) -> None:
    sizes, name = OUTPUTS[kind]
    model = model_of(kind, **sizes)
    blocks = blocks_of(model)
    assert len(blocks) == 3
    names = {id(module): path for path, module in model.named_modules()}
    for number, block in enumerate(blocks):
        path = names[id(mlp_output(block))]
        assert f".{number}." in path
        assert path.endswith(f".{name}")


def test_it_writes_what_the_mlp_adds() -> None:
    """Its output is the MLP's own."""
    model, seen = tiny.llama(layers=2), {}
    for name, module in (("mlp", blocks_of(model)[1].mlp), ("last", mlp_output(blocks_of(model)[1]))):
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert torch.equal(seen["mlp"], seen["last"])


def test_experts_and_blocks_without_an_mlp_are_refused() -> None:
    sizes = FEW | {"num_local_experts": 2, "num_experts_per_tok": 1}
    with pytest.raises(UserError, match=r"MixtralDecoderLayer: no linear layer .* looked for: one named mlp, feed"):
        mlp_output(blocks_of(model_of("mixtral", **sizes))[0])
    with pytest.raises(UserError, match=r"MambaBlock: .*its parts are norm, mixer"):
        mlp_output(blocks_of(model_of("mamba", vocab_size=40, hidden_size=16, num_hidden_layers=1))[0])


def test_a_decoder_without_blocks_is_refused() -> None:
    class Flat(nn.Module):
        def get_decoder(self) -> nn.Module:
            return nn.Linear(2, 2)

    with pytest.raises(UserError, match="Linear: has no list of blocks"):
        blocks_of(Flat())


@pytest.mark.parametrize(("layer", "num_blocks", "place"), [("middle", 32, 16), ("middle", 1, 0), (0, 4, 0), (3, 4, 3)])
def test_the_place_of_a_block(layer: int, num_blocks: int, place: int) -> None:
    assert place_of(layer, num_blocks) == place


@pytest.mark.parametrize("layer", [4, -1])
def test_a_block_that_is_not_there(layer: int) -> None:
    with pytest.raises(UserError, match=rf"method.layer is {layer}, but the model's blocks are 0 to 3") as caught:
        place_of(layer, 4)
    assert caught.value.hint == "choose one of them, or null for 2"
