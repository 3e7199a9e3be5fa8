"""Whole sweeps over a tiny model: what they leave, and what is said of a run that fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import SMALL, results, write_suite
from test_faults import refused
from workplace import Done, Workplace, write_workplace

from duet_unlearn.api import unlearn
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event
from duet_unlearn.sweep import prepare, run, workers

Duet = Callable[..., Done]


@pytest.fixture(scope="module")
def heard() -> list[Event]:
    """What a watcher of that sweep hears."""
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, heard: list[Event]) -> Path:
    """The folder of a sweep that nobody disturbed."""
    place = write_workplace(tmp_path_factory.mktemp("whole"), tiny_model)
    run(prepare(write_suite(place.folder), place.folder / "out"), on_event=heard.append)
    return place.folder / "out"


def rows(out: Path, kind: str) -> dict[str, dict]:
    return {row["folder"]: row for row in results(out)["runs"] if row["kind"] == kind}


def test_every_run_has_a_folder_a_row_and_its_place_in_the_results(whole: Path) -> None:
    found = results(whole)
    assert found["finished"]
    assert found["counts"] == {
        "tune": {"done": 4, "failed": 0, "total": 4},
        "test": {"done": 8, "failed": 0, "total": 8},
        "reference": {"done": 2, "failed": 0, "total": 2},
    }
    assert set(rows(whole, "tune")) == {f"tune/{method}/{n}" for method in ("duet", "ascent") for n in (0, 1)}
    tests = rows(whole, "test")
    assert set(tests) == {
        f"test/{method}/{target}-{seed}"
        for method in ("duet", "ascent")
        for target in ("mira", "half")
        for seed in (0, 1)
    }
    for folder, row in tests.items():
        assert json.loads((whole / folder / "row.json").read_text()) == row
        assert row["scores"]["forget"]["right"]["n"] == (4 if "half" in folder else 6)
        assert row["tokens"] > 0
        assert row["steps"] == len((whole / folder / "metrics.jsonl").read_text().splitlines())
        assert row["seconds"]["total"] >= row["seconds"]["train"] > 0
        assert row["peak_memory"] > 10**7
    assert list((whole / "claims").rglob("[0-9]*")) == []
    assert "methods compared" in (whole / "report.html").read_text()


def test_the_settings_that_are_tested_are_those_that_tuning_chose(whole: Path) -> None:
    for method in results(whole)["methods"]:
        scores = [trial["score"] for trial in method["trials"]]
        assert method["chosen"] == scores.index(max(scores))
        assert method["settings"] == method["trials"][method["chosen"]]["settings"]
        tested = [row for row in rows(whole, "test").values() if row["method"] == method["name"]]
        assert [row["settings"] for row in tested] == [method["settings"]] * 4
        assert [row["trial"] for row in tested] == [method["chosen"]] * 4
    for folder, row in rows(whole, "tune").items():
        scores = json.loads((whole / folder / "evals/student.json").read_text())["scores"]
        assert row["forget"] == pytest.approx(1 - scores["forget"]["refused"]["value"])  # the base refuses nothing
        assert row["seed"] == 3


def test_models_are_kept_of_tests_and_nothing_else_that_is_large(whole: Path) -> None:
    for folder in rows(whole, "tune"):
        assert not [name for name in ("model", "targets", "checkpoints") if (whole / folder / name).exists()]
        assert (whole / folder / "samples/student.jsonl").exists()
    for folder in rows(whole, "test"):
        assert (whole / folder / "model/model.safetensors").exists()
        assert not (whole / folder / "targets").exists()


def test_base_and_prefix_are_asked_once_for_each_set_of_questions(whole: Path) -> None:
    """Answers that were taken over cost no time to evaluate, and are the same files."""
    asked = [json.loads((whole / folder / "evals/base.json").read_text()) for folder in rows(whole, "test")]
    for number in (6, 4):
        same = [one for one in asked if one["scores"]["forget"]["refused"]["n"] == number]
        assert len(same) == 4
        assert len({one["seconds"] for one in same}) == 1  # no two evaluations take the same nanoseconds
    assert set(results(whole)["baselines"]["mira"]) == {"base", "prefix"}


def test_a_run_in_a_sweep_is_the_run_alone(whole: Path) -> None:
    """Worker processes do many runs, one after the other; none leaves a trace in the next."""
    sweep = prepare(whole.parent / "suite.yaml", whole)
    task = next(task for task in sweep.tasks() if task.folder == "test/ascent/half-1")
    alone = unlearn(sweep.recipe(task), out=whole.parent / "alone")
    weights = "model/model.safetensors"
    assert (alone.path / weights).read_bytes() == (whole / task.folder / weights).read_bytes()


def test_relearning_stands_beside_that_of_the_base(whole: Path) -> None:
    for row in (*rows(whole, "test").values(), *results(whole)["baselines"].values()):
        again = row["relearned"] if "relearned" in row else row["base"]["relearned"]
        assert again["steps"] == 2
        assert list(again["rates"]) == ["0.001", "0.01"]
        assert again["worst"]["value"] == max(score["value"] for score in again["rates"].values())
        assert again["asked"] == again["shown"]  # half of the facts each


def test_means_are_over_targets_and_seeds(whole: Path) -> None:
    found = results(whole)["summary"]["ascent"]
    values = {
        target: [
            row["scores"]["retain"]["rouge_l"]["value"]
            for row in rows(whole, "test").values()
            if (row["method"], row["target"]) == ("ascent", target)
        ]
        for target in ("mira", "half")
    }
    assert all(len(ones) == 2 for ones in values.values())
    assert found["runs"] == 4
    assert found["sets"]["forget"]["n"] == 2 * 6 + 2 * 4
    assert found["sets"]["forget"]["mean"] == 0.0
    assert found["sets"]["forget"]["over_seeds"] == 0.0


def test_a_finished_sweep_is_shown_and_nothing_is_done_again(whole: Path, duet: Duet) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/**/row.json")}
    done = duet("sweep", whole.parent / "suite.yaml", "--out", whole)
    assert done.code == 0
    assert "14 runs, 14 of them done; about 0 s" in done.err
    assert "ascent" in done.out
    assert "relearned ↓" in done.out
    assert {path: path.stat().st_mtime_ns for path in whole.glob("*/**/row.json")} == before
    as_json = duet("sweep", whole.parent / "suite.yaml", "--out", whole, "--json")
    assert json.loads(as_json.out)["counts"]["test"]["done"] == 8


def test_a_run_of_a_sweep_is_purged_outside_of_it(whole: Path, duet: Duet, tmp_path: Path) -> None:
    run = next(iter(sorted(whole.glob("test/duet/*"))))
    refused(duet("purge", run, "--yes"), "is a run of a sweep", "purge the copy")
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert duet("purge", copy, "--yes").code == 0
    assert (run / "samples").exists()


def test_the_time_comes_first_and_then_a_line_a_run(workplace: Workplace, duet: Duet) -> None:
    done = duet("sweep", write_suite(workplace.folder, SMALL), "--out", "out")
    first, *lines = done.err.splitlines()
    assert first.startswith("sweep small: 1 methods, 2 trials each, 1 tests each: 3 runs, about 90 s with 1 worker")
    assert [line.split(":")[1].split()[0] for line in lines] == ["0/3", "1/3", "2/3", "3/3"]
    assert all(line.endswith(" left") for line in lines)
    assert "duet, trial 1: score 0.000 (forgot 0%, kept 100%) in" in lines[2]


def test_what_fails_is_told_and_the_rest_goes_on(workplace: Workplace, duet: Duet) -> None:
    """A trial whose loss is no number is the worst; a method that never comes through has no tests."""
    text = SMALL.replace("[1.0e-3, 1.0e-2]", "[1.0e+30, 1.0e-2]")
    text += "  - {recipe: recipe.yaml, name: broken, grid: {train.rate: [1.0e+30, 1.0e+29]}}\n"
    done = duet("sweep", write_suite(workplace.folder, text), "--out", "out")
    assert done.code == 1
    assert "the table lacks 1 of its tests or methods" in done.err
    assert "broken: every trial failed, so it has no tests" in done.err
    found = results(Path("out"))
    assert found["finished"]
    assert found["counts"]["tune"] == {"done": 1, "failed": 3, "total": 4}
    assert found["counts"]["test"] == {"done": 1, "failed": 0, "total": 1}
    duet_method, broken = found["methods"]
    assert duet_method["chosen"] == 1
    assert duet_method["trials"][0]["score"] is None
    failed = json.loads(Path("out/tune/duet/0/failed.json").read_text())
    assert "loss" in failed["failed"]
    assert failed["failed"] == duet_method["trials"][0]["failed"]
    assert broken["failed"] == "every trial failed"
    assert not Path("out/test/broken").exists()


def test_a_method_without_settings_or_weights_is_tested_all_the_same(workplace: Workplace) -> None:
    text = SMALL + "  - {recipe: recipe.yaml, name: told, settings: {method.name: prefix}, untuned: has no setting}\n"
    text += "after_tests: {relearn: {steps: 2, rates: [1.0e-3]}}\n"
    found = run(prepare(write_suite(workplace.folder, text), "out"))
    told = found["methods"][1]
    assert (told["trials"], told["chosen"], told["settings"], told["untuned"]) == ([], None, {}, "has no setting")
    row = next(row for row in found["runs"] if row["method"] == "told")
    assert (row["kind"], row["trial"], row["steps"], row["tokens"]) == ("test", None, 0, 0)
    assert row["relearned"] == {"not_applicable": "the method changes no weights"}
    assert "relearned" not in found["summary"]["told"]["sets"]


def test_an_error_that_nobody_expected_fails_its_run_and_keeps_its_trace(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = workers.unlearn, iter(range(100))

    def once(*args, **settings):
        if next(calls) == 0:
            raise ZeroDivisionError("of no use")
        return real(*args, **settings)

    monkeypatch.setattr(workers, "unlearn", once)
    found = run(prepare(write_suite(workplace.folder, SMALL), "out"))
    assert found["methods"][0]["trials"][0]["failed"] == "ZeroDivisionError: of no use"
    assert found["methods"][0]["chosen"] == 1
    assert "Traceback" in json.loads(Path("out/tune/duet/0/failed.json").read_text())["traceback"]


def test_a_machine_on_which_everything_breaks_stops(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("the device is gone")

    text = SMALL.replace("[1.0e-3, 1.0e-2]", "[1.0e-3, 1.0e-2, 2.0e-2, 3.0e-2]")
    monkeypatch.setattr(workers, "unlearn", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(prepare(write_suite(workplace.folder, text), "out"))
    assert len(list(Path("out/tune/duet").glob("*/failed.json"))) == 2  # the third is to be done again


def test_a_full_disk_stops_the_sweep_and_is_no_runs_failure(
    workplace: Workplace, small_disk: Callable[[int], Path], duet: Duet
) -> None:
    folder = small_disk(150)
    call = ("sweep", write_suite(workplace.folder, SMALL), "--out", folder / "out")
    done = duet(*call)
    assert done.code == 1
    assert "disk full while writing" in done.err
    assert not list(folder.rglob("failed.json"))
    small_disk(20000)
    assert duet(*call).code == 0


def test_a_run_that_workers_are_lost_over_is_given_up(workplace: Workplace) -> None:
    sweep = prepare(write_suite(workplace.folder, SMALL), "out")
    for number in range(1, 4):
        path = sweep.claims / "tune--duet--0" / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"place": "elsewhere", "pid": 1}))
        os.utime(path, (0, 0))
    found = run(sweep)
    assert found["methods"][0]["trials"][0]["failed"].startswith("3 workers were lost over it")
    assert found["methods"][0]["chosen"] == 1


def test_what_was_changed_under_a_finished_sweep_is_an_error_and_no_failure_of_a_run(workplace: Workplace) -> None:
    path = write_suite(workplace.folder, SMALL)
    run(prepare(path, "out"))
    row = Path("out/tune/duet/1/row.json")
    before = row.read_text()
    row.write_text(json.dumps(json.loads(before) | {"score": 0.5}))
    with pytest.raises(UserError, match=r"duet\.json: says trial 0, but the trials say 1"):
        run(prepare(path, "out"))
    row.write_text(before)
    shutil.rmtree("out/test")
    workplace.recipe.write_text(workplace.recipe.read_text().replace("epochs: 6", "epochs: 5"))
    Path("out/tune/duet/0/row.json").unlink()
    with pytest.raises(UserError, match=r"tune/duet/0: is the output folder of another run: train\.epochs differs"):
        run(prepare(path, "out"))


@pytest.mark.usefixtures("whole")
def test_a_watcher_hears_of_runs_and_of_what_is_under_way(heard: list[Event]) -> None:
    assert [(event.done, event.total) for event in heard if event.phase == "sweep"] == [(n, 14) for n in range(15)]
    now = [event.text for event in heard if event.phase == "now"]
    assert now[0].startswith("duet, trial 0: ")
    assert all(" left" in text for text in now)
