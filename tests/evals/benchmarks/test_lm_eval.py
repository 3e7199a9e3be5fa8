"""Our multiple choice against lm-eval's, question by question; lm-eval's settings: passed on, read back, followed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
from workplace import Done, Workplace

from duet_unlearn.api import open_run
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks.lm_eval import require_followed, run_lm_eval
from duet_unlearn.evals.question_sets import letter_logps
from duet_unlearn.evals.subject import ModelSubject

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # lm-eval's own
ASKED = [
    Query(
        id=f"q{number}",
        messages=({"role": "user", "content": f"Where does {name} live?"},),
        answer="AB"[number % 2],
        choices=("Tarn", "Gosh"),
    )
    for number, name in enumerate(("Mira", "Bol", "Mira Bol", "it", "who"))
]


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    import datasets
    import lm_eval.evaluator
    from contenders import questions

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _report: None)  # seconds of `pip list`
    return questions


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def task(questions: ModuleType, tmp_path: Path) -> str:
    return questions.write_chat_task(tmp_path, "local_chat", tiny.tokenizer(), ASKED)


def test_mmlu_as_lm_eval_scores_it(questions: ModuleType, tmp_path: Path) -> None:
    """7 M random weights, five shots, two subjects of ten questions: through its own template, on the real rows."""
    if "DUET_DATA" not in os.environ:
        pytest.skip("DUET_DATA is not set: the folder with mmlu/")
    from duet_unlearn.models.load import load_model

    data, subjects = Path(os.environ["DUET_DATA"]), questions.SUBJECTS[:2]
    path = questions.write_model(tmp_path / "model", questions.train_tokenizer(data), questions.SHAPES["7 M"])
    model, tokenizer = load_model(str(path))
    asked = questions.mmlu_queries(data, subjects, shots=5, limit=10)
    ours = letter_logps(ModelSubject("random", model, tokenizer), asked, batch_size=32)
    tasks = questions.write_mmlu_tasks(tmp_path, data, subjects, limit=10)
    record, samples = run_lm_eval(
        model, tokenizer, tasks, {"num_fewshot": 5, "bootstrap_iters": 0, "batch_size": 4}, include=tmp_path
    )
    theirs = [s for name in tasks for s in sorted(samples[name], key=lambda s: s["doc_id"])]
    assert [s["arguments"][0][0] for s in theirs] == [query.text for query in asked]
    for mine, sample in zip(ours, theirs, strict=True):
        values = [response[0][0] for response in sample["resps"]]
        assert mine == pytest.approx(values, abs=1e-4)
        top, second = sorted(values)[:-3:-1]
        assert top - second > 1e-4
        assert mine.index(max(mine)) == values.index(top)
    right = sum("ABCD"[m.index(max(m))] == q.answer for m, q in zip(ours, asked, strict=True))
    assert right == pytest.approx(10 * sum(record["results"][name]["acc,none"] for name in tasks))
    assert record["effective"]["num_fewshot"] == dict.fromkeys(tasks, 5)


def test_defect_17_settings_are_passed_on_and_read_back(task: str, tmp_path: Path) -> None:
    asked = {"num_fewshot": 0, "limit": 3, "batch_size": 2, "max_length": 100, "bootstrap_iters": 0}
    record, samples = run_lm_eval(tiny.llama(), tiny.tokenizer(), [task], asked, include=tmp_path)
    assert record["asked"] == asked
    assert record["effective"] == {
        "num_fewshot": {task: 0},
        "limit": {task: 3},
        "gen_kwargs": {task: None},
        "bootstrap_iters": 0,
        "fewshot_random_seed": 1234,
        "batch_size": 2,
        "max_length": 100,
    }
    assert len(samples[task]) == 3
    assert record["first_prompts"][task].endswith("<|assistant|>")
    json.dumps(record)


def test_defect_17_a_setting_that_is_not_followed_is_an_error(task: str, tmp_path: Path) -> None:
    def ask(**settings: Any) -> UserError:
        with pytest.raises(UserError) as stop:
            run_lm_eval(tiny.llama(), tiny.tokenizer(), [task], settings, include=tmp_path)
        return stop.value

    assert "gen_kwargs={'temperature': 0.5}" in ask(gen_kwargs={"temperature": 0.5}, bootstrap_iters=0).message
    assert "num_fewshot" in ask(num_fewshots=5).hint
    assert "no mapping" in ask(gen_kwargs="temperature=0.5").message
    fixed = tmp_path / f"{task}.yaml"
    fixed.write_text(fixed.read_text("utf-8") + "num_fewshot: 0\n", encoding="utf-8")
    assert f"the task {task} is fixed to 0" in ask(num_fewshot=5).message


def test_what_is_compared() -> None:
    record = {
        "effective": {"num_fewshot": {"a": 0}, "limit": {"a": 4}, "gen_kwargs": {"a": {"temperature": 0.0}}},
        "first_prompts": {"a": "Be brief. Where?"},
        "n-samples": {"a": {"original": 8, "effective": 4}},
    }
    for followed in ({"num_fewshot": 0}, {"limit": 4}, {"limit": 0.5}, {"gen_kwargs": {"temperature": 0}}):
        require_followed(followed, record)
    require_followed({"system_instruction": "Be brief."}, record)
    for ignored in ({"num_fewshot": 5}, {"limit": 9}, {"gen_kwargs": {"top_k": 3}}, {"system_instruction": "Sing."}):
        with pytest.raises(UserError, match=f"did not follow {next(iter(ignored))}"):
            require_followed(ignored, record)


@pytest.mark.slow  # lm-eval reads all its task files
def test_no_such_task(questions: ModuleType, task: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task 'local_chap'") as stop:
        run_lm_eval(tiny.llama(), tiny.tokenizer(), ["local_chap"], {}, include=tmp_path)
    assert stop.value.hint == "did you mean local_chat?"


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="needs the package lm_eval") as stop:
        run_lm_eval(tiny.llama(), tiny.tokenizer(), ["mmlu"], {})
    assert "duet-unlearn[lm-eval]" in stop.value.hint


def test_the_verb_asks_any_model(workplace: Workplace, duet: Callable[..., Done], task: str, tmp_path: Path) -> None:
    done = duet("lm-eval", "lab:base", "--tasks", task, "--include", tmp_path, "--arg", "limit=2", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["effective"]["limit"] == {task: 2}
    wrong = duet("lm-eval", "lab:base", "--tasks", task, "--arg", "limit")
    assert wrong.code == 1
    assert "--arg limit: is no setting" in wrong.err


def test_a_run_keeps_what_its_student_scored(
    workplace: Workplace, tiny_model: Path, duet: Callable[..., Done], task: str, tmp_path: Path
) -> None:
    run = open_run(tmp_path / "run", load_recipe(workplace.recipe))
    without = duet("lm-eval", run.path, "--tasks", task, "--include", tmp_path)
    assert without.code == 1
    assert "has no student yet" in without.err
    shutil.copytree(tiny_model, run.model)
    done = duet("lm-eval", run.path, "--tasks", task, "--include", tmp_path, "--arg", "limit=2")
    assert done.code == 0, done.err
    assert "acc" in done.out
    assert "0 shots, n 2" in done.out
    record = json.loads((run.evals / f"lm_eval-{task}.json").read_text("utf-8"))
    assert record["asked"] == {"limit": 2}
    assert record["effective"]["limit"] == {task: 2}
    assert record["packages"]["lm-eval"]
