"""A model from its config.json alone: shapes without data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from duet_unlearn.errors import UserError, nearest
from duet_unlearn.models.load import find_on_hub

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters; a head that is tied to the embedding counts once."""

    total: int
    active: int
    """Those that one token meets: of a mixture of experts, the chosen experts' alone."""
    linear: int
    """In linear layers other than the head: what QLoRA quantises."""
    largest: int
    """In the largest of those layers."""


def read_config(path: str) -> PreTrainedConfig:
    """The config of a model folder, a config.json, or a hub id; of the hub nothing but this file is fetched.

    Raises:
        UserError: no config, an unknown type, an adapter, no causal language model, settings that do not fit together.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    values = _values(path)
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        close = nearest(str(kind), CONFIG_MAPPING)
        said = f"its config names an unknown model_type {kind!r}" if kind else "its config names no model_type"
        hint = (
            f"did you mean {close}?" if kind and close else "transformers must know the architecture without its code"
        )
        raise UserError(f"{path}: {said}", hint)
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # each architecture has its own checks, with exceptions of any type
        raise UserError(f"{path}: the config does not fit together ({_first(error)})", "check config.json") from error
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True)
    if config.is_encoder_decoder or masked or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{path}: {kind} is no causal language model",
            "name a decoder that writes text from left to right, such as Llama, Qwen, Gemma, Phi or GPT-2",
        )
    return config


def _values(path: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    place = Path(path).expanduser()
    if place.is_dir() and not (place / "config.json").exists():
        if (place / "adapter_config.json").exists():
            raise UserError(f"{path}: is an adapter", "plan its base model, which adapter_config.json names")
        raise UserError(f"{path}: is no model (it has no config.json)", "name a folder that holds config.json")
    if not place.exists() and (path.startswith((".", "/", "~")) or path.count("/") != 1 or path.endswith(".json")):
        raise UserError(f"{path}: no such folder or file", "name a model folder, a config.json, or a hub id: org/model")
    try:
        values, _ = PreTrainedConfig.get_config_dict(str(place) if place.exists() else find_on_hub(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: its config cannot be read ({_first(error)})", "it must be a JSON object") from error
    return values


def draw(path: str, config: PreTrainedConfig, *, dtype: str) -> PreTrainedModel:
    """The model on the meta device.

    Raises:
        UserError: sizes that make no model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except Exception as error:  # as above: whatever a wrong size trips over
        raise UserError(
            f"{path}: no model can be built from this config ({_first(error)})", "check config.json"
        ) from error


def on_paper(model: nn.Module) -> nn.Module:
    """A meta model as tensors that say they are on the CPU; inside a ``FakeTensorMode``, which gives them no data."""
    made: dict[int, Any] = {}  # a tied weight stays one tensor
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = _empty(tensor)
                    own[name] = made[id(tensor)]
    return model


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def count(model: PreTrainedModel) -> Counts:
    """Exact numbers; with experts, `num_experts_per_tok` of those that are stacked in one tensor are active."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    total = active = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        active += size * chosen // parameter.shape[0] if chosen and ".experts." in name else size
    linear = _linear_sizes(model)
    return Counts(total, active, sum(linear), max(linear, default=0))


def _linear_sizes(model: PreTrainedModel) -> list[int]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    return [layer.weight.numel() for layer in layers]


def _first(error: Exception) -> str:
    """The first line of an error's text, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
