"""The publishers' data where ``DUET_DATA`` names them, and a folder with rows of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rows import write_all


@pytest.fixture
def published() -> str:
    """The folder of the publishers' own files."""
    folder = os.environ.get("DUET_DATA")
    if not folder:
        pytest.skip("DUET_DATA is not set: it names the folder with tofu/, mmlu/ and xstest/")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a few rows of every benchmark."""
    write_all(tmp_path)
    return tmp_path
