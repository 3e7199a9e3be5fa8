"""The benchmarks run, their files have what their readers look for, and the race is a fair one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ABSENT = ("pydantic", "typer", "rouge_score", "rich", "matplotlib", "scipy", "trl", "datasets")
"""What a machine with a card need not have."""


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_step_races_all_three(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    done = run(str(BENCHMARKS / "step.py"), "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"date", "machine", "versions", "parameters", "setting", "ratios", "phases", "floor"} <= set(result)
    assert result["versions"]["torch"]
    assert result["machine"]["threads"] == 1
    assert result["parity"]["epoch_loss_difference"] < 1e-4
    for name in ("ours", "two_model", "sdft"):
        measured = result["contenders"][name]
        assert measured["seconds"]["epoch"]["median"] > 0
        assert measured["peak_bytes"]["epoch"]["median"] > measured["peak_bytes"]["imports"]["median"]
        assert len(measured["losses"]) == result["shape"]["steps"]
        assert name in done.stderr
        assert result["phases"][name]["optimiser"] > 0
    assert set(result["contenders"]["ours"]["seconds"]) >= {"targets", "epoch", "total", "10 epochs"}
    assert set(result["ratios"]) == {"two_model", "sdft"}
    assert set(result["ratios"]["sdft"]) == {"epoch", "total", "10 epochs", "peak memory"}
    assert 0 < result["floor"]["whole step"]["share"] < 1
    assert "TRL SDFT" in done.stdout

    from contenders.table import BEGIN, END, write_readme

    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}", encoding="utf-8")
    out.rename(tmp_path / "step-cpu.json")
    write_readme(readme, tmp_path)
    assert "| TRL SDFT |" in readme.read_text(encoding="utf-8")


def test_ours_and_two_models_take_the_same_step(tmp_path: Path) -> None:
    from contenders import ours, two_model
    from contenders.prepare import parity
    from contenders.setting import build_model, tiny

    setting = tiny("cpu")
    build_model(setting, tmp_path / "model")
    same = parity(setting, tmp_path, tmp_path)
    assert same["loss_ours"] == pytest.approx(same["loss_two_model"], rel=1e-5)
    assert same["change_difference"] < 1e-3

    other = replace(setting, k=setting.k // 2)  # the check is one that can fail
    model, tokenizer = ours.load(setting, tmp_path)
    targets = ours.teach(other, model, tokenizer, "", tmp_path / "other")
    assert ours.learn(other, model, targets, num_steps=1)[0] != pytest.approx(same["loss_two_model"], rel=1e-3)
    student, teacher = two_model.prompts(setting, tmp_path)
    assert {len(teacher[key]) - len(student[key]) for key in student} == {setting.prefix}


@pytest.mark.slow
def test_gpu_runs_without_a_card_and_without_the_command_lines_packages(tmp_path: Path) -> None:
    out, script = tmp_path / "gpu.json", str(BENCHMARKS / "gpu.py")
    start = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT!r})); sys.path.insert(0, {str(BENCHMARKS)!r});"
        f"sys.argv = ['gpu.py', '--tiny', '--out', {str(out)!r}]; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = run("-c", start)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"date", "machine", "versions", "parameters", "setting"} <= set(result)
    assert result["targets"]["tokens_per_second"] > 0
    assert len(result["runs"]) == 6
    for row in result["runs"]:
        assert row["tokens_per_second"] > 0
        assert 0 < row["share_of_measured"] < 1
        assert row["peak_bytes"] > 0
        assert row["planned_bytes"] > 0
        assert row["phases"]["optimiser"] > 0
    lora = [row for row in result["runs"] if row["mode"].startswith("LoRA")]
    assert all(0 < row["trained_parameters"] < result["parameters"]["total"] / 2 for row in lora)
    assert "teacher's targets" in done.stdout


@pytest.mark.slow
def test_plan_is_measured_beside_real_runs(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    for case in ("lora", "mixture"):
        done = run(str(BENCHMARKS / "plan.py"), "--tiny", "--only", case, "--out", str(out))
        assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [case["name"] for case in result["cases"]] == ["lora", "lora, bf16 weights", "mixture, full"]
    for case in result["cases"]:
        assert case["measured"]["training"] > 0
        assert case["ratios"]["total"] == case["foretold"]["total"] / case["measured"]["total"]
    assert "mixture, full" in done.stdout


def test_gpu_says_so_where_there_is_no_card(tmp_path: Path) -> None:
    done = run(str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2


def test_operations_by_hand() -> None:
    from contenders.floor import body_flops, floor_seconds, head_flops, phase_work, step_flops
    from contenders.setting import Setting

    setting = Setting("cpu", "float32", vocabulary=10, hidden=2, layers=3)
    assert head_flops(setting, 5) == 2 * 5 * 2 * 10
    assert body_flops(setting, 6, 3, 7) == 2 * 6 * 7 + 4 * 6 * 3 * 2 * 3
    parameters = {"total": 27, "embedding": 20, "body": 7}
    shape = {"rows": 2, "student_tokens": 6, "teacher_tokens": 10}
    flops = step_flops(setting, parameters, shape)
    assert flops["ours"] == 3 * body_flops(setting, 6, 3, 7) + 3 * 2 * 2 * 2 * 10
    assert flops["two_model"] - flops["ours"] == 3 * 2 * 4 * 2 * 10 + body_flops(setting, 10, 5, 7) + 2 * 10 * 2 * 10
    work = phase_work(setting, parameters, shape)["optimiser"]
    assert work == (0, 7 * 4 * 27)
    assert floor_seconds(work, {"matmul_flops": 1.0, "bytes_per_second": 27.0}) == 28


def test_full_setting_is_of_about_100_million_parameters() -> None:
    import torch
    from contenders.setting import full, llama_config
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(full("cpu")))
    assert sum(p.numel() for p in model.parameters()) == 100_281_856
    assert full("cpu").vocabulary == 128_256
    assert full("cpu").queries % full("cpu").batch == full("cuda").queries % full("cuda").batch == 0


def test_prompts_have_the_lengths_that_the_setting_names() -> None:
    from contenders.setting import asked, build_tokenizer, tiny

    from duet_unlearn.data.prompts import render

    setting = tiny("cpu")
    tokenizer = build_tokenizer(setting.vocabulary)
    for one in asked(setting):
        student = render(tokenizer, one.query.messages)
        assert setting.prompt[0] <= len(student) <= setting.prompt[1]
        assert len(render(tokenizer, one.query.messages, prefix=one.prefix)) == len(student) + setting.prefix


def test_ratios_are_taken_round_by_round() -> None:
    import step

    def measured(epoch: float, targets: float) -> dict[str, Any]:
        seconds = {"epoch": epoch, "targets": targets}
        return {"seconds": seconds | step.totals(seconds), "peak_bytes": {"epoch": 10}}

    ours = [measured(2, 1), measured(3, 1), measured(2, 1)]
    ratios = step.ratios([measured(4, 0), measured(9, 0), measured(8, 0)], ours)
    assert ratios["epoch"] == {"median": 3, "low": 2, "high": 4}
    assert ratios["10 epochs"]["low"] == pytest.approx(40 / 21)
    assert ratios["peak memory"]["median"] == 1
    assert step.order(("a", "b", "c"), 1) == ("c", "b", "a")


def test_render_replaces_what_stands_between_the_markers(tmp_path: Path) -> None:
    from contenders.table import BEGIN, END, table, write_readme

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_readme(readme, tmp_path)
    assert readme.read_text(encoding="utf-8") == f"before\n{BEGIN}\nNo results are stored yet.\n{END}\nafter\n"
    assert table([["", "s"], ["name", "1.5"]]) == "        s\nname  1.5"


@pytest.mark.slow
def test_choice_and_generate_run(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    if "DUET_DATA" not in os.environ:
        pytest.skip("DUET_DATA is not set: the folder with mmlu/")
    found = {}
    for name in ("choice", "generate"):
        out = tmp_path / f"{name}.json"
        done = run(str(BENCHMARKS / f"{name}.py"), "--tiny", "--out", str(out))
        assert done.returncode == 0, done.stderr
        (found[name],) = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert found["choice"]["max_logp_difference"] < 1e-4
    assert found["choice"]["choices"]["equal"] == found["choice"]["choices"]["clear"] == found["choice"]["questions"]
    assert found["choice"]["ratio"]["median"] > 1
    assert set(found["generate"]["equal_answers"].values()) == {found["generate"]["prompts"]}


@pytest.mark.slow
def test_attack_speed_runs_and_all_ways_say_the_same(tmp_path: Path) -> None:
    out = tmp_path / "attack-speed.json"
    done = run(str(BENCHMARKS / "attack_speed.py"), "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [case["case"] for case in result["cases"]] == ["reverse", "few-shot"]
    for case in result["cases"]:
        assert set(case["equal_answers"].values()) == {case["answers"]}
    assert result["all"]["answers"] == sum(case["answers"] for case in result["cases"])
    assert result["all"]["processor_ratio"]["one by one"]["median"] > 1


def test_choices_count_where_the_margin_is_clear() -> None:
    import choice

    theirs = [[-1.0, -2.0], [-1.0, -1.00005], [-3.0, -1.0]]
    found = choice.compare([[-1.0, -2.00002], [-1.00004, -1.0], [-1.0, -3.0]], theirs)
    assert found["choices"] == {"clear": 2, "equal": 1, "within_margin": 1}
    assert found["max_logp_difference"] == 2.0
    assert choice.compare(theirs, theirs)["max_logp_difference"] == 0
