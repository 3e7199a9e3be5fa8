"""What is planned from config.json alone, beside real models and real steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from workplace import Done, Workplace

from duet_unlearn.config.reading import default_recipe
from duet_unlearn.config.recipe import Recipe
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.examples import Example
from duet_unlearn.errors import UserError
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.plan import (
    Plan,
    Training,
    Workload,
    count,
    draw,
    make_plan,
    plan_text,
    read_config,
    walk_asking,
    walk_training,
)
from duet_unlearn.plan.ledger import Ledger
from duet_unlearn.tensors import TopK
from duet_unlearn.training.loop import train
from duet_unlearn.training.optimizers import make_optimizers

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama, tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 8}),
    "gpt2": ("gpt2", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gemma2": ("gemma2", SIZES | {"head_dim": 8}),
    "mixtral": ("mixtral", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", SIZES | EXPERTS),
}
LOAD = Workload(tokens=10, prefix=4, queries=6)


def config_of(family: str) -> PreTrainedConfig:
    kind, sizes = FAMILIES[family]
    return AutoConfig.for_model(kind, **sizes)


def recipe_of(*settings: str) -> Recipe:
    return default_recipe("model", ["method.k=20", "train.batch_size=4", *settings])


def training(family: str, *settings: str, load: Workload = LOAD) -> Training:
    recipe = recipe_of(*settings)
    return walk_training(draw("model", config_of(family), dtype=recipe.model.dtype), recipe, load)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_walked(family: str) -> None:
    found = training(family, "model.lora.rank=2", "train.precision=bf16")
    parts = found.weights + found.gradients + found.optimizer + found.activations
    assert max(found.weights, found.activations) < found.peak <= parts
    assert sum(found.at_peak.values()) == found.peak
    assert found.gradients == 4 * found.trained
    assert 8 * found.trained <= found.optimizer <= 8 * found.trained + 4 * 200  # two moments, and counters of steps
    assert found.flops > 0


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama, tied", ()),
        ("llama", ("model.lora.rank=2",)),
        ("llama", ("train.precision=bf16", "train.micro_batch_size=1")),
        ("gpt2", ("train.gradient_checkpointing=true",)),
        ("mixtral", ("train.micro_batch_size=2",)),
    ],
)
def test_the_walk_holds_what_the_loop_holds(family: str, settings: tuple[str, ...]) -> None:
    """The same ledger over two steps of the loop, with real numbers."""
    recipe = recipe_of(*settings)
    assert real_peak(family, recipe) == pytest.approx(training(family, *settings).peak, rel=0.02)


def real_peak(family: str, recipe: Recipe) -> int:
    model, ledger = AutoModelForCausalLM.from_config(config_of(family)), Ledger()
    student = add_lora(model, recipe.model.lora, seed=0) if recipe.model.lora else model
    if recipe.train.gradient_checkpointing:
        save_gradient_memory(model)
    ledger.book([*student.parameters(), *student.buffers()], "weights")
    rows = range(7, 7 + recipe.train.batch_size)  # of unlike lengths: without padding no mask is made
    examples = [Example(tuple(range(n)), (n - 1,), None, "retain", str(n)) for n in rows]
    with ledger:
        steps = train(
            student,
            source=lambda step: examples,
            num_steps=2,
            loss=recipe.method.loss,
            targets=lambda batch: {
                "retain": TopK(torch.arange(20).repeat(len(batch.examples), 1), torch.zeros(len(batch.examples), 20))
            },
            config=recipe.train,
            pad_id=0,
        )
        assert len(list(steps)) == 2
    return ledger.peak


def test_optimiser_and_gradients_are_those_of_a_real_step() -> None:
    recipe, model = recipe_of(), AutoModelForCausalLM.from_config(config_of("gpt_neox"))
    [optimizer] = make_optimizers(model, recipe.train)
    model(input_ids=torch.zeros(2, 5, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    found = training("gpt_neox")
    assert found.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert found.optimizer == sum(value.nbytes for row in optimizer.state.values() for value in row.values())


def test_operations_by_hand() -> None:
    """Llama: 3 products a matrix, the head at one position a row, attention 2 products forward and 5 backward."""
    rows, tokens, hidden, heads, width = 4, 10, 32, 4, 8
    body = 2 * (2 * hidden * hidden + 2 * hidden * 16 + 3 * hidden * 48)
    attention = 2 * rows * heads * tokens * tokens * width
    flops = 3 * 2 * rows * tokens * body + 3 * 2 * rows * hidden * 300 + 2 * (2 + 5) * attention
    assert training("llama").flops == flops
    assert training("llama", "train.micro_batch_size=2").flops == flops
    again = 2 * rows * tokens * body + 2 * 2 * attention  # the forward pass of the layers, recomputed
    assert training("llama", "train.gradient_checkpointing=true").flops == pytest.approx(flops + again, rel=0.1)
    asking = walk_asking(draw("model", config_of("llama"), dtype="float32"), recipe_of(), LOAD)
    own = 6 * (2 * 14 * body + 2 * hidden * 300 + 2 * 2 * 2 * heads * 14 * 14 * width)
    assert asking.flops == own


def test_operations_of_experts_are_those_of_the_chosen_ones() -> None:
    expert = 3 * 32 * 48
    one, two = (replace_experts(chosen) for chosen in (1, 2))
    assert two - one == 2 * 3 * 2 * 4 * 10 * expert  # layers x products x 2 x tokens x weights


def replace_experts(chosen: int) -> int:
    config = config_of("mixtral")
    config.num_experts_per_tok = chosen
    return walk_training(draw("model", config, dtype="float32"), recipe_of(), LOAD).flops


def test_memory_moves_as_the_settings_say() -> None:
    long = replace(LOAD, tokens=60)
    plain = training("llama", load=long)
    assert training("llama", "train.gradient_checkpointing=true", load=long).activations < 0.8 * plain.activations
    assert training("llama", "train.micro_batch_size=1", load=long).activations < 0.5 * plain.activations
    lora = training("llama", "model.lora.rank=2", load=long)
    assert lora.gradients + lora.optimizer < 0.2 * (plain.gradients + plain.optimizer)
    half = training("llama", "model.dtype=bfloat16", load=long)
    assert half.weights == pytest.approx(plain.weights / 2, rel=0.01)
    assert half.gradients == plain.gradients // 2
    autocast = training("llama", "train.precision=bf16", "train.batch_size=1")
    copies = 2 * count(draw("model", config_of("llama"), dtype="float32")).linear
    assert autocast.activations > copies  # autocast keeps a bf16 copy of every matrix


@pytest.mark.parametrize(
    "setting", ["method.k=null", "method.retain_loss=kl", "method.positions=3", "train.optimizer=muon"]
)
def test_every_setting_of_method_and_optimiser_can_be_walked(setting: str) -> None:
    assert training("llama", setting).peak > 0
    assert walk_asking(draw("model", config_of("llama"), dtype="float32"), recipe_of(setting), LOAD).peak > 0


def test_more_positions_take_more() -> None:
    one, eight = (training("llama", "method.k=null", f"method.positions={n}") for n in (1, 8))
    assert eight.activations > one.activations


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


def test_an_architecture_that_looks_at_its_data_is_refused() -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_key_value_heads": 2}
    config = AutoConfig.for_model("jetmoe", **sizes, intermediate_size=16, kv_channels=8, num_local_experts=2)
    with pytest.raises(UserError, match="jetmoe: what this architecture computes depends on its data"):
        walk_training(draw("model", config, dtype="float32"), recipe_of(), LOAD)


def test_k_above_the_vocabulary_and_strange_adapters_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.k is 1000"):
        make_plan(str(folder), default_recipe("model"), LOAD, rate=1e9)
    with pytest.raises(UserError, match="no layer 'wheel'"):
        make_plan(str(folder), recipe_of("model.lora.targets=[wheel]"), LOAD, rate=1e9)


def test_default_adapters_are_the_loops(plan: Plan) -> None:
    assert LoraConfig().rank == 16
    each = 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert plan.rows[3].trained == 2 * each
