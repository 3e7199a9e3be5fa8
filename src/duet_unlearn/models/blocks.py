"""The inside of a decoder: how much it reads, its blocks, and its logits or hidden states at named positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from duet_unlearn.errors import UserError
from duet_unlearn.tensors import position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BlockIndex = int | Literal["middle"]
"""A block, counted from 0; ``middle``: the one at half the depth."""
MLPS = ("mlp", "feed_forward", "ffn")
"""What an MLP's name holds in transformers' blocks."""


def context_of(model: nn.Module) -> int | None:
    """How many tokens a model reads, prompt and answer together; None where it does not say."""
    config = cast("PreTrainedModel", model).config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def num_embeddings(model: PreTrainedModel) -> int:
    """Rows of the embedding: the first id that stands for no token."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[arg-type]


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


def place_of(layer: BlockIndex, num_blocks: int) -> int:
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


@contextmanager
def head_at(model: nn.Module, rows_N: Tensor, cols_N: Tensor) -> Iterator[None]:
    """Inside, the output head sees only the named positions: the model's logits become (1, N, V).

    A hook in front of the head, so that whatever the model does behind it (soft caps, logit scales) still happens.
    """

    def select(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][rows_N, cols_N][None], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def logits_at(
    model: nn.Module,
    ids_BT: Tensor,
    mask_BT: Tensor,
    rows_N: Tensor,
    cols_N: Tensor,
    *,
    run: Callable[..., Any] | None = None,
) -> Tensor:
    """(N, V) next-token logits at the named positions; the head is computed nowhere else. `run` is the model as it is
    to be called, where something is wrapped around it."""
    with head_at(model, rows_N, cols_N):
        return _call(run or model, ids_BT, mask_BT).logits[0]


@contextmanager
def output_of(model: nn.Module, layer: BlockIndex) -> Iterator[list[Tensor]]:
    """Inside, a forward pass ends with a block: its (B, T, D) output is put into the list, and no logits are made.

    The blocks above are taken out of the decoder's list meanwhile, and the head is shown no position. So nothing needs
    to be thrown through the model to stop it, and whatever surrounds it (autocast, gradient checkpointing, the
    wrapper of several processes) meets an ordinary forward pass. Of what is above, the last norm alone still runs.

    Raises:
        UserError: the model has no such block.
    """
    blocks, seen = blocks_of(model), []
    stop = place_of(layer, len(blocks)) + 1
    above = list(blocks)[stop:]

    def catch(_block: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    nothing = torch.zeros(0, dtype=torch.long)
    handle = blocks[stop - 1].register_forward_hook(catch)
    del blocks[stop:]
    try:
        with head_at(model, nothing, nothing):
            yield seen
    finally:
        handle.remove()
        blocks.extend(above)


def hidden_at(
    model: nn.Module,
    ids_BT: Tensor,
    mask_BT: Tensor,
    rows_N: Tensor,
    cols_N: Tensor,
    *,
    layer: BlockIndex,
    run: Callable[..., Any] | None = None,
) -> Tensor:
    """(N, D) hidden states behind a block at the named positions; what lies above it is not computed."""
    with output_of(model, layer) as seen:
        _call(run or model, ids_BT, mask_BT)
    return seen[0][rows_N, cols_N]


def reader(layer: BlockIndex | None) -> Callable[..., Tensor]:
    """``logits_at``; of a layer ``hidden_at``."""
    return logits_at if layer is None else partial(hidden_at, layer=layer)


def _call(run: Callable[..., Any], ids_BT: Tensor, mask_BT: Tensor) -> Any:
    return run(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_ids(mask_BT), use_cache=False)
