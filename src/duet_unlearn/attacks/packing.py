"""Weights packed by bitsandbytes, as who deploys a model packs them: activations in 8 bits too, blocks in 4."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from torch import nn

from duet_unlearn.attacks.copies import linear_layers
from duet_unlearn.models.quantise import fits_blocks, import_bitsandbytes, use_plain_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

Packing = Literal["bitsandbytes-int8", "bitsandbytes-nf4"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
OUTLIERS = 6.0
"""Inputs as large as this are multiplied in 16 bits, as LLM.int8 has it (arXiv 2208.07339)."""


def can_pack() -> bool:
    """Whether bitsandbytes is installed (extra `quant`); it computes on a CPU too."""
    return find_spec("bitsandbytes") is not None


def packed(model: PreTrainedModel, to: Packing) -> PreTrainedModel:
    """A copy with every linear layer of its blocks packed, on the same device: what ``from_pretrained`` makes with
    ``load_in_8bit``, or with ``nf4`` and double quantisation in 4 bits."""
    import_bitsandbytes()
    own = copy.deepcopy(model)
    names = {layer: name for name, layer in own.named_modules()}
    for layer in linear_layers(own):
        if to == "bitsandbytes-nf4" and own.device.type == "cpu" and not fits_blocks(layer):
            continue  # computed wrongly there; `from_pretrained` is told to leave it whole too
        own.set_submodule(names[layer], _packed(cast("nn.Linear | Conv1D", layer), to))
    use_plain_kernels(own)
    return own


def _packed(layer: nn.Linear | Conv1D, to: Packing) -> nn.Module:
    import bitsandbytes
    from transformers.pytorch_utils import Conv1D

    packing: Any = bitsandbytes.nn  # of which some types are not told
    weight_OI = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
    weight_OI, shape = weight_OI.contiguous().clone(), (*weight_OI.T.shape, layer.bias is not None)
    if to == "bitsandbytes-int8":
        new = packing.Linear8bitLt(*shape, has_fp16_weights=False, threshold=OUTLIERS)
        new.weight = packing.Int8Params(weight_OI, requires_grad=False, has_fp16_weights=False)
    else:
        new = packing.Linear4bit(*shape, compute_dtype=weight_OI.dtype, quant_type="nf4")
        new.weight = packing.Params4bit(weight_OI, requires_grad=False, quant_type="nf4", module=new)
    new.bias = layer.bias
    return new.to(layer.weight.device).train(layer.training)  # packs on the way
