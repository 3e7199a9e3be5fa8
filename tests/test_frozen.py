"""What an earlier version wrote still opens, goes on and says the same; what it computed inside is computed still.

The folders in `frozen/place` were made by commit c287386, as `frozen/make.py` tells. Commands and files are used as a
user would; internal names are called in `frozen/inside.py` alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from frozen import inside, places
from frozen.places import contents, differences, folder_differences, read
from workplace import Done

GOLDEN = json.loads((places.HERE / "golden.json").read_text(encoding="utf-8"))
METHODS = ("lora", "undo", "uld", "guard")
SAME = 1e-3
"""Relative tolerance of what a model of the same weights says on another processor."""
TRAINED = 2e-2
"""Of what a model says that was trained there."""
Duet = Callable[..., Done]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that nothing writes into."""
    return places.copied(tmp_path_factory.mktemp("untouched") / "place")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the frozen place, and the current folder."""
    folder = places.copied(tmp_path / "place")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(inside.WHERE_VERSION_IS_READ, inside.VERSION)
    return folder


def run_duet(duet: Duet, *args: object) -> Any:
    """A command that must go well; what it prints, as JSON where it was asked for."""
    done = duet(*args)
    assert done.code == 0, done.err
    return json.loads(done.out) if "--json" in args else done.out


# Finished runs -------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_done(place: Path, duet: Duet) -> None:
    """Given its recipe, or the one that was written into its folder, nothing is computed and nothing written."""
    for name in METHODS:
        before = contents(place / name)
        run_duet(duet, "run", f"{name}.yaml", "--out", name)
        run_duet(duet, "run", f"{name}/recipe.yaml", "--out", name)
        assert contents(place / name) == before


def test_another_recipe_is_another_run(place: Path, duet: Duet) -> None:
    refused = duet("run", "lora.yaml", "--out", "lora", "--set", "train.rate=1e-4")
    assert refused.code == 1
    assert "train.rate differs" in refused.err
    line, *rest = (place / "forget.jsonl").read_text().splitlines(keepends=True)
    (place / "forget.jsonl").write_text("".join([line.replace("Tarn.", "Tarn!"), *rest]))
    assert duet("run", "lora.yaml", "--out", "lora").code == 1


@pytest.mark.parametrize("name", METHODS)
def test_evaluate_says_what_is_stored(name: str, place: Path, duet: Duet) -> None:
    found = run_duet(duet, "evaluate", name, "--json")
    stored = {path.stem: read(path) for path in (place / name / "evals").glob("*.json") if path.stem in found}
    assert {"base", "student"} <= stored.keys()
    assert differences(stored, {one: found[one] for one in stored}, rel=SAME) == []


def test_reports_are_written_from_old_runs(place: Path, duet: Duet) -> None:
    for name in (*METHODS, "undo/before", "sweep"):
        page = Path(run_duet(duet, "report", name).strip())
        assert "87.5" in page.read_text(encoding="utf-8")
    assert "Mira" not in Path(run_duet(duet, "report", "lora", "--redact").strip()).read_text(encoding="utf-8")


def test_answers_and_tables_of_old_runs(place: Path, duet: Duet) -> None:
    """What the readers print as JSON, keys and values."""
    for name, args in inside.OUTPUTS.items():
        found = json.loads(json.dumps(run_duet(duet, *args)).replace(str(place), places.PLACEHOLDER))
        assert differences(GOLDEN["outputs"][name], found, rel=SAME) == [], name


# Runs that were killed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begun", "whole", "step"), [("begun", "lora", 6), ("begun-undo", "undo", 4)])
def test_a_killed_run_goes_on(begun: str, whole: str, step: int, place: Path, duet: Duet) -> None:
    """From its last checkpoint, to the end of the run that was not killed."""
    asked, early = contents(place / begun / "targets"), read(place / begun / "metrics.jsonl")[:step]
    earlier = contents(place / begun / "before") if whole == "undo" else {}
    run_duet(duet, "run", f"{whole}.yaml", "--out", begun)
    assert (place / begun / "DONE").exists()
    assert contents(place / begun / "targets") == asked
    assert not earlier or contents(place / begun / "before") == earlier
    rows = read(place / begun / "metrics.jsonl")
    assert rows[:step] == early, "the first steps were done anew"
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    stored = place / whole
    for path in (stored / "attacks", stored / "audit.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert folder_differences(stored, place / begun, rel=TRAINED) == []


def test_a_killed_run_goes_on_with_its_own_weights(place: Path, duet: Duet) -> None:
    """The checkpoint's step and weights are those that are used: where it is said to be of step 17, one is left."""
    checkpoint = place / "begun" / "checkpoints" / "step-0000006"
    state = read(checkpoint / "state.json")
    assert state["step"] == 6
    (checkpoint / "state.json").write_text(json.dumps(state | {"step": 17}))
    checkpoint.rename(checkpoint.with_name("step-0000017"))
    run_duet(duet, "run", "lora.yaml", "--out", "begun")
    last = read(place / "begun" / "metrics.jsonl")[-1]
    assert last["step"] == 18
    assert last["loss"] > 2 * read(place / "lora" / "metrics.jsonl")[-1]["loss"]


# Runs made anew ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["undo", "uld", "guard"])
def test_a_new_run_writes_what_the_old_one_wrote(name: str, place: Path, duet: Duet) -> None:
    """The same files with the same keys, and the same values within the tolerance of another processor. (Adapters are
    trained anew in a sweep, below.)"""
    run_duet(duet, "run", f"{name}.yaml", "--out", "new")
    if name == "undo":  # its targets depend on the weights of the stage before, which are this processor's
        for run in (place / name, place / "new"):
            manifest = run / "targets" / "train" / "manifest.json"
            manifest.write_text(manifest.read_text().replace(weights_of_stage(run), "before"))
    assert folder_differences(place / name, place / "new", rel=TRAINED) == []


def weights_of_stage(run: Path) -> str:
    """The hash of the first stage's weights, as the manifest of the second has it behind the base's."""
    found = hashlib.sha256()
    for path in sorted((run / "before" / "model").glob("*.safetensors")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


# Attacks and audit ---------------------------------------------------------------------------------------------------


def test_stored_attacks_are_used_again(place: Path, duet: Duet) -> None:
    before = contents(place / "lora" / "attacks")
    found = run_duet(duet, "attack", "lora", "--suite", "attacks.yaml", "--json")
    assert contents(place / "lora" / "attacks") == before
    for attack, subjects in found.items():
        for subject, result in subjects.items():
            assert result == read(place / "lora" / "attacks" / subject / f"{attack}.json")
    assert sum(map(len, found.values())) == len(before) == 20


def test_attacks_done_anew_come_to_the_same(place: Path, duet: Duet) -> None:
    stored = place / "stored"
    shutil.move(place / "lora" / "attacks" / "student", stored)
    before = contents(place / "lora" / "attacks")
    run_duet(duet, "attack", "lora", "--suite", "attacks.yaml")
    assert contents(place / "lora" / "attacks").items() >= before.items()
    assert folder_differences(stored, place / "lora" / "attacks" / "student", rel=SAME) == []


def test_the_audit_says_the_same(place: Path, duet: Duet) -> None:
    stored = read(place / "lora" / "audit.json")
    assert differences(stored, run_duet(duet, "audit", "lora", "--json"), rel=SAME) == []
    assert differences(stored, read(place / "lora" / "audit.json"), rel=SAME) == []


# Sweeps --------------------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on(place: Path, duet: Duet) -> None:
    """What is there is kept, what is missing is done; and both come to the stored results."""
    sweep, stored, missing = place / "sweep", read(place / "sweep" / "results.json"), "test/duet/all-0"
    before = contents(sweep)
    found = run_duet(duet, "sweep", "suite.yaml", "--out", "sweep", "--json")
    assert differences(stored, found, rel=SAME) == []
    shutil.move(sweep / missing, place / "gone")
    found = run_duet(duet, "sweep", "suite.yaml", "--out", "sweep", "--json")
    assert differences(stored, found, rel=TRAINED) == []
    assert differences(stored, read(sweep / "results.json"), rel=TRAINED) == []
    assert folder_differences(place / "gone", sweep / missing, rel=TRAINED) == []
    after = contents(sweep)
    rows = [name for name in before if "/" in name and not name.startswith(missing)]
    assert {name: after[name] for name in rows} == {name: before[name] for name in rows}


# Hidden values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", inside.VALUES)
def test_hidden_values(name: str, untouched: Path, tmp_path: Path) -> None:
    assert differences(GOLDEN[name], inside.VALUES[name](untouched, tmp_path), rel=SAME) == []


def test_written_recipes_of_every_method_are_read(tmp_path: Path) -> None:
    """With every key that the earlier version had: they are the same recipes."""
    for name, text in GOLDEN["written recipes"].items():
        (tmp_path / "recipe.yaml").write_text(text)
        assert inside.recipe_hash_of(tmp_path / "recipe.yaml") == GOLDEN["recipe hashes"][f"default/{name}"], name


def test_a_suite_of_every_attack_with_every_setting_is_read(tmp_path: Path) -> None:
    configs = {name: one["config"] for name, one in GOLDEN["attack fingerprints"]["attacks"].items()}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"attacks": list(configs.values())}))
    assert inside.attack_configs(tmp_path / "suite.yaml") == configs
