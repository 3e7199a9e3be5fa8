"""Adapters: which layers get one, and the model with its adapters off."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.errors import UserError
from duet_unlearn.models.quantise import import_bitsandbytes

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> nn.Module:
    """The model with adapters that alone are trained, drawn from `seed`.

    Raises:
        UserError: a target that no linear layer is named after.
    """
    import_bitsandbytes()
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    torch.manual_seed(seed)
    linear = _linear(model)
    if config.targets is not None:
        _check_targets(config.targets, linear)
    adapters = PeftLoraConfig(
        r=config.rank,
        lora_alpha=cast("int", config.alpha),  # PEFT annotates an int and divides it as a float
        target_modules=list(config.targets) if config.targets is not None else default_targets(model),
        task_type="CAUSAL_LM",
    )
    with old_names():
        return get_peft_model(model, turned(adapters, model))


def default_targets(model: PreTrainedModel) -> list[str]:
    """Names that pick every linear layer of the decoder's blocks except routers, and no other layer of the model.

    Short names (``q_proj``) where nothing outside the blocks is called so; full ones otherwise (a vision tower has a
    ``q_proj`` too).
    """
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    inside = {layer for blocks in lists for layer in blocks.modules()}
    linear = _linear(model)
    chosen = [name for name, layer in linear.items() if layer in inside and not name.endswith(("gate", "router"))]
    short = {_last(name) for name in chosen}
    return sorted(short) if sum(_last(name) in short for name in linear) == len(chosen) else chosen


def turned(adapters: PeftConfig, model: nn.Module) -> PeftConfig:
    """The adapters told which way round the weights lie: GPT-2's Conv1D holds them transposed, but not when packed."""
    from peft import LoraConfig as PeftLoraConfig
    from transformers.pytorch_utils import Conv1D

    if not isinstance(adapters, PeftLoraConfig):
        return adapters
    transposed = any(type(layer) is Conv1D for layer in _linear(model).values())
    return replace(adapters, fan_in_fan_out=transposed)


def _check_targets(targets: Sequence[str], linear: Mapping[str, nn.Module]) -> None:
    names = {_last(name) for name in linear}
    missing = [target for target in targets if target not in names]
    if missing:
        raise UserError(
            f"model.lora.targets: the model has no layer {missing[0]!r}",
            f"its linear layers are {', '.join(sorted(names))}; null takes those of the blocks",
        )


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers by name; GPT-2 has its own kind."""
    from transformers.pytorch_utils import Conv1D

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))}


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def save_gradient_memory(model: PreTrainedModel) -> None:
    """Gradient checkpointing; inputs get gradients, or the layers under an adapter would silently stay untrained."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT wraps the model. PEFT itself is not imported for that: with bitsandbytes it takes seconds."""
    return type(model).__module__.partition(".")[0] == "peft"


@contextmanager
def teacher_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the teacher: its adapter is off. A model without one must not have been trained yet."""
    was_training = model.training
    model.eval()
    try:
        with cast("PeftModel", model).disable_adapter() if has_adapter(model) else nullcontext():
            yield
    finally:
        model.train(was_training)


@contextmanager
def old_names() -> Iterator[None]:
    """PEFT asks transformers 5 for an attribute by its old name; the warning helps no user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
