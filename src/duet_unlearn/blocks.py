"""The inside of a decoder: how much it reads, its blocks, and the layer that writes the output of a block's MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from duet_unlearn.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layer = int | Literal["middle"]
"""A block, counted from 0; ``middle``: the one at half the depth."""
MLPS = ("mlp", "feed_forward", "ffn")
"""What an MLP's name holds in transformers' blocks."""


def context_of(model: nn.Module) -> int | None:
    """How many tokens a model reads, prompt and answer together; None where it does not say."""
    config = cast("PreTrainedModel", model).config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder's blocks, in the order in which they run.

    Raises:
        UserError: the decoder keeps none.
    """
    decoder = cast("PreTrainedModel", model).get_decoder()
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise UserError(
            f"{type(decoder).__name__}: has no list of blocks", "take a method that reads logits alone, such as duet"
        )
    return max(lists, key=len)


def place_of(layer: Layer, num_blocks: int) -> int:
    """The number of a block among so many.

    Raises:
        UserError: there is no such block.
    """
    place = num_blocks // 2 if layer == "middle" else layer
    if not 0 <= place < num_blocks:
        raise UserError(
            f"method.layer is {place}, but the model's blocks are 0 to {num_blocks - 1}",
            f"choose one of them, or null for {num_blocks // 2}",
        )
    return place


def mlp_output(block: nn.Module) -> nn.Module:
    """The linear layer with which a block's MLP ends: `down_proj`, GPT-2's `c_proj`, GPT-NeoX's `dense_4h_to_h`.

    Raises:
        UserError: the block has no MLP, or a mixture of experts in its place.
    """
    named = [child for name, child in block.named_children() if any(word in name for word in MLPS)]
    found = [child for child in named if _linear(child)]
    if len(found) != 1 or any("expert" in name for name, _ in found[0].named_modules()):
        names = ", ".join(name for name, _ in block.named_children())
        raise UserError(
            f"{type(block).__name__}: no linear layer was found with which its MLP ends (its parts are {names};"
            f" looked for: one named {', '.join(MLPS)}, without experts)",
            "take a method that trains all weights or adapters, such as duet",
        )
    return _linear(found[0])[-1]


def _linear(module: nn.Module) -> list[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | Conv1D)]
