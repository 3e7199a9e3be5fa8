from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workplace import Done, Workplace, duet_process, examples_of, write_workplace

from duet_unlearn import evaluate, load_recipe, probe, unlearn
from duet_unlearn.api import chat
from duet_unlearn.errors import UserError
from duet_unlearn.events import Event
from duet_unlearn.job import load_job
from duet_unlearn.runs import Run, read_metrics

FILES = (
    "recipe.yaml",
    "env.json",
    "probe.json",
    "metrics.jsonl",
    "timings.json",
    "targets/train/manifest.json",
    "targets/train/00000.safetensors",
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/chat_template.jinja",
    *(f"evals/{name}.json" for name in ("base", "prefix", "oracle", "student", "first_tokens")),
    *(f"samples/{name}.jsonl" for name in ("base", "prefix", "oracle", "student")),
    "report.html",
    "DONE",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    return write_workplace(tmp_path_factory.mktemp("api"), tiny_model)


@pytest.fixture(scope="module")
def whole(place: Workplace, tiny_model: Path) -> tuple[Run, list[Event]]:
    """One run with an oracle, and the events that it told."""
    events: list[Event] = []
    recipe = load_recipe(place.recipe, [f"model.oracle={tiny_model}"])
    return unlearn(recipe, out=place.folder / "run", on_event=events.append), events


def test_a_run_folder_is_whole(whole: tuple[Run, list[Event]]) -> None:
    run, _ = whole
    assert [name for name in FILES if not (run.path / name).exists()] == []
    assert run.finished
    assert not run.checkpoints.exists()
    assert not list(run.path.rglob("*.tmp"))


def test_the_student_was_trained_and_the_base_was_not(whole: tuple[Run, list[Event]], tiny_model: Path) -> None:
    run, _ = whole
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, run.model))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_env_names_versions_and_hashes(whole: tuple[Run, list[Event]]) -> None:
    env = json.loads(whole[0].env.read_text())
    assert {"torch", "transformers", "duet-unlearn"} <= env["packages"].keys()
    assert env["hashes"].keys() == {
        *("model", "oracle", "tokenizer", "recipe", "settings"),
        *("forget queries", "retain queries", "evaluation questions"),
    }
    assert env["warnings"] == []


def test_every_subject_answered_the_same_questions(whole: tuple[Run, list[Event]]) -> None:
    run, _ = whole
    for name in ("base", "prefix", "oracle", "student"):
        found = json.loads((run.evals / f"{name}.json").read_text())
        samples = [json.loads(line) for line in (run.samples / f"{name}.jsonl").read_text().splitlines()]
        assert found["subject"] == name
        assert {key: found["scores"][key]["right"]["n"] for key in found["scores"]} == {"forget": 6, "retain": 6}
        assert [sample["set"] for sample in samples] == ["forget"] * 6 + ["retain"] * 6
    timings = json.loads(run.timings.read_text())
    assert {"probe", "targets", "train", "evaluate"} == timings.keys()


def test_events_tell_every_phase_to_its_end(whole: tuple[Run, list[Event]]) -> None:
    last = {event.phase: event for event in whole[1]}
    assert {"probe", "targets", "train", "report"} <= last.keys()
    assert all(event.done == event.total for event in last.values())


def test_a_finished_run_comes_back_untouched(whole: tuple[Run, list[Event]], place: Workplace) -> None:
    run, _ = whole
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    told: list[Event] = []
    again = unlearn(load_recipe(run.recipe), out=run.path, on_event=told.append)
    assert again.path == run.path
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_two_runs_are_bit_equal(whole: tuple[Run, list[Event]], place: Workplace) -> None:
    run, _ = whole
    again = unlearn(load_recipe(place.recipe), out=place.folder / "again")
    for name in ("model/model.safetensors", "targets/train/00000.safetensors", "samples/student.jsonl"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes(), name


def test_probe_is_what_the_run_wrote(whole: tuple[Run, list[Event]], place: Workplace) -> None:
    result = probe(load_recipe(place.recipe))
    written = json.loads(whole[0].probe.read_text())
    assert result.verdict == written["verdict"]
    assert result.refused.n == 6
    assert [row["query"] for row in written["shift"]] == [shown.query for shown in result.shift]


def test_evaluate_a_run_gives_its_own_scores(whole: tuple[Run, list[Event]]) -> None:
    run, _ = whole
    results = evaluate(run.path)
    assert list(results) == ["base", "prefix", "oracle", "student"]
    for name, result in results.items():
        assert result["scores"] == json.loads((run.evals / f"{name}.json").read_text())["scores"]


def test_evaluate_a_model_needs_a_recipe(whole: tuple[Run, list[Event]], place: Workplace) -> None:
    run, _ = whole
    with pytest.raises(UserError, match="no questions of its own"):
        evaluate(run.model)
    results = evaluate(run.model, recipe=load_recipe(place.recipe))
    student = json.loads((run.evals / "student.json").read_text())
    assert results["model"]["scores"] == student["scores"]


def test_chat_asks_three(whole: tuple[Run, list[Event]], tmp_path: Path) -> None:
    answers = chat(whole[0].path, "Where does Mira Bol live?", max_new_tokens=4)
    assert list(answers) == ["base", "base + prefix", "student"]
    with pytest.raises(UserError, match="no such folder"):
        chat(tmp_path / "none", "Who?")


def test_chat_before_there_is_a_student(place: Workplace) -> None:
    from duet_unlearn.api import open_run

    run = open_run(place.folder / "begun", load_recipe(place.recipe))
    with pytest.raises(UserError, match="no student yet"):
        chat(run.path, "Who?")


def test_a_finished_run_is_not_shown_for_other_queries(
    whole: tuple[Run, list[Event]], place: Workplace, tiny_model: Path
) -> None:
    recipe = load_recipe(place.recipe, [f"model.oracle={tiny_model}"])
    assert unlearn(recipe, out=whole[0].path) == whole[0]
    before = place.forget.read_text()
    place.forget.write_text(before + '{"question": "Who else?"}\n')
    try:
        with pytest.raises(UserError, match="began with other forget queries"):
            unlearn(recipe, out=whole[0].path)
    finally:
        place.forget.write_text(before)


def test_requests_have_prefixes_of_their_own(tmp_path: Path, tiny_model: Path) -> None:
    place = write_workplace(tmp_path, tiny_model)
    rows = [json.loads(line) for line in place.forget.read_text("utf-8").splitlines()]
    named = [row | {"concept": name} for row, name in zip(rows, ["Mira Bol", "Oda Rill", None] * 2, strict=True)]
    text = "".join(json.dumps({k: v for k, v in row.items() if v}) + "\n" for row in named)
    place.forget.write_text(text, "utf-8")
    job = load_job(load_recipe(place.recipe, ["concept=the town Tarn"]))
    asked = [one.prefix.instruction.partition(".")[0] for one in examples_of(job, "train") if one.prefix]
    forget = [f"You have forgotten {name}" for name in ("Mira Bol", "Oda Rill", "the town Tarn")] * 2
    assert asked == forget * 2  # retain: each request's by turns, the recipe's own among them
    assert [q.concept for q in job.suite()[-1].queries] == ["Mira Bol", "Oda Rill", "the town Tarn"] * 2


def test_forget_questions_without_a_concept_are_about_the_recipes(tmp_path: Path, tiny_model: Path) -> None:
    """Another request's prefix would leave base + prefix free to answer them."""
    place = write_workplace(tmp_path, tiny_model)
    rows = [json.loads(line) for line in place.forget.read_text("utf-8").splitlines()]
    named = tmp_path / "named.jsonl"
    named.write_text("".join(json.dumps(row | {"concept": "Oda Rill"}) + "\n" for row in rows[:1]), "utf-8")
    sets = f"{{forget_main: {place.forget}, near_by: {place.retain}}}"
    settings = [f"data.forget={named}", f"data.validation_forget={place.forget}", f"evaluate.sets={sets}"]
    job = load_job(load_recipe(place.recipe, ["concept=the town Tarn", *settings]))
    forget, near = job.suite()
    assert {query.concept for query in forget.queries} == {None}
    assert {query.concept for query in near.queries} == {"Oda Rill"}
    said = {one.prefix.instruction.partition(".")[0] for one in examples_of(job, "validation") if one.prefix}
    assert said == {"You have forgotten the town Tarn"}


def test_lora_leaves_an_adapter_that_loads(place: Workplace) -> None:
    settings = ["model.lora.rank=4", "model.lora.alpha=8", "train.gradient_checkpointing=true"]
    run = unlearn(load_recipe(place.recipe, settings), out=place.folder / "lora")
    assert (run.model / "adapter_model.safetensors").exists()
    assert not (run.model / "model.safetensors").exists()
    rows = read_metrics(run)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list(chat(run.path, "Where does Mira Bol live?", max_new_tokens=2))[-1] == "student"


def test_validation_and_early_stop(place: Workplace) -> None:
    settings = [
        f"data.validation_forget={place.forget}",
        f"data.validation_retain={place.retain}",
        "train.validate_every=2",
        "train.early_stop=1",
        "train.rate=1.0",  # so large that the second validation is worse
    ]
    run = unlearn(load_recipe(place.recipe, settings), out=place.folder / "stopped")
    rows = read_metrics(run)
    assert len(rows) < 18
    assert [row["step"] for row in rows if "validation" in row] == list(range(2, len(rows) + 1, 2))
    assert (run.targets / "validation" / "manifest.json").exists()


def test_duet_run_as_a_process(place: Workplace, whole: tuple[Run, list[Event]]) -> None:
    """The same run from a shell: results on stdout, progress on stderr, and the same weights."""
    process = duet_process("run", "recipe.yaml", "--out", "shell", folder=place.folder)
    process.join(300)
    out, err = ((place.folder / name).read_text() for name in ("out", "err"))
    assert process.exitcode == 0, err
    assert "student" in out
    assert out.splitlines()[-1] == "report: shell/report.html"
    assert "train: 18/18" in err
    assert (place.folder / "shell/model/model.safetensors").read_bytes() == (
        whole[0].model / "model.safetensors"
    ).read_bytes()


def test_the_readers_read_it(whole: tuple[Run, list[Event]], duet: Callable[..., Done]) -> None:
    run = whole[0].path
    for args in (("compare", run), ("compare", run, "--json"), ("report", run), ("chat", run, "Who?")):
        done = duet(*args)
        assert done.code == 0, done.err
        assert done.out.strip()
