"""`duet attack` on runs and models: who is attacked, what is kept, what is done again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import TEMPLATE
from workplace import Done, Workplace, duet_process, write_model, write_workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.attacks import load_suite
from duet_unlearn.attacks.attack_run import attack_model, attack_run, read_attacks
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event
from duet_unlearn.runs import Run

Duet = Callable[..., Done]
SUITE = "attacks:\n  - name: plain\n"
LONGER = f"""{SUITE}  - {{name: reverse, per_family: 1}}
  - {{name: relearn, sources: [known], rates: [1.0e-3], steps: [20]}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    folder = tmp_path_factory.mktemp("recovery")
    place = write_workplace(folder, tiny_model)
    oracle = write_model(folder / "oracle", seed=7)
    place.recipe.write_text(place.recipe.read_text().replace("  dtype:", f"  oracle: {oracle}\n  dtype:"))
    (folder / "suite.yaml").write_text(SUITE)
    return place


@pytest.fixture(scope="module")
def runs(place: Workplace) -> dict[int, Run]:
    recipe = place.recipe
    return {seed: unlearn(load_recipe(recipe, [f"seed={seed}"]), out=place.folder / f"run-{seed}") for seed in (0, 1)}


def stored(run: Run) -> dict[str, dict[str, Any]]:
    return read_attacks(run.path / "attacks")


def test_everybody_is_attacked_alike(runs: dict[int, Run], place: Workplace) -> None:
    events: list[Event] = []
    found = attack_run(runs[0].path, load_suite(str(place.folder / "suite.yaml")), on_event=events.append)
    assert list(found.results) == ["plain"]
    assert list(found.results["plain"]) == ["base", "prefix", "oracle", "student"]
    assert found.results["plain"]["student"].instances[0].score.n == 3  # the other three are known
    rows = stored(runs[0])["plain"]
    assert {row["goal"] for row in rows.values()} == {rows["base"]["goal"]}
    assert len({row["weights"] for row in rows.values()}) == 4
    assert rows["student"]["title"] == "Asked plainly"
    assert (events[-1].done, events[-1].total) == (4, 4)
    assert "left" in events[0].text


def test_what_is_there_is_not_done_again(runs: dict[int, Run], place: Workplace) -> None:
    suite = load_suite(str(place.folder / "suite.yaml"))
    first = attack_run(runs[0].path, suite)
    before = {path: path.stat().st_mtime_ns for path in (runs[0].path / "attacks").rglob("*.json")}
    failed = runs[0].path / "attacks" / "student" / "plain.json"
    events: list[Event] = []
    assert attack_run(runs[0].path, suite, on_event=events.append).results == first.results
    assert len(events) == 1  # nothing but the end
    assert before == {path: path.stat().st_mtime_ns for path in before}
    failed.write_text(json.dumps(json.loads(failed.read_text()) | {"status": "failed"}))
    again = attack_run(runs[0].path, suite)
    assert again.results["plain"]["student"].status == "done"


def test_base_prefix_and_oracle_are_taken_over_from_a_run_like_it(runs: dict[int, Run], place: Workplace) -> None:
    suite = load_suite(str(place.folder / "suite.yaml"))
    first = attack_run(runs[0].path, suite)
    events: list[Event] = []
    second = attack_run(runs[1].path, suite, like=runs[0].path, on_event=events.append)
    assert {event.text.split(":")[0] for event in events[:-1]} == {"student"}
    for name in ("base", "prefix", "oracle"):
        assert second.results["plain"][name] == first.results["plain"][name]


def test_another_question_is_another_goal(runs: dict[int, Run], place: Workplace, tmp_path: Path) -> None:
    suite = load_suite(str(place.folder / "suite.yaml"))
    recipe = load_recipe(place.recipe, ["evaluate.max_new_tokens=40"])
    other = unlearn(recipe, out=tmp_path / "other")
    attack_run(runs[0].path, suite)
    attack_run(other.path, suite, like=runs[0].path)
    assert stored(other)["plain"]["base"]["goal"] != stored(runs[0])["plain"]["base"]["goal"]


def test_another_way_of_loading_is_another_attack(place: Workplace, tmp_path: Path) -> None:
    suite = load_suite("quick", ["plain"])
    for dtype in ("float32", "bfloat16"):
        recipe = load_recipe(place.recipe, [f"model.dtype={dtype}"])
        attack_model(str(place.folder / "oracle"), recipe, suite, out=tmp_path / "out")
        rows = read_attacks(tmp_path / "out")["plain"]
        (tmp_path / f"{dtype}.json").write_text(json.dumps(rows["base"]["under"]))
    assert (tmp_path / "float32.json").read_text() != (tmp_path / "bfloat16.json").read_text()


def test_other_words_in_a_file_are_another_attack(runs: dict[int, Run], tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        f"attacks: [{{name: reverse, per_family: 1, files: [{tmp_path / 'own.jsonl'}]}}]"
    )
    line = {"id": "mine", "family": "mine", "text": "Say it: {question}"}
    found = []
    for text in (line["text"], "Do say it: {question}"):
        (tmp_path / "own.jsonl").write_text(json.dumps(line | {"text": text}) + "\n")
        attack_run(runs[0].path, load_suite(str(tmp_path / "suite.yaml")))
        found.append(stored(runs[0])["reverse"]["base"]["under"])
    assert found[0] != found[1]


def test_a_template_that_was_edited_is_another_attack(place: Workplace, tmp_path: Path) -> None:
    suite, found = load_suite("quick", ["plain"]), []
    template = tmp_path / "template.jinja"
    for text in (TEMPLATE, TEMPLATE + "{{ ' ' }}"):
        template.write_text(text)
        recipe = load_recipe(place.recipe, [f"model.chat_template={template}"])
        attack_model(str(place.folder / "oracle"), recipe, suite, out=tmp_path / "out")
        found.append(read_attacks(tmp_path / "out")["plain"]["base"]["under"])
    assert found[0] != found[1]


def test_with_bitsandbytes_its_packings_are_tried_after_all(
    runs: dict[int, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.yaml").write_text("attacks: [{name: quantisation, formats: [int8, bitsandbytes-nf4]}]")
    suite, counts = load_suite(str(tmp_path / "suite.yaml")), []
    for there in (False, True):
        monkeypatch.setattr("duet_unlearn.attacks.weights.can_pack", lambda there=there: there)
        counts.append(len(attack_run(runs[0].path, suite).results["quantisation"]["student"].instances))
    assert counts == [1, 2]


def test_an_adapter_is_not_attacked_on_another_base(tmp_path: Path) -> None:
    place = write_workplace(tmp_path, write_model(tmp_path / "base"))
    run = unlearn(load_recipe(place.recipe, ["model.lora.rank=2"]), out=tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    write_model(tmp_path / "base", seed=5)
    with pytest.raises(UserError, match="which is another model than it was then"):
        attack_run(run.path, load_suite("quick", ["plain"]))


def test_any_model_can_be_attacked(place: Workplace, tmp_path: Path) -> None:
    model = write_model(tmp_path / "some", seed=3)
    recipe, suite = load_recipe(place.recipe), load_suite("quick", ["plain"])
    found = attack_model(str(model), recipe, suite, out=tmp_path / "out")
    assert list(found.results["plain"]) == ["base", "prefix", "oracle", "model"]
    assert (tmp_path / "out" / "model" / "plain.json").is_file()


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_where_all_of_it_lies(duet: Duet, runs: dict[int, Run]) -> None:
    done = duet("attack", runs[0].path, "--suite", "quick", "--attack", "plain")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split("  ")[0] == "attack"
    assert "base + prefix" in done.out
    assert f"results: {runs[0].path / 'attacks'}" in done.out
    again = duet("attack", runs[0].path, "--attack", "plain", "--json")
    assert json.loads(again.out)["plain"]["student"]["status"] == "done"


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (("RUN", "--recipe", "x.yaml"), "is a run, which has its own recipe", "leave --recipe"),
        (("nowhere",), "is no run (no recipe.yaml lies there)", "check the path; for a model, name a recipe"),
        (("RUN", "--suite", "quik"), "unknown attack suite 'quik'", "did you mean quick"),
        (("RUN", "--attack", "plan"), "unknown attack 'plan'", "did you mean plain"),
        (("nowhere", "--recipe", "RECIPE", "--like", "x"), "--like takes over results of a run", "leave it away"),
        (("RUN", "--attack", "plain", "--like", "x"), "x: nothing to take over", "attack it first"),
    ],
)
def test_bad_input_is_told_in_two_lines(
    call: tuple[str, ...], message: str, hint: str, duet: Duet, runs: dict[int, Run], place: Workplace
) -> None:
    names = {"RUN": str(runs[0].path), "RECIPE": str(place.recipe)}
    done = duet("attack", *(names.get(one, one) for one in call))
    assert done.code == 1
    lines = done.err.strip().splitlines()
    assert len(lines) == 2
    assert message in lines[0]
    assert hint in lines[1]


def test_a_run_without_a_student_has_nothing_to_attack(duet: Duet, place: Workplace, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text((place.folder / "run-0" / "recipe.yaml").read_text())
    done = duet("attack", tmp_path / "begun")
    assert done.code == 1
    assert "no student yet" in done.err


def test_what_was_done_when_it_was_stopped_is_kept(runs: dict[int, Run], place: Workplace) -> None:
    folder, suite = runs[1].path / "attacks" / "base", place.folder / "longer.yaml"
    suite.write_text(LONGER)
    (folder / "plain.json").unlink(missing_ok=True)  # what another test left would have it stopped before it begins
    process = duet_process("attack", runs[1].path, "--suite", suite, folder=place.folder)
    while not (folder / "plain.json").exists() and process.is_alive():
        process.join(0.01)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(120)
    assert process.exitcode in (130, 0)
    assert json.loads((folder / "plain.json").read_text())["status"] == "done"
    again = duet_process("attack", runs[1].path, "--suite", suite, folder=place.folder)
    again.join(240)
    assert again.exitcode == 0, (place.folder / "err").read_text()
