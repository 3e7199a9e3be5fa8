"""A tiny model, a place to run it in, and the command in this process."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workplace import Done, Workplace, write_model, write_workplace

from duet_unlearn.cli import main


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """A run collects garbage before it trains, which takes half of a tiny run where it looks through all of torch."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of a given size in KB; called again, it changes the size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes: int) -> Path:
        options = ("remount," if folder.is_mount() else "") + f"size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
