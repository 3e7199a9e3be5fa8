"""Killed at any moment, the same command goes on to the same result."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from workplace import Workplace, duet_process, write_workplace

NUM_STEPS = 60
SETTINGS = ("train.epochs=20", "train.checkpoint_every=7")
LORA = ("model.lora.rank=4",)
VALIDATING = ("data.validation_forget=forget.jsonl", "train.validate_every=4", "train.early_stop=50")
ATTACKED = ("method.name=bidirectional", "method.k=20", "prefix.text=No {concept}.", "train.epochs=5")
PATIENCE = 120
"""Seconds after which a run hangs."""


@dataclass(frozen=True)
class Attempts:
    """One command, given again and again in one folder."""

    place: Workplace
    settings: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        return self.place.folder / "run"

    def start(self) -> BaseProcess:
        overrides = [word for setting in (*SETTINGS, *self.settings) for word in ("--set", setting)]
        return duet_process("run", "recipe.yaml", "--out", "run", *overrides, folder=self.place.folder)

    def finish(self) -> None:
        """Undisturbed to its end."""
        process = self.start()
        process.join(PATIENCE)
        assert process.exitcode == 0, (self.place.folder / "err").read_text()

    def kill_after(self, seconds: float) -> bool:
        """`kill -9` it; whether it was still at work."""
        process = self.start()
        process.join(seconds)
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL), (self.place.folder / "err").read_text()
        return process.exitcode != 0

    def outcome(self) -> dict[str, bytes]:
        """What must come out the same, to the bit, whatever happened on the way."""
        assert (self.run / "DONE").exists()
        assert not (self.run / "checkpoints").exists()
        weights = sorted((self.run / "model").glob("*.safetensors"))
        texts = [self.run / "probe.json", *sorted((self.run / "samples").glob("*.jsonl"))]
        texts += sorted((self.run / "picks").glob("*.json"))
        return {path.name: path.read_bytes() for path in (*weights, *texts)}

    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[dict[str, bytes], float]:
    """What the run comes to when nobody stops it, and how many seconds it takes."""
    place = write_workplace(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    duet_process("--version", folder=place.folder).join(PATIENCE)  # the first one waits for the imports
    attempts, start = Attempts(place), time.monotonic()
    attempts.finish()
    return attempts.outcome(), time.monotonic() - start


@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    num_kills: int, tmp_path: Path, tiny_model: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    """Kills that struck, over as many runs as that takes; every run ends as if nothing had happened."""
    expected, seconds = undisturbed
    draw, kills, number = random.Random(0), 0, 0
    while kills < num_kills:
        attempts = Attempts(write_workplace(tmp_path / str(number), tiny_model))
        while kills < num_kills and attempts.kill_after(draw.uniform(0.1, 1.0) * seconds):
            kills += 1
        attempts.finish()
        assert attempts.outcome() == expected
        assert attempts.steps() == list(range(1, NUM_STEPS + 1))
        number += 1


@pytest.mark.parametrize("settings", [LORA, VALIDATING, ATTACKED], ids=["lora", "validating", "attacked"])
def test_killed_once_in_training(settings: tuple[str, ...], tmp_path: Path, tiny_model: Path) -> None:
    """Adapters come from the seed again; the best weights so far, the count of failures, and the attacks that a student
    of an epoch's start chose, in the middle of which it is killed, are not forgotten."""
    whole = Attempts(write_workplace(tmp_path / "whole", tiny_model), settings)
    whole.finish()
    killed = Attempts(write_workplace(tmp_path / "killed", tiny_model), settings)
    stop_in_training(killed, signal.SIGKILL)
    killed.finish()
    assert killed.outcome() == whole.outcome()
    assert killed.steps() == whole.steps()


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, tiny_model: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    attempts = Attempts(write_workplace(tmp_path, tiny_model))
    assert stop_in_training(attempts, signal.SIGINT) == 130
    assert (tmp_path / "err").read_text().splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in (tmp_path / "err").read_text()
    attempts.finish()
    assert attempts.outcome() == undisturbed[0]
    assert attempts.steps() == list(range(1, NUM_STEPS + 1))


def stop_in_training(attempts: Attempts, number: signal.Signals) -> int | None:
    """Send a signal once there is a checkpoint; the exit code."""
    process, start = attempts.start(), time.monotonic()
    while not list((attempts.run / "checkpoints").glob("step-*")):
        assert process.is_alive(), (attempts.place.folder / "err").read_text()
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.002)
    os.kill(process.pid or 0, number)
    process.join(PATIENCE)
    assert not (attempts.run / "DONE").exists(), "the run was faster than the signal"
    return process.exitcode
