"""What is found without weights about a step, compared with real models and real steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planned import FAMILIES, LOAD, config_of, recipe_of
from transformers import AutoConfig, AutoModelForCausalLM

from duet_unlearn.config.recipe import Recipe
from duet_unlearn.data.examples import Example
from duet_unlearn.errors import UserError
from duet_unlearn.models.lora import add_lora, save_gradient_memory
from duet_unlearn.plan import Workload, count, draw, walk_teacher, walk_training
from duet_unlearn.plan.walk import Ledger, TrainingCost
from duet_unlearn.tensors import TopK
from duet_unlearn.training.loop import train
from duet_unlearn.training.optimizers import make_optimizers


def training(family: str, *settings: str, load: Workload = LOAD) -> TrainingCost:
    recipe = recipe_of(*settings)
    return walk_training(draw("model", config_of(family), dtype=recipe.model.dtype), recipe, load)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_walked(family: str) -> None:
    found = training(family, "model.lora.rank=2", "train.precision=bf16")
    parts = found.weights + found.gradients + found.optimizer + found.activations
    assert max(found.weights, found.activations) < found.peak <= parts
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
    asking = walk_teacher(draw("model", config_of("llama"), dtype="float32"), recipe_of(), LOAD)
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
    assert walk_teacher(draw("model", config_of("llama"), dtype="float32"), recipe_of(setting), LOAD).peak > 0


def test_more_positions_take_more() -> None:
    one, eight = (training("llama", "method.k=null", f"method.positions={n}") for n in (1, 8))
    assert eight.activations > one.activations


def test_an_architecture_that_looks_at_its_data_is_refused() -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_key_value_heads": 2}
    config = AutoConfig.for_model("jetmoe", **sizes, intermediate_size=16, kv_channels=8, num_local_experts=2)
    with pytest.raises(UserError, match="jetmoe: what this architecture computes depends on its data"):
        walk_training(draw("model", config, dtype="float32"), recipe_of(), LOAD)
