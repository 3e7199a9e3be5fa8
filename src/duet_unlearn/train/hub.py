"""Whether a model of the hub can be had, asked once and before anything waits for the network."""

from __future__ import annotations

from pathlib import Path

from duet_unlearn.errors import UserError

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
