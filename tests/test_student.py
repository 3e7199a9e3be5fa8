"""Methods that train no student, from recipe to report; and the one way to get any run's student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from workplace import FORGET, RETAIN, Done, Workplace, write_workplace

from duet_unlearn import evaluate, load_recipe, unlearn
from duet_unlearn.api import chat, export, lm_eval, open_run
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.events import Event
from duet_unlearn.job import load_job
from duet_unlearn.methods.guarded import Routed
from duet_unlearn.plan import Workload, make_plan
from duet_unlearn.runs import Run, read_metrics
from duet_unlearn.subjects import load_student

METHODS = {
    "prefix": "{name: prefix}",
    "icul": "{name: icul, forget_shots: 1, retain_shots: 0}",
    "guard": "{name: guard, pooling: mean}",
    "eco": "{name: eco, pooling: mean, sigma: 3.0, dims: null}",
    "uld": "{name: uld, layers: 1}",
}
every = pytest.mark.parametrize("name", METHODS)


def recipe_of(place: Workplace, name: str, *settings: str) -> Any:
    text = place.recipe.read_text()
    start = text.index("method:")
    stop = text.index("train:")
    path = place.folder / f"{name}.yaml"
    path.write_text(f"{text[:start]}method: {METHODS[name]}\n{text[stop:]}")
    return load_recipe(path, settings)


def answers(run: Run) -> list[str]:
    return [json.loads(line)["output"] for line in (run.samples / "student.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    return write_workplace(tmp_path_factory.mktemp("student"), tiny_model)


@pytest.fixture(scope="module")
def runs(place: Workplace) -> dict[str, Run]:
    return {name: unlearn(recipe_of(place, name), out=place.folder / name) for name in METHODS}


@pytest.fixture(scope="module")
def trained(place: Workplace) -> Run:
    return unlearn(load_recipe(place.recipe), out=place.folder / "duet")


@every
def test_a_run_without_training_is_whole(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert run.finished
    assert not run.model.exists()
    assert not run.checkpoints.exists()
    assert json.loads((run.subject / "subject.json").read_text())["method"] == name
    assert json.loads((run.evals / "student.json").read_text())["label"] == f"student ({name})"
    assert len(answers(run)) == 12
    assert f"student ({name})" in run.report.read_text()
    assert run.metrics.exists() == (name == "uld")
    assert not list(run.path.rglob("*.tmp"))


@every
def test_the_student_is_a_subject_without_weights(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    student = load_student(run, load_recipe(run.recipe))
    assert isinstance(student, Routed if name in ("guard", "eco") else Deployed)
    assert student.model is None
    asked = [({"role": "user", "content": question},) for question, *_ in FORGET]
    assert student.generate(asked, max_new_tokens=4, batch_size=6) == answers(run)[:6]


def test_a_trained_student_is_its_weights(trained: Run) -> None:
    student = load_student(trained, load_recipe(trained.recipe))
    assert isinstance(student, ModelSubject)
    asked = [({"role": "user", "content": question},) for question, *_ in FORGET]
    assert student.generate(asked, max_new_tokens=4, batch_size=6) == answers(trained)[:6]
    weight = student.model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)


@every
def test_evaluated_again_it_says_the_same(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    results = evaluate(run.path)
    assert list(results) == ["base", "prefix", "student"]
    assert results["student"]["scores"] == json.loads((run.evals / "student.json").read_text())["scores"]
    assert results["student"]["label"] == f"student ({name})"


@every
def test_two_runs_are_equal_to_the_bit(runs: dict[str, Run], place: Workplace, name: str) -> None:
    again = unlearn(recipe_of(place, name), out=place.folder / f"{name}-again")
    files = [path.relative_to(runs[name].path) for path in runs[name].subject.rglob("*") if path.is_file()]
    for path in [*files, Path("samples/student.jsonl")]:
        assert (again.path / path).read_bytes() == (runs[name].path / path).read_bytes(), path


@pytest.mark.parametrize(
    ("name", "phase"),
    [("guard", "detector"), ("eco", "ask student"), ("uld", "train"), ("uld", "ask student"), ("icul", "report")],
)
def test_a_run_that_was_stopped_goes_on(
    runs: dict[str, Run], tmp_path: Path, tiny_model: Path, name: str, phase: str
) -> None:
    """Stopped where a phase has just ended, before what it made is used, or in the middle of training."""
    place = write_workplace(tmp_path, tiny_model)

    def stop(event: Event) -> None:
        if event.phase == phase and event.done == (10 if phase == "train" else event.total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(recipe_of(place, name), out=tmp_path / "run", on_event=stop)
    assert not Run(tmp_path / "run").finished
    run = unlearn(recipe_of(place, name), out=tmp_path / "run")
    assert run.finished
    assert answers(run) == answers(runs[name])
    for path in runs[name].subject.rglob("*.safetensors"):
        mine = run.subject / path.relative_to(runs[name].subject)
        assert mine.read_bytes() == path.read_bytes()
    if name == "uld":
        assert [row["step"] for row in read_metrics(run)] == list(range(1, 19))


def test_a_guard_refuses_what_its_detector_finds(runs: dict[str, Run]) -> None:
    """Six forget questions, and those alone: what it was fitted to."""
    run = runs["guard"]
    told = json.loads((run.subject / "subject.json").read_text())
    assert told["detected"] == {"forget": {"count": 6, "of": 6}, "retain": {"count": 0, "of": 6}}
    base = [json.loads(line)["output"] for line in (run.samples / "base.jsonl").read_text().splitlines()]
    assert set(answers(run)[:6]) <= set(told["refusals"])
    assert answers(run)[6:] == base[6:]


def test_noise_falls_on_what_its_detector_finds(runs: dict[str, Run]) -> None:
    run = runs["eco"]
    base = [json.loads(line)["output"] for line in (run.samples / "base.jsonl").read_text().splitlines()]
    assert all(mine != theirs for mine, theirs in zip(answers(run)[:6], base, strict=False))
    assert answers(run)[6:] == base[6:]


@pytest.mark.parametrize("name", ["icul", "guard", "eco", "uld"])
def test_what_was_made_is_stored_and_needs_no_query(runs: dict[str, Run], place: Workplace, name: str) -> None:
    run, files = runs[name], (place.forget, place.retain)
    for path in files:
        path.rename(path.with_suffix(".away"))
    try:
        student = load_student(run, load_recipe(run.recipe))
        asked = [({"role": "user", "content": question},) for question, *_ in RETAIN]
        assert student.generate(asked, max_new_tokens=4, batch_size=6) == answers(run)[6:]
    finally:
        for path in files:
            path.with_suffix(".away").rename(path)


def test_the_prefixed_base_is_what_a_recipe_with_a_teacher_measures(runs: dict[str, Run], trained: Run) -> None:
    prefix = [json.loads(line)["output"] for line in (trained.samples / "prefix.jsonl").read_text().splitlines()]
    assert answers(runs["prefix"]) == prefix
    assert not (runs["prefix"].evals / "prefix.json").exists()


def test_an_assistant_learns_the_answers_to_forget(runs: dict[str, Run]) -> None:
    rows = read_metrics(runs["uld"])
    assert rows[-1]["loss"] < rows[0]["loss"]
    names = (runs["uld"].subject / "assistant.safetensors").read_bytes()[:4000]
    assert b"layers.0" in names
    assert b"layers.1" not in names  # of two
    assert b"embed_tokens" not in names
    assert b"lm_head" not in names


def test_an_assistant_of_adapters(place: Workplace) -> None:
    run = unlearn(recipe_of(place, "uld", "model.lora.rank=4"), out=place.folder / "uld-lora")
    assert b"lora" not in (run.subject / "assistant.safetensors").read_bytes()[:4000]
    assert load_student(run, load_recipe(run.recipe)).model is None


def test_a_student_may_be_served_with_a_guard(place: Workplace, trained: Run) -> None:
    """What stands beside a model can stand beside a trained one too, from a folder or from the recipe before."""
    run = unlearn(recipe_of(place, "guard", f"model.start={trained.path}"), out=place.folder / "guarded")
    assert answers(run)[6:] == answers(trained)[6:]
    assert answers(run)[:6] != answers(trained)[:6]
    after = unlearn(recipe_of(place, "guard", f"after={place.recipe}"), out=place.folder / "guarded-after")
    assert answers(after) == answers(run)
    assert after.path / "before" / "model" in after.path.rglob("model")


def test_nothing_can_start_from_it(runs: dict[str, Run], place: Workplace) -> None:
    with pytest.raises(UserError, match=r"guard.yaml changes no weights \(guard\), so nothing can start from it"):
        unlearn(load_recipe(place.recipe, [f"after={place.folder / 'guard.yaml'}"]), out=place.folder / "wrong")
    with pytest.raises(UserError, match="this run trained no model that another could start from"):
        unlearn(load_recipe(place.recipe, [f"model.start={runs['eco'].path}"]), out=place.folder / "wrong-too")


@every
def test_one_can_chat_with_it(runs: dict[str, Run], name: str) -> None:
    question = FORGET[0][0]
    said = chat(runs[name].path, question, max_new_tokens=4)
    assert list(said) == ["base", "base + prefix", "student"]
    assert said["student"] == answers(runs[name])[0]


def test_what_takes_a_model_says_why_not(runs: dict[str, Run], tmp_path: Path, tiny_model: Path) -> None:
    for name in METHODS:
        with pytest.raises(UserError, match=f"{name} changes no weights, so there is no model to export"):
            export(runs[name].path, tmp_path / "out")
    with pytest.raises(UserError, match="this run's student is a model with something beside it"):
        lm_eval(runs["guard"].path, ["arc_easy"], settings={})
    with pytest.raises(UserError, match="method eco: the model is not trained"):
        make_plan(str(tiny_model), load_recipe(runs["eco"].recipe), Workload())


def test_before_there_is_a_student(place: Workplace, tmp_path: Path) -> None:
    recipe = recipe_of(place, "guard")
    run = open_run(tmp_path / "begun", recipe)
    with pytest.raises(UserError, match="no student yet"):
        load_student(run, recipe)
    with pytest.raises(UserError, match="no student yet"):
        chat(run.path, "Who?")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("guard", ["data.retain=null"], "the detector has no retain queries to learn from"),
        ("eco", ["method.layer=9"], "method.layer is 9, but the model's blocks are 0 to 1"),
        ("uld", ["method.layers=2"], "method.layers is 2, but the model has 2 layers in all"),
        ("uld", ["data.forget=bare.jsonl"], "has no answer"),
        ("uld", ["model.quantise=nf4"], "its layers cannot be trained as the assistant of uld"),
        ("icul", ["method.forget_shots=7"], "method.forget_shots is 7, but data.forget has 6 questions"),
        ("icul", ["method.retain_shots=6", "method.forget_shots=6"], "exceed the model's 128"),
    ],
)
def test_what_does_not_fit_is_said(workplace: Workplace, name: str, settings: list[str], words: str) -> None:
    (workplace.folder / "bare.jsonl").write_text('{"question": "Who is Mira Bol?"}\n')
    with pytest.raises(UserError, match=words):
        unlearn(recipe_of(workplace, name, *settings), out=workplace.folder / "run")


def test_nothing_is_warned_of_that_only_training_would_meet(place: Workplace) -> None:
    warned = load_job(load_recipe(place.recipe, ["model.dtype=bfloat16", "data.retain=null"])).warnings
    assert len(warned) == 2
    assert load_job(recipe_of(place, "prefix", "model.dtype=bfloat16", "data.retain=null")).warnings == []


def test_duet_run_and_its_readers(runs: dict[str, Run], place: Workplace, duet: Callable[..., Done]) -> None:
    done = duet("run", place.folder / "guard.yaml", "--out", runs["guard"].path)
    assert done.code == 0, done.err
    assert "student (guard)" in done.out
    table = duet("compare", *(run.path for run in runs.values()))
    assert [line.split()[1] for line in table.out.splitlines() if line.startswith("student")][:5] == list(METHODS)
    assert duet("report", runs["uld"].path).code == 0
