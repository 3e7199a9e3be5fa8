"""Weights of 4 and 8 bits by bitsandbytes, with the same arithmetic on every processor."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from duet_unlearn.errors import UserError, needs_extra

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig

Quantise = Literal["nf4", "int8"]


BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit form."""
logger = logging.getLogger(__name__)


def quantisation(quantise: Quantise, dtype: torch.dtype, config: PreTrainedConfig) -> BitsAndBytesConfig:
    """What `from_pretrained` is told; `dtype` is the type that 4-bit weights are multiplied in.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    import_bitsandbytes()
    with needs_extra("quant", f"model.quantise: {quantise}"):
        import bitsandbytes  # noqa: F401  # transformers' own error names no extra
    if quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    head = skeleton.get_output_embeddings()
    layers = {layer: name for name, layer in skeleton.named_modules() if is_linear(layer)}
    whole = [name for layer, name in layers.items() if layer is not head and not fits_blocks(layer)]
    if torch.cuda.is_available():
        whole = []
    if whole:
        say_once(left_whole(whole))
        whole.append(layers[head])  # transformers leaves it whole only where it is told of no layer
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole or None,
    )


def is_linear(layer: nn.Module) -> bool:
    """Whether bitsandbytes would pack a layer; GPT-2 has its own kind."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, nn.Linear | Conv1D)


def fits_blocks(layer: nn.Module) -> bool:
    """Whether every row of a layer's matrix is made of whole blocks.

    Where it is not, and the number of inputs is even, bitsandbytes 0.50.2 dequantises wrongly on a CPU (seen on
    one with AVX-512): it takes the scales as if every row began a new block. What comes out is off by 16 to 37 % of the
    weights' norm instead of 9.
    """
    weight = cast("nn.Linear", layer).weight
    return weight.shape[1 if isinstance(layer, nn.Linear) else 0] % BLOCK == 0


def left_whole(names: Sequence[str]) -> str:
    """A line about layers that stay as they are."""
    kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
    return (
        f"warning: {len(names)} layers stay unquantised ({kinds}): on a CPU bitsandbytes computes 4-bit layers wrongly"
        f" whose number of inputs {BLOCK} does not divide"
    )


@cache
def say_once(text: str) -> None:
    """A warning that is said once in a process, however many models are loaded."""
    logger.warning(text)


def check_blocks(model: nn.Module, path: str) -> None:
    """Refuse a model that was saved in 4 bits and would be computed wrongly here (``fits_blocks``).

    Raises:
        UserError: a layer of it would be.
    """
    for name, layer in model.named_modules():
        packed = getattr(getattr(layer, "weight", None), "quant_state", None)
        if packed is not None and packed.shape[-1] % BLOCK and layer.weight.device.type == "cpu":
            raise UserError(
                f"{path}: is saved in 4 bits, and its layer {name} has {packed.shape[-1]} inputs, which {BLOCK} does"
                " not divide: on a CPU bitsandbytes would compute it wrongly",
                "load it on a GPU, or take the model whose weights are not quantised",
            )


def is_quantised(model: nn.Module) -> bool:
    """Whether a model's weights are packed, by us or in its folder: such weights cannot be trained, only adapters."""
    return getattr(model, "hf_quantizer", None) is not None


def import_bitsandbytes() -> None:
    """Import bitsandbytes, where it is installed, without what it does for one kind of processor.

    Call it before anything that may import bitsandbytes by itself, such as PEFT. On a processor with AVX512-BF16 the
    import looks for a compiled kernel on the Hugging Face hub, through the package `kernels`, and warns on stderr where
    it finds none. That kernel is never used here (see ``use_plain_kernels``), and nothing is to be fetched unasked.
    """
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # "Failed to load .."
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)  # a line a product: int8 computes in fp16
    missing = object()
    before = sys.modules.get("kernels", missing)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # "import kernels" now fails, as where it is not installed
    try:
        import bitsandbytes  # noqa: F401
    finally:
        if before is missing:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before  # type: ignore[assignment]


def use_plain_kernels(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew for processors with AVX512-BF16.

    In evaluation mode such a processor's layers change their weights to another layout, for good. It has three faults:
    its product has no backward pass, so adapters that are trained afterwards get gradients that lack all that runs
    through the layer; it rounds everything to bfloat16, whatever the compute type; and it fails on layers with fewer
    inputs than a block of 64 weights, or a number of outputs that 32 does not divide. Without it all processors compute
    the same, on dequantised weights.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
