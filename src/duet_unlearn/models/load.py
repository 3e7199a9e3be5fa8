"""Loading, merging and saving Hugging Face models; whether a model of the hub can be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn

from duet_unlearn.data.files import atomic_folder, read_text
from duet_unlearn.data.prompts import PLAIN_TEMPLATE
from duet_unlearn.errors import UserError
from duet_unlearn.models.lora import has_adapter, old_names, turned
from duet_unlearn.models.quantise import (
    Quantise,
    check_blocks,
    import_bitsandbytes,
    is_quantised,
    quantisation,
    use_plain_kernels,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]


def load_model(
    path: str,
    *,
    dtype: DType = "float32",
    chat_template: str | None = None,
    quantise: Quantise | None = None,
    device: torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokeniser, from a folder or the hub; an adapter folder loads with its base.

    Weights are read from safetensors only, and no code of the repository is run. Quantised weights go where
    bitsandbytes puts them: the current CUDA device, else the CPU.

    Raises:
        UserError: no such folder, a folder that holds no model, an encoder or encoder-decoder, no chat template where
            one is named, a model that is gated or absent, hub out of reach, no bitsandbytes where it is needed.
    """
    from transformers import AutoTokenizer

    place = _find(path)
    try:
        with no_bars() if Path(place).is_dir() else nullcontext():
            tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(place, **_settings(place)))
            if (Path(place) / "adapter_config.json").exists():
                model = _load_adapter(Path(place), dtype, quantise)
            else:
                model = _load_base(place, dtype, quantise)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        hint = "it must be what save_pretrained writes, with weights in safetensors; download it anew, or name another"
        raise UserError(f"{path}: cannot be loaded ({first})", hint) from error
    _set_template(tokenizer, chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not is_quantised(model):
        cast("nn.Module", model).to(device or default_device())  # the wrapped `to` of transformers has no usable type
    return model.eval(), tokenizer


def _find(path: str) -> str:
    """A folder that may hold a model, or a hub id for which the hub answers."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
            raise UserError(f"{path}: is no model (it has no config.json)", "name a folder written by save_pretrained")
        return path
    if folder.exists():
        raise UserError(f"{path}: is a file, not a model folder", "name the folder that holds config.json")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"{path}: no such model folder", "check the path, or name a hub id such as org/model")
    return find_on_hub(path)


def _settings(place: str) -> dict[str, Any]:
    """For from_pretrained: of a folder's model nothing is asked of the hub, and no code of a repository is run."""
    return {"local_files_only": Path(place).is_dir(), "trust_remote_code": False}


def _load_base(place: str, dtype: DType, quantise: Quantise | None) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = _settings(place)
    config = AutoConfig.from_pretrained(place, **settings)
    _check_kind(place, config)
    if quantise:
        settings["quantization_config"] = quantisation(quantise, getattr(torch, dtype), config)
    elif getattr(config, "quantization_config", None):  # packed in its folder
        import_bitsandbytes()
    model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype), use_safetensors=True, **settings)
    use_plain_kernels(model)
    check_blocks(model, place)
    return model


def _check_kind(path: str, config: PreTrainedConfig) -> None:
    """Refuse what transformers would load as a causal model, or half of one, although it is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    causal, masked = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING, type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif masked and not getattr(config, "is_decoder", causal):
        kind = "an encoder"
    elif not causal:
        kind = "no causal language model"
    else:
        return
    raise UserError(
        f"{path}: is {kind} ({config.model_type})",
        "name a decoder that writes text from left to right, such as Llama, Qwen, Gemma, Phi or GPT-2",
    )


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def merged(model: nn.Module) -> PreTrainedModel:
    """A model with its adapter added into the weights, in their own type; the model is used up.

    The adapter of a quantised base goes into the base as it was before: packed again, the sum would lose most of what
    the adapter changed.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapted = cast("PeftModel", model)
    base = cast("PreTrainedModel", adapted.get_base_model())
    if is_quantised(base):
        dtype = cast("DType", str(base.dtype).removeprefix("torch."))
        path, config = str(base.name_or_path), adapted.peft_config["default"]
        trained = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        with no_bars(), old_names():
            whole = _load_base(_find(path), dtype, None)
            adapted = cast("PeftModel", get_peft_model(whole, turned(config, whole)))
        set_peft_model_state_dict(adapted, trained)
    return cast("PreTrainedModel", adapted.merge_and_unload()).eval()


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `save_pretrained` folder (an adapter folder for LoRA) under a temporary name, then rename it.

    Raises:
        UserError: disk full, or not allowed to write.
    """
    # PEFT would ask the hub whether the embeddings were resized; nothing here resizes them.
    settings = {"save_embedding_layers": False} if has_adapter(model) else {}
    with atomic_folder(folder) as temporary, no_bars():
        model.save_pretrained(temporary, **settings)  # type: ignore[operator]
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


def _load_adapter(folder: Path, dtype: DType, quantise: Quantise | None) -> PreTrainedModel:
    """Base and adapter; PEFT alone would fall back to weights in pickle, of either."""
    import_bitsandbytes()
    from peft import PeftConfig

    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"{folder}: has no adapter_model.safetensors", "name a folder written by save_pretrained")
    path = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    try:
        base = _load_base(_find(path), dtype, quantise)
    except UserError as error:
        raise UserError(f"{folder}: the adapter's base cannot be loaded ({error.message})", error.hint) from error
    return with_adapter(base, folder)


def with_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The adapter of a folder around a model."""
    import_bitsandbytes()
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    with old_names():
        return cast("PreTrainedModel", PeftModel.from_pretrained(base, str(folder), config=turned(config, base)))


def _set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    if chat_template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif chat_template is not None:
        tokenizer.chat_template = read_text(Path(chat_template))


SECONDS = 10.0
"""The hub must answer within so many; its own client would try for minutes, once a file."""


def find_on_hub(model_id: str) -> str:
    """The id itself where the hub answers for it; else the folder of the copy in this machine's cache.

    Raises:
        UserError: a gated, private or absent model; no network, or HF_HUB_OFFLINE, and no copy. It says what to
            download and where to put it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        get_hf_file_metadata(hf_hub_url(model_id, "config.json"), timeout=SECONDS)
        return model_id
    except Exception as error:  # the errors of the hub's HTTP client are of another package in every major version
        copy = try_to_load_from_cache(model_id, "config.json")
        if isinstance(copy, str):
            return str(Path(copy).parent)
        raise _failure(model_id, error) from error


def _failure(model_id: str, error: Exception) -> UserError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    get = f"`hf download {model_id} --local-dir DIR`"
    match error:
        case GatedRepoError():
            what = "is gated: the hub gives it to those alone who accepted its licence"
            hint = f"accept it on https://huggingface.co/{model_id}, then `hf auth login`; or {get} and name DIR"
        case RepositoryNotFoundError():
            what, hint = "the hub has no such model, or a private one", "check the id; if private, `hf auth login`"
        case EntryNotFoundError():
            what, hint = "is no whole model (no config.json on the hub)", f"if it is an adapter, {get} and name DIR"
        case OfflineModeIsEnabled():
            what = "is not on this machine, and HF_HUB_OFFLINE is set"
            hint = f"unset it; or, with a network, {get}, and set model.path to DIR"
        case _:
            what = f"is not on this machine, and the hub cannot be reached ({type(error).__name__})"
            hint = f"on a machine with a network: {get}; then bring DIR here and set model.path to it"
    return UserError(f"{model_id}: {what}", hint)
