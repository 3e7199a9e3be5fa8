from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workplace import Done, Workplace, forked

from duet_unlearn import runs
from duet_unlearn.api import default_out, env_info, open_run
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.errors import UserError
from duet_unlearn.runs import InUse, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "run", load_recipe("lab/duet"))


def test_a_new_folder_holds_the_resolved_recipe(run: Run) -> None:
    assert load_recipe(run.recipe) == load_recipe("lab/duet")
    assert [p.name for p in run.path.iterdir()] == ["recipe.yaml"]
    assert not run.finished


def test_the_same_recipe_opens_its_run_again(run: Run) -> None:
    assert open_run(run.path, load_recipe("lab/demo")) == run  # the name and the output folder do not count
    runs.mark_done(run)
    assert open_run(run.path, load_recipe("lab/duet")).finished


def test_another_recipe_is_refused_and_the_first_differing_key_named(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        open_run(run.path, load_recipe("lab/duet", ["method.k=5", "method.positions=2"]))
    assert "output folder of another run: method.k differs" in caught.value.message


def test_a_folder_with_other_things_is_refused_an_empty_one_is_taken(tmp_path: Path) -> None:
    recipe = load_recipe("lab/duet")
    open_run(tmp_path, recipe)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    for path in (foreign, foreign / "thesis.tex"):
        with pytest.raises(UserError, match="no run folder"):
            open_run(path, recipe)


def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".recipe.yaml.123.tmp").write_text("na")
    assert open_run(tmp_path, load_recipe("lab/duet")).recipe.exists()


def test_find_run_wants_a_run(run: Run, tmp_path: Path) -> None:
    assert runs.find_run(run.path) == run
    with pytest.raises(UserError, match="no run folder"):
        runs.find_run(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        runs.find_run(tmp_path / "none")


def test_metrics_drop_a_torn_last_line_and_rows_after_the_checkpoint(run: Run) -> None:
    assert runs.read_metrics(run) == []
    for step in (1, 2, 3):
        runs.append_metrics(run, {"step": step, "loss": 0.1 * step})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in runs.read_metrics(run)] == [1, 2, 3]
    runs.truncate_metrics(run, step=2)
    runs.append_metrics(run, {"step": 3, "loss": 0.3})
    assert [row["step"] for row in runs.read_metrics(run)] == [1, 2, 3]
    assert run.metrics.read_text().endswith("}\n")


def test_a_broken_line_inside_is_named(run: Run) -> None:
    run.metrics.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: is not JSON"):
        runs.read_metrics(run)


def test_timings_of_a_resumed_phase_sum_up(run: Run) -> None:
    runs.add_timing(run, "train", seconds=2.0, peak_memory=100)
    runs.add_timing(run, "train", seconds=1.5, peak_memory=80)
    runs.add_timing(run, "probe", seconds=1.0, peak_memory=10)
    assert json.loads(run.timings.read_text()) == {
        "train": {"seconds": 3.5, "peak_memory": 100},
        "probe": {"seconds": 1.0, "peak_memory": 10},
    }


def test_default_out_tells_recipes_apart() -> None:
    plain, other = (default_out(load_recipe("lab/duet", s)) for s in ([], ["seed=1"]))
    assert plain != other
    assert plain.parent == Path("runs")
    assert plain.name.startswith("lab-duet-")


def test_env_says_what_a_result_hangs_on() -> None:
    recipe = load_recipe("lab/duet", ["seed=5"])
    env = env_info(recipe, hashes={"model": "ab"}, device="cpu", warnings=["no retain queries"])
    assert env["seed"] == 5
    assert set(env["hashes"]) == {"model", "recipe"}
    assert env["packages"]["torch"]
    assert env["warnings"] == ["no retain queries"]
    assert json.loads(json.dumps(env, allow_nan=False)) == env


def hold(folder: Path) -> None:
    with runs.locked(Run(folder)):
        (folder / "held").touch()
        time.sleep(60)


def test_one_process_at_a_time_holds_a_folder_and_a_killed_one_holds_it_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = forked(hold, folder)
    until = time.monotonic() + 20
    while not (folder / "held").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    for _ in range(2):  # the first that was refused took nothing away
        with pytest.raises(InUse) as caught, runs.locked(Run(folder)):
            pass
        assert caught.value.message.startswith(f"{folder}: process {process.pid} on ")
        assert "is at work in this folder" in caught.value.message
        assert "same command" in caught.value.hint
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)
    assert (folder / runs.LOCK).exists()
    with runs.locked(Run(folder)):
        assert f"process {os.getpid()} on " in (folder / runs.LOCK).read_text()


def test_a_lock_is_let_go_and_of_a_finished_run_nothing_of_it_stays(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), runs.locked(run):
        raise ZeroDivisionError
    assert open_run(run.path, load_recipe("lab/duet")) == run
    with runs.locked(run):
        runs.mark_done(run)
    assert sorted(p.name for p in run.path.iterdir()) == ["DONE", "recipe.yaml"]


def test_what_a_start_that_failed_leaves_is_no_obstacle(tmp_path: Path) -> None:
    with runs.locked(Run(tmp_path)):
        pass
    assert open_run(tmp_path, load_recipe("lab/duet")).recipe.exists()


def test_a_run_that_another_process_is_at_is_two_lines(workplace: Workplace, duet: Callable[..., Done]) -> None:
    with runs.locked(Run(Path("out"))):
        done = duet("run", workplace.recipe, "--out", "out")
    assert done.code == 1
    assert [line.split(":")[0] for line in done.err.splitlines()[-2:]] == ["error", "hint"]
    assert f"out: process {os.getpid()} on " in done.err
    assert duet("run", workplace.recipe, "--out", "out").code == 0
    assert not Path("out", runs.LOCK).exists()
