"""What an export takes from the base as it is: tokeniser, template, licence, and the type of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from duet_unlearn.errors import UserError
from duet_unlearn.models.load import DType, find_on_hub

KEPT = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("tekken.json", "chat_template*", "additional_chat_templates/*", "generation_config.json"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""Files of a base that are copied byte by byte; saving a loaded tokeniser would word them anew."""
LICENCE_KEYS = ("license", "license_name", "license_link", "language")
"""What a card takes over from the base's."""


def base_folder(path: str) -> Path:
    """The folder of a base; of a hub id, the cache's with its small files.

    Raises:
        UserError: the hub is out of reach, and the cache has no copy.
    """
    place = path if Path(path).is_dir() else find_on_hub(path)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(place, allow_patterns=[*KEPT, "README.md", "config.json"]))


def kept_files(folder: Path) -> list[Path]:
    """The files that are copied, relative to the folder."""
    found = {path for pattern in KEPT for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder) for path in found)


def stored_dtype(folder: Path) -> DType | None:
    """The type that a base's weights are stored in, by its config; None where it says none that can be written."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    name = str(config.dtype or config.get_text_config().dtype).removeprefix("torch.")
    return cast("DType", name) if name in get_args(DType) else None


def licence(folder: Path) -> dict[str, Any]:
    """Licence and language in the metadata of the base's card; empty where it has none that can be read."""
    from huggingface_hub import metadata_load

    if not (folder / "README.md").is_file():
        return {}
    try:
        found = metadata_load(folder / "README.md")
    except ValueError:  # the base's card is none of the user's doing
        return {}
    return {key: found[key] for key in LICENCE_KEYS if found and key in found}


def hub_id(path: str, given: str | None) -> str | None:
    """The base's id on the hub: `given`, or the recipe's model where that is one.

    Raises:
        UserError: `given` is no hub id.
    """
    if given is not None:
        require_id(given, "--base")
        return given
    return None if path.startswith("lab:") or Path(path).exists() else path


def require_id(name: str, option: str) -> None:
    """Stop where a text cannot be a hub id with its owner.

    Raises:
        UserError: it is not of the form ORG/NAME.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it names no owner")
    except HFValidationError as error:
        raise UserError(f"{option} {name}: is no hub id", "write it as ORG/NAME") from error
