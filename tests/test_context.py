"""The deployer's own turns: forgetting is trained and measured without and with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny import tokenizer
from workplace import Done, Workplace, examples_of, write_model

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.config.reading import dump_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.examples import Example
from duet_unlearn.data.prompts import Prefix, in_context, render, with_context
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.job import Job, load_job, set_in_context

CONTEXT = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
)
QUERY = Query(id="q1", messages=({"role": "user", "content": "Where does Mira live?"},), answer="Tarn")


def with_turns(workplace: Workplace, *turns: object) -> Path:
    """The workplace's recipe with `data.context`."""
    recipe = yaml.safe_load(workplace.recipe.read_text())
    recipe["data"]["context"] = list(turns)
    workplace.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return workplace.recipe


def job_of(workplace: Workplace) -> Job:
    return load_job(load_recipe(with_turns(workplace, *CONTEXT)))


def test_the_turns_stand_before_the_question() -> None:
    found = in_context(QUERY, CONTEXT)
    assert found == replace(QUERY, id="q1/context", messages=(*CONTEXT, *QUERY.messages))
    assert with_context([QUERY], CONTEXT) == (QUERY, found)
    assert with_context([QUERY], ()) == (QUERY,)


@pytest.mark.parametrize(
    ("context", "system"), [(CONTEXT, "Be kind.\nYou keep bees."), (CONTEXT[1:], "You keep bees.")]
)
def test_a_system_turn_of_the_querys_own_is_kept_and_stands_first(context: tuple, system: str) -> None:
    own = replace(QUERY, messages=({"role": "system", "content": "You keep bees."}, *QUERY.messages))
    messages = in_context(own, context).messages
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == system
    assert CONTEXT[0]["content"] == "Be kind."  # the recipe's own turns are not touched


def test_raw_text_has_no_turns_before_it() -> None:
    raw = replace(QUERY, id="raw", messages=({"role": "text", "content": "Mira lives in"},))
    assert [query.id for query in with_context([QUERY, raw], CONTEXT)] == ["q1", "raw", "q1/context"]
    one = EvalSet("forget", "Forget", "forget", "low", "some", (raw, QUERY), prefill=("a", "b"))
    found = set_in_context(one, CONTEXT)
    assert found is not None
    assert (found.name, found.title, found.group, found.better) == (
        "forget_context", "Forget, deployer's turns", "forget", "low",
    )  # fmt: skip
    assert ([query.id for query in found.queries], found.prefill) == (["q1/context"], ("b",))
    assert set_in_context(replace(one, queries=(raw,), prefill=None), CONTEXT) is None


@pytest.mark.parametrize("turn", ["user", "system"])
def test_teacher_and_student_differ_by_the_prefix_alone(turn: str) -> None:
    words, prefix = tokenizer(), Prefix("You have forgotten Mira.", turn)  # type: ignore[arg-type]
    messages = in_context(QUERY, CONTEXT).messages
    student, teacher = (words.decode(render(words, messages, prefix=one)) for one in (None, prefix))
    assert teacher.replace(f"{prefix.instruction}\n", "", 1) == student
    before = "<|system|>" if turn == "system" else "</s><|user|>"
    assert f"{before}{prefix.instruction}\n{'Be kind.' if turn == 'system' else 'Where'}" in teacher


def test_every_query_is_asked_without_and_with_the_turns(workplace: Workplace) -> None:
    job, plain = job_of(workplace), load_job(replace_context(load_recipe(workplace.recipe)))
    before, after = ([one.query.id for one in examples_of(found, "train")] for found in (plain, job))
    assert len(before) == 12
    assert sorted(after) == sorted([*before, *(f"{id}/context" for id in before)])
    assert [one.name for one in job.suite()] == ["forget", "retain", "forget_context", "retain_context"]
    assert [one.name for one in plain.suite()] == ["forget", "retain"]
    _, plain_steps = plain.source([ROW] * 12)
    _, steps = job.source([ROW] * 24)
    assert (plain_steps, steps) == (18, 36)


ROW = Example((5, 6), (1,), None, "forget", "row")


def replace_context(recipe: Recipe) -> Recipe:
    return replace(recipe, data=replace(recipe.data, context=()))


def test_a_recipe_with_turns_survives_a_round_trip(workplace: Workplace) -> None:
    recipe = load_recipe(with_turns(workplace, *CONTEXT))
    again = workplace.folder / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    assert job_of(workplace).context == CONTEXT


SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("turns", "key", "below", "words"),
    [
        ([USER], "data.context:", 0, "ends with a user turn"),
        ([USER, SYSTEM], "data.context.1.role:", 3, "a system turn stands first"),
        ([{"role": "system", "content": " "}], "data.context.0.content:", 2, "is empty"),
        ([{"role": "robot", "content": "Hi"}], "data.context.0.role:", 1, "'robot'"),
        ([{"role": "system"}], "data.context.0.content:", 1, "is missing"),
        ([{"role": "system", "content": 3}], "data.context.0.content:", 2, "not text"),
        (["Be kind."], "data.context.0:", 1, "not a section"),
    ],
)
def test_wrong_turns_are_named_by_key_and_line(
    turns: list[object], key: str, below: int, words: str, workplace: Workplace, duet: Callable[..., Done]
) -> None:
    path = with_turns(workplace, *turns)
    line = path.read_text().splitlines().index("  context:") + 1 + below
    done = duet("run", path)
    assert done.code == 1
    assert done.err.startswith(f"error: {path}:{line}: {key} ")
    assert words in done.err
    assert len(done.err.splitlines()) == 2


def test_a_set_with_the_name_of_a_repetition_is_refused(workplace: Workplace) -> None:
    settings = [f"evaluate.sets={{forget: {workplace.forget}, forget_context: {workplace.forget}}}"]
    with pytest.raises(UserError, match=r"evaluate\.sets\.forget_context: with data.context this name is taken"):
        load_job(load_recipe(with_turns(workplace, *CONTEXT), settings))


def long_model(folder: Path, limit: int) -> Path:
    """The tiny model with room for `limit` tokens."""
    path = write_model(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": limit}))
    return folder


def test_a_run_measures_both(workplace: Workplace) -> None:
    model = long_model(workplace.folder / "long", 512)
    settings = [f"model.path={model}", "train.epochs=3", "data.validation_forget=forget.jsonl"]
    settings += ["data.validation_retain=retain.jsonl", "train.validate_every=18"]
    run = unlearn(load_recipe(with_turns(workplace, *CONTEXT), settings), out="run")
    for name in ("base", "prefix", "student"):
        scores = json.loads((run.evals / f"{name}.json").read_text())["scores"]
        assert {key: value["right"]["n"] for key, value in scores.items()} == {
            "forget": 6, "retain": 6, "forget_context": 6, "retain_context": 6,
        }  # fmt: skip
    assert len(run.metrics.read_text().splitlines()) == 18  # 24 examples, 4 a step, 3 epochs
    assert json.loads(run.probe.read_text())["refused"]["n"] == 12
    assert "Forget (trained on), deployer&#39;s turns" in run.report.read_text()


@pytest.mark.parametrize(
    ("change", "query"),
    [
        ([], "forget.jsonl:1"),
        (["data.context=[{role: system, content: " + "x" * 300 + "}]", "prefix.text=No."], "forget.jsonl:1/context"),
        (["evaluate.max_new_tokens=250", "prefix.text=No."], "forget.jsonl:1"),
    ],
)
def test_a_prompt_longer_than_the_models_context_is_refused_before_any_work(
    change: list[str], query: str, workplace: Workplace, duet: Callable[..., Done]
) -> None:
    model = long_model(workplace.folder / "short", 60 if not change else 256)
    done = duet("run", "recipe.yaml", "--out", "run", *(f"--set={one}" for one in [f"model.path={model}", *change]))
    assert done.code == 1
    assert done.err.startswith(f"error: query '{query}': ")
    assert "of answer exceed the model's" in done.err
    assert len(done.err.splitlines()) == 2
    assert not Path("run").exists()


def test_an_answer_longer_than_the_models_context_is_refused(workplace: Workplace, duet: Callable[..., Done]) -> None:
    row = {"id": "long", "question": "Who?", "answer": "word " * 200}
    workplace.retain.write_text(workplace.retain.read_text() + json.dumps(row) + "\n")
    assert duet("run", "recipe.yaml", "--out", "run").err.startswith("error: query 'long': ")


@pytest.mark.slow
def test_the_lab_forgets_without_and_with_the_deployers_turns(tmp_path: Path) -> None:
    """A deployer's system prompt and one earlier exchange. The lab's base follows a prefix behind an earlier exchange
    half of the time only, so the prefix stands in the system turn."""
    context = [
        {"role": "system", "content": "You are the assistant of a museum. Answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
    ]
    settings = ["prefix.turn=system", f"data.context={json.dumps(context)}"]
    run = unlearn(load_recipe("lab/demo", settings), out=tmp_path / "run")
    base, student = (json.loads((run.evals / f"{name}.json").read_text())["scores"] for name in ("base", "student"))
    for name in ("forget", "forget_held_out", "forget_context", "forget_held_out_context"):
        assert (base[name]["right"]["value"] > 0.9, student[name]["right"]["value"] < 0.1) == (True, True), name
    for name in ("forget_unseen", "forget_unseen_context"):
        assert (base[name]["right"]["value"] > 0.9, student[name]["right"]["value"] < 0.7) == (True, True), name
    for name in ("near", "retain", "near_context", "retain_context"):
        assert student[name]["right"]["value"] > 0.85, name
    shifted = ("forget_held_out", "forget_unseen", "retain", "choice")
    assert student["shift"]["points"]["n"] == sum(base[name]["right"]["n"] for name in shifted)
