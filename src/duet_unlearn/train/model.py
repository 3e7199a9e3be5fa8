"""Loading, adapting and saving Hugging Face models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn

from duet_unlearn.config import LoraConfig
from duet_unlearn.data.files import atomic_folder, read_text
from duet_unlearn.data.prompts import PLAIN_TEMPLATE
from duet_unlearn.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    path: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    chat_template: str | None = None,
    device: torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokeniser, from a folder or the hub; an adapter folder loads with its base.

    Weights are read from safetensors only, and no code of the repository is run.

    Raises:
        UserError: no such folder, a folder that holds no model, no chat template where one is named, hub out of reach.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{path}: is a file, not a model folder", "name the folder that holds config.json")
    if folder.is_dir() and not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise UserError(f"{path}: is no model (it has no config.json)", "name a folder written by save_pretrained")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise UserError(f"{path}: no such model folder", "check the path, or name a hub id such as org/model")
    where = {"local_files_only": True} if folder.is_dir() else {}
    try:
        with no_bars() if where else nullcontext():
            tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **where))
            if (folder / "adapter_config.json").exists():
                model = _load_adapter(folder, dtype)
            else:
                model = AutoModelForCausalLM.from_pretrained(
                    path, dtype=getattr(torch, dtype), use_safetensors=True, **where
                )
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        hint = "check the folder or the hub id, and the network; a gated model needs `hf auth login`"
        raise UserError(f"{path}: cannot be loaded ({first})", hint) from error
    _set_template(tokenizer, chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    cast("nn.Module", model).to(device or default_device())  # the wrapped `to` of transformers has no usable type
    return model.eval(), tokenizer


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def add_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> nn.Module:
    """The model with adapters that alone are trained, drawn from `seed`."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(seed)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [target for target in config.targets if target not in names]
    if missing:
        raise UserError(
            f"model.lora.targets: the model has no layer {missing[0]!r}",
            f"its linear layers are {', '.join(sorted(names))}",
        )
    adapters = PeftConfig(
        r=config.rank,
        lora_alpha=cast("int", config.alpha),  # PEFT annotates an int and divides it as a float
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    with _old_names():
        return get_peft_model(model, adapters)


@contextmanager
def _old_names() -> Iterator[None]:
    """PEFT asks transformers 5 for an attribute by its old name; the warning helps no user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def save_gradient_memory(model: PreTrainedModel) -> None:
    """Gradient checkpointing; inputs get gradients, or the layers under an adapter would silently stay untrained."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


@contextmanager
def teacher_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the teacher: its adapter is off. A model without one must not have been trained yet."""
    from peft import PeftModel

    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            yield
    finally:
        model.train(was_training)


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `save_pretrained` folder (an adapter folder for LoRA) under a temporary name, then rename it.

    Raises:
        UserError: disk full, or not allowed to write.
    """
    with atomic_folder(folder) as temporary, no_bars():
        model.save_pretrained(temporary)  # type: ignore[operator]
        tokenizer.save_pretrained(temporary)


@contextmanager
def no_bars() -> Iterator[None]:
    """Transformers' own bars stay away: for a local folder they flash by and break into the caller's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_adapter(folder: Path, dtype: str) -> PreTrainedModel:
    """Base and adapter; PEFT alone would fall back to weights in pickle, of either."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"{folder}: has no adapter_model.safetensors", "name a folder written by save_pretrained")
    path = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), use_safetensors=True)
    with _old_names():
        return cast("PreTrainedModel", PeftModel.from_pretrained(base, str(folder)))


def _set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    if chat_template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif chat_template is not None:
        tokenizer.chat_template = read_text(Path(chat_template))
