"""Sweeps that several processes do, or one that is stopped: what is left behind is what an undisturbed one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps import SMALL, results, write_suite
from workplace import Done, Workplace, duet_process, write_workplace

from duet_unlearn.api import unlearn
from duet_unlearn.errors import UserError
from duet_unlearn.runs import locked
from duet_unlearn.sweep import prepare, run, slurm_script
from duet_unlearn.sweep.workers import environment

Duet = Callable[..., Done]
PATIENCE = 240
LONG = SMALL.replace("name: small\n", "name: long\nsettings: {train.epochs: 30, train.checkpoint_every: 5}\n")
"""Runs that are long enough to be met in the middle."""


def test_two_processes_share_a_sweep_and_one_takes_over_what_the_other_was_killed_at(
    tmp_path: Path, tiny_model: Path
) -> None:
    place = write_workplace(tmp_path, tiny_model)
    write_suite(tmp_path, LONG)
    out, call = tmp_path / "sweep", ("sweep", "suite.yaml", "--out", "sweep")
    killed, other = duet_process(*call, folder=tmp_path), duet_process(*call, folder=tmp_path)
    struck = wait_for(lambda: next(in_training(out, killed.pid), None))
    assert struck
    killed.kill()
    killed.join(PATIENCE)
    assert killed.exitcode == -signal.SIGKILL
    assert not (out / struck / "row.json").exists()
    other.join(PATIENCE)
    assert other.exitcode == 0, (tmp_path / "err").read_text()
    found = results(out)
    assert found["finished"]
    assert found["counts"]["tune"] == {"done": 2, "failed": 0, "total": 2}
    assert found["counts"]["test"] == {"done": 1, "failed": 0, "total": 1}
    workers = {row["folder"]: int(row["worker"].split(":")[1]) for row in found["runs"]}
    assert workers[struck] == other.pid
    steps = [json.loads(line)["step"] for line in (out / struck / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1))  # taken up at its checkpoint, to the same steps
    assert not list((out / "claims").rglob("[0-9]*"))
    same_as_undisturbed(place, out, struck)


def same_as_undisturbed(place: Workplace, out: Path, folder: str) -> None:
    """The run that two processes did is the run that one would have done."""
    sweep = prepare(place.folder / "suite.yaml", out)
    task = next(task for task in sweep.tasks() if task.folder == folder)
    alone = unlearn(sweep.recipe(task), out=place.folder / "alone")
    samples = "samples/student.jsonl"
    assert (alone.path / samples).read_bytes() == (out / folder / samples).read_bytes()


def in_training(out: Path, pid: int | None) -> Iterator[str]:
    """Folders of runs that a process holds and has a checkpoint of."""
    for claim in out.glob("claims/t*/1"):
        try:
            held = json.loads(claim.read_text() or "{}")
        except FileNotFoundError:
            continue
        folder = claim.parent.name.replace("--", "/")
        if held.get("pid") == pid and list(out.glob(f"{folder}/checkpoints/step-*")):
            yield folder


def wait_for(found: Callable[[], str | None]) -> str:
    start = time.monotonic()
    while not (value := found()):
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.01)
    return value


def test_ctrl_c_gives_everything_back_and_the_same_command_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    write_workplace(tmp_path, tiny_model)
    write_suite(tmp_path, LONG)
    out, call = tmp_path / "sweep", ("sweep", "suite.yaml", "--out", "sweep")
    process = duet_process(*call, folder=tmp_path)
    struck = wait_for(lambda: next(in_training(out, process.pid), None))
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(PATIENCE)
    assert process.exitcode == 130
    assert (tmp_path / "err").read_text().splitlines()[-1] == "stopped; the same command goes on"
    assert not list((out / "claims").rglob("[0-9]*"))
    assert not (out / struck / "row.json").exists()
    again = duet_process(*call, folder=tmp_path)
    again.join(PATIENCE)
    assert again.exitcode == 0, (tmp_path / "err").read_text()
    assert results(out)["finished"]


@pytest.mark.slow
def test_workers_of_one_command(workplace: Workplace, duet: Duet) -> None:
    done = duet("sweep", write_suite(workplace.folder), "--out", "out", "--workers", "2")
    assert done.code == 0, done.err
    assert "with 2 workers" in done.err
    assert len({row["worker"] for row in results(Path("out"))["runs"]}) == 2
    assert len(list(Path("out/logs").iterdir())) == 2


@pytest.mark.slow
def test_a_sweep_that_a_shell_started_in_its_background_ends_when_it_is_told_to(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Such processes ignore SIGINT, and so do their children."""
    write_workplace(tmp_path, tiny_model)
    write_suite(tmp_path, LONG)
    out = tmp_path / "sweep"
    command = f"{sys.executable} -m duet_unlearn sweep suite.yaml --out sweep --workers 2 2> err & echo $!; wait"
    with subprocess.Popen(["sh", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout
        parent = int(shell.stdout.readline())
        wait_for(lambda: next((str(claim) for claim in out.glob("claims/t*/1")), None))
        begun = time.monotonic()
        os.kill(parent, signal.SIGTERM)
        shell.wait(PATIENCE)
    assert time.monotonic() - begun < 25  # within the workers' patience: none was killed
    assert (tmp_path / "err").read_text().splitlines()[-1] == "stopped; the same command goes on"
    assert not list((out / "claims").rglob("[0-9]*"))


@pytest.mark.slow
def test_the_labs_smoke_suite(duet: Duet, tmp_path: Path) -> None:
    """The protocol on the lab: DUET forgets its story, a relearned student knows more than a relearned oracle."""
    done = duet("sweep", "lab-smoke", "--out", tmp_path / "smoke", "--workers", "2")
    assert done.code == 0, done.err
    found = results(tmp_path / "smoke")
    marks = {method["name"]: [trial["score"] for trial in method["trials"]] for method in found["methods"]}
    assert max(marks["duet"]) > 0.9
    assert found["summary"]["duet"]["sets"]["forget_held_out"]["mean"] < 0.2
    assert found["summary"]["duet"]["sets"]["near"]["mean"] > 0.8
    oracle = found["baselines"]["amber-gate"]["oracle"]["relearned"]["worst"]["value"]
    assert found["summary"]["duet"]["sets"]["relearned"]["mean"] > oracle
    assert "relearned" not in found["summary"]["guard"]["sets"]


def test_workers_that_cannot_work_are_told_with_their_last_words(workplace: Workplace, duet: Duet) -> None:
    sweep = prepare(write_suite(workplace.folder, SMALL), "out")
    workplace.recipe.write_text("concept: x\n")
    with pytest.raises(UserError) as caught:
        run(sweep, workers=2)
    assert "the workers ended before the sweep: error: " in caught.value.message
    assert "logs" in caught.value.hint


def test_each_worker_has_its_share_of_cores_and_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = [environment(number, 3) for number in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["2", "5", "2"]
    assert [one["OMP_NUM_THREADS"] for one in found] == ["2", "2", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment(0, 16)["OMP_NUM_THREADS"] == "1"


def test_a_script_for_slurm_in_which_every_task_is_the_same_command(workplace: Workplace, duet: Duet) -> None:
    path = write_suite(workplace.folder)
    script = slurm_script(prepare(path, "my out"), workers=16)
    assert "#SBATCH --array=1-16\n" in script
    assert f"-m duet_unlearn sweep {path} --out '{workplace.folder / 'my out'}'" in script
    printed = duet("sweep", path, "--out", "my out", "--workers", "16", "--slurm")
    assert printed.out == script
    assert not Path("my out/tune").exists()


def test_a_run_that_another_process_is_at_is_waited_for(workplace: Workplace) -> None:
    """As when its former worker was thought dead and lives, or somebody gave `duet run` by hand."""
    sweep = prepare(write_suite(workplace.folder, SMALL), "out")
    worker = threading.Thread(target=run, args=(sweep,))
    with locked(sweep.run(sweep.trials["duet"][0])):
        worker.start()
        wait_for(lambda: str(Path("out/tune/duet/1/row.json").exists() or ""))
        assert not Path("out/tune/duet/0/failed.json").exists()
    worker.join(PATIENCE)
    assert results(Path("out"))["counts"]["tune"] == {"done": 2, "failed": 0, "total": 2}
