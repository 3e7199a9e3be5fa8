"""A tiny model, a place to run it in, and the command in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from workplace import Done, Workplace, write_model, write_workplace

from duet_unlearn.cli import main


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that all runs of a session start from; nothing may write into it."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def workplace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The current folder for the length of a test."""
    monkeypatch.chdir(tmp_path)
    return write_workplace(tmp_path, tiny_model)


@pytest.fixture
def duet(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, called in this process: the code, the streams and the error handling are those of a shell."""

    def call(*args: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        return Done(int(stop.value.code or 0), *capfd.readouterr())

    return call
