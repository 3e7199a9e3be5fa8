"""What is planned from config.json alone: the table of all ways of training, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from planned import FAMILIES, LOAD, config_of, recipe_of
from transformers import AutoConfig, AutoModelForCausalLM
from workplace import Done, Workplace

from duet_unlearn.config.reading import default_recipe
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.errors import UserError
from duet_unlearn.plan import Plan, count, draw, make_plan, plan_text, read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights."""
    folder = tmp_path_factory.mktemp("plan") / "model"
    config_of("llama, tied").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """Of that folder."""
    return make_plan(str(folder), recipe_of("train.epochs=3"), LOAD, rate=1e9)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_real_model(family: str) -> None:
    model = AutoModelForCausalLM.from_config(config_of(family))
    found = count(draw("model", config_of(family), dtype="float32"))
    assert found.total == sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    layers = [m.weight.numel() for m in model.modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]
    assert (found.linear, found.largest) == (sum(layers), max(layers))


def test_of_a_mixture_the_chosen_experts_are_active() -> None:
    found = count(draw("model", config_of("mixtral"), dtype="float32"))
    one = 3 * 32 * 48  # gate, up and down
    assert found.total - found.active == 2 * 2 * one  # layers x experts that sleep
    dense = count(draw("model", config_of("llama"), dtype="float32"))
    assert dense.active == dense.total


def test_a_plan_needs_no_weights_and_compares_every_way(plan: Plan) -> None:
    rows = {row.name: row for row in plan.rows}
    assert list(rows) == [
        "full, fp32",
        "full, bf16 autocast",
        "full, bf16 weights",
        "LoRA, fp32",
        "LoRA, bf16 weights",
        "QLoRA, nf4 weights",
    ]
    assert [row.name for row in plan.rows if row.chosen] == ["full, fp32"]
    full, lora, packed = rows["full, fp32"], rows["LoRA, bf16 weights"], rows["QLoRA, nf4 weights"]
    assert full.student == 4 * plan.parameters.total
    assert full.checkpoint == full.gradients + full.optimizer
    assert lora.student == 4 * lora.trained  # PEFT keeps adapters in fp32
    assert lora.weights - packed.weights == pytest.approx(plan.parameters.linear * (2 - 0.51587), rel=1e-3)
    assert packed.peak < lora.peak < full.peak
    assert plan.steps == 3 * 2
    assert plan.targets == 6 * 20 * 8
    assert full.seconds == full.flops / 1e9
    assert full.fits
    assert full.peak == max(full.training, full.asking)


def test_a_recipe_of_another_kind_has_a_row_of_its_own(folder: Path) -> None:
    recipe = recipe_of("model.lora.rank=2", "train.precision=bf16")
    plan = make_plan(str(folder / "config.json"), recipe, LOAD, rate=1e9)
    assert [row.name for row in plan.rows if row.chosen] == ["the recipe's"]
    assert len(plan.rows) == 7


def test_what_does_not_fit_is_said(plan: Plan) -> None:
    small = replace(plan, rows=tuple(replace(row, fits=row.chosen) for row in plan.rows))
    assert "): full fp32\n" in plan_text(small)
    none = replace(plan, rows=tuple(replace(row, fits=False) for row in plan.rows))
    assert "): none\n" in plan_text(none)


def test_the_command_prints_a_table(duet: Callable[..., Done], folder: Path) -> None:
    done = duet("plan", folder, "--set", "method.k=20", "--flops", "1e9", "--tokens", "8", "--queries", "5")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{folder} (llama): ")
    assert "5 queries of up to 8 tokens" in lines[1]
    table = [line for line in lines if line.startswith(("MB", "full", "LoRA", "QLoRA"))]
    assert len(table) == 7
    assert len({len(line) for line in table}) == 1


def test_a_recipe_gives_its_settings_and_its_number_of_queries(duet: Callable[..., Done], workplace: Workplace) -> None:
    model = workplace.folder / "bare"
    config_of("llama").save_pretrained(model)
    found = json.loads(duet("plan", model, "--recipe", workplace.recipe, "--flops", "1e9", "--json").out)
    assert (found["settings"]["queries"], found["settings"]["k"], found["settings"]["batch_size"]) == (12, 20, 4)
    assert found["steps"] == 6 * 3
    assert set(found) == {field.name for field in fields(Plan)}
    assert found["machine"]["rates"] == {"fp32": 1e9, "bf16": 1e9}
    assert all(row["peak"] > 0 and row["seconds"] > 0 for row in found["rows"])


def refused(path: Path | str) -> UserError:
    with pytest.raises(UserError) as caught:
        read_config(str(path))
    return caught.value


def write_config(folder: Path, values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "names no model_type"),
        ({"model_type": "lama"}, "unknown model_type 'lama'"),
        ({"model_type": "t5"}, "t5 is no causal language model"),
        ({"model_type": "bert"}, "bert is no causal language model"),
        ({"model_type": "clip"}, "clip is no causal language model"),
        ({"model_type": "llama", "hidden_size": "many"}, "does not fit together"),
    ],
)
def test_a_config_that_is_no_language_model_is_refused(tmp_path: Path, values: Any, said: str) -> None:
    assert said in refused(write_config(tmp_path / "model", values)).message


def test_a_near_type_is_suggested(tmp_path: Path) -> None:
    assert refused(write_config(tmp_path, {"model_type": "lama"})).hint == "did you mean llama?"


def test_a_folder_without_config_and_an_adapter_are_refused(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path).message
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(tmp_path).message
    assert "no such folder" in refused(tmp_path / "none").message
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in refused(tmp_path).message


def test_sizes_that_make_no_model_are_refused() -> None:
    config = config_of("llama")
    config.pad_token_id = 10_000
    with pytest.raises(UserError, match="no model can be built"):
        draw("model", config, dtype="float32")


def test_a_hub_id_that_is_not_here_is_two_lines(
    duet: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = duet("plan", "nobody/nothing")
    assert (done.code, done.out) == (1, "")
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "hint"]


def test_an_architecture_that_takes_no_adapters_is_planned_without(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1}
    AutoConfig.for_model("mamba", **sizes).save_pretrained(tmp_path)
    plan = make_plan(str(tmp_path), recipe_of(), LOAD, rate=1e9)
    assert [row.name for row in plan.rows] == ["full, fp32", "full, bf16 autocast", "full, bf16 weights"]
    assert "mamba: takes no adapters" in plan_text(plan)
    with pytest.raises(UserError, match="takes no adapters"):
        make_plan(str(tmp_path), recipe_of("model.lora.rank=2"), LOAD, rate=1e9)


def test_k_above_the_vocabulary_and_strange_adapters_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.k is 1000"):
        make_plan(str(folder), default_recipe("model"), LOAD, rate=1e9)
    with pytest.raises(UserError, match="no layer 'wheel'"):
        make_plan(str(folder), recipe_of("model.lora.targets=[wheel]"), LOAD, rate=1e9)


def test_default_adapters_are_the_loops(plan: Plan) -> None:
    assert LoraConfig().rank == 16
    each = 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert plan.rows[3].trained == 2 * each
