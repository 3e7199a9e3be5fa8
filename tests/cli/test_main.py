from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import duet_unlearn
from duet_unlearn.api import open_run
from duet_unlearn.cli import main
from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.events import Event
from duet_unlearn.runs import Run

HEAVY = {"torch", "transformers", "rich", "matplotlib", "numpy", "yaml", "duet_unlearn.config.reading"}
"""pydantic is not here: typer itself imports it where a verb has options."""
NAN = float("nan")
SCORE = {"value": 0.04, "n": 50, "low": 0.011, "high": 0.135}


@dataclass(frozen=True)
class Probe:
    verdict: str
    refused: dict[str, Any]
    refused_without: dict[str, Any]
    answered: dict[str, Any]
    agreement: dict[str, Any]
    kl: dict[str, Any]
    shift: list[dict[str, Any]]
    works: bool = True


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The verbs' other side, without a model."""
    fake = SimpleNamespace()
    monkeypatch.setattr(duet_unlearn, "api", fake, raising=False)
    return fake


@pytest.fixture
def leave(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["--version"], ["lab", "build", "-h"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom duet_unlearn.cli import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "duet" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ("run", "lab/duett"),
        ("run", "none.yaml"),
        ("run", "."),
        ("run", "empty.yaml"),
        ("run", "bad.yaml"),
        ("run", "lab/duet", "--set", "train.epoch=3"),
        ("run", "lab/duet", "--set", "method.name=duett"),
        ("probe", "lab/duett"),
        ("evaluate", "x", "--recipe", "lab/duett"),
        ("evaluate", "x", "--set", "seed=1"),
        ("compare", "none"),
        ("report", "none"),
    ],
)
def test_user_errors_are_two_lines_and_exit_1(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Any, api: SimpleNamespace
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("")
    Path("bad.yaml").write_text("a: [b\nc: d\n")
    code, out, err = leave(*args)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (1, "", 2)
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize("args", [("nope",), ("run",), ("run", "lab/duet", "--sett", "a=b"), ("list", "runs")])
def test_wrong_usage_exits_2(args: tuple[str, ...], leave: Any) -> None:
    assert leave(*args)[0] == 2


def test_an_interrupt_exits_130_and_says_how_to_go_on(leave: Any, api: SimpleNamespace) -> None:
    def interrupted(recipe: Recipe, *, out: Path | None, on_event: Any) -> Run:
        raise KeyboardInterrupt

    api.unlearn = interrupted
    code, _, err = leave("demo")
    assert code == 130
    assert err == "stopped; the same command goes on\n"


def test_another_exception_keeps_its_traceback(api: SimpleNamespace) -> None:
    def broken(recipe: Recipe, *, on_event: Any) -> None:
        raise ZeroDivisionError

    api.probe = broken
    with pytest.raises(ZeroDivisionError):
        main(["probe", "lab/duet"])


def test_run_passes_the_settings_on_and_prints_table_and_report(
    tmp_path: Path, leave: Any, api: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def unlearn(recipe: Recipe, *, out: Path | None, on_event: Any) -> Run:
        given.update(recipe=recipe, out=out)
        on_event(Event("train", 1, 2, "loss 0.5"))
        return open_run(out or tmp_path / "run", recipe)

    api.unlearn = unlearn
    report = importlib.import_module("duet_unlearn.report")
    monkeypatch.setattr(report, "summary_text", lambda path: f"table of {path.name}")
    code, out, err = leave("run", "lab/duet", "--set", "seed=4", "--set", "method.k=2", "--out", str(tmp_path / "mine"))
    assert code == 0
    assert given["recipe"] == load_recipe("lab/duet", ["seed=4", "method.k=2"])
    assert out.splitlines() == ["table of mine", "", f"report: {tmp_path / 'mine' / 'report.html'}"]
    assert err == "train: 1/2 loss 0.5\n"


def test_probe_prints_the_verdict_or_json_without_nan(leave: Any, api: SimpleNamespace) -> None:
    shift = [{"query": "Who?", "role": "forget", "base": [["Mira", 0.9]], "prefix": [["I", 0.8]]}]
    empty = {"value": NAN, "n": 0, "low": NAN, "high": NAN}
    api.probe = lambda recipe, *, on_event: Probe("it refuses", SCORE, SCORE, SCORE, empty, empty, shift)
    code, out, _ = leave("probe", "lab/duet")
    assert code == 0
    assert out.startswith("it refuses\n")
    assert "4.0 % [1.1, 13.5] n=50" in out
    assert "- nats n=0" in out
    assert "'Mira' 0.90" in out
    found = json.loads(leave("probe", "lab/duet", "--json")[1])
    assert found["kl"] == {"value": None, "n": 0, "low": None, "high": None}


def test_evaluate_prints_scores_of_every_subject(leave: Any, api: SimpleNamespace) -> None:
    scores = {
        "forget": {"right": SCORE},
        "shift": {"points": {"value": 95.0, "n": 4, "low": None, "high": None}},
    }
    api.evaluate = lambda what, *, recipe, on_event: {"student": {"label": f"student of {what}", "scores": scores}}
    out = leave("evaluate", "runs/x")[1]
    assert out.splitlines()[0] == "student of runs/x"
    assert "right 4.0 % [1.1, 13.5] n=50" in out
    assert "points 95.00 points n=4" in out
    assert json.loads(leave("evaluate", "runs/x", "--json")[1])["student"]["scores"] == scores


def test_chat_shows_every_subjects_answer(leave: Any, api: SimpleNamespace, tmp_path: Path) -> None:
    api.chat = lambda run, question, on_event: {
        "base": "Tarn.\nYes.",
        "base + prefix": "I forgot.",
        "student": question,
    }
    out = leave("chat", str(tmp_path), "Who?")[1]
    assert out.splitlines() == [
        "base           Tarn.",
        "               Yes.",
        "base + prefix  I forgot.",
        "student        Who?",
    ]


@pytest.mark.parametrize(("what", "name"), [("recipes", "lab/duet"), ("methods", "duet"), ("metrics", "rouge_l")])
def test_list_names_and_describes(what: str, name: str, leave: Any) -> None:
    rows = json.loads(leave("list", what, "--json")[1])
    assert len(rows[name]) > 20
    assert rows[name] in leave("list", what)[1]


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "duet_unlearn", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"duet-unlearn {duet_unlearn.__version__}\n"
