"""Uploading an exported folder: only where it was asked for, and private."""

from __future__ import annotations

from pathlib import Path

from duet_unlearn.errors import UserError
from duet_unlearn.export.base import require_id


def may_push(repo: str) -> None:
    """Check, before anything is written, what an upload needs.

    Raises:
        UserError: no hub id; nobody is logged in.
    """
    from huggingface_hub import get_token

    require_id(repo, "--push")
    if not get_token():
        raise UserError(f"--push {repo}: nobody is logged in to the hub", "`hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repo: str) -> str:
    """Upload a folder into a hub repository, which is made private if it is new; its address.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with duet-unlearn")
    except Exception as error:  # the errors of the hub's HTTP client are of another package in every major version
        first = str(error).strip().split("\n")[0]
        hint = f"the folder is whole; once that is put right: hf upload {repo} {folder}"
        raise UserError(f"--push {repo}: the upload failed ({first})", hint) from error
    return str(url)
