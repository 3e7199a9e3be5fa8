"""Checkpoints: what goes in comes out to the bit, and a torn one is never taken for a whole one."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from duet_unlearn.config.sections import LoraConfig, TrainConfig
from duet_unlearn.errors import UserError
from duet_unlearn.models.lora import add_lora
from duet_unlearn.training import loop
from duet_unlearn.training.loop import Checkpoints, put_weights, trainable
from duet_unlearn.training.optimizers import make_optimizers

Optimizers = list[torch.optim.Optimizer]
MUON = TrainConfig(rate=0.01, optimizer="muon")


def moved(model: nn.Module, config: TrainConfig = MUON, *, seed: int = 0, steps: int = 2) -> Optimizers:
    """A model after random steps, and its optimisers."""
    optimizers, draw = make_optimizers(model, config), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=draw)
        for optimizer in optimizers:
            optimizer.step()
    return optimizers


def flat(optimizers: Optimizers) -> dict[str, Any]:
    return {
        f"{number}.{index}.{key}": value
        for number, optimizer in enumerate(optimizers)
        for index, row in optimizer.state_dict()["state"].items()
        for key, value in row.items()
    }


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one
    )


@pytest.mark.parametrize("config", [TrainConfig(), MUON], ids=["adamw", "muon"])
def test_what_goes_in_comes_out(tmp_path: Path, config: TrainConfig) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path / "new")
    optimizers = moved(model, config)
    state = {"step": 12, "best": float("inf"), "failures": 3}
    checkpoints.save(model, optimizers, state)
    other = tiny.llama(seed=1)
    others = make_optimizers(other, config)
    assert checkpoints.load(other, others) == state
    assert same(trainable(other), trainable(model))
    assert same(flat(others), flat(optimizers))
    assert len(flat(others)) > 10
    assert checkpoints.step() == 12


def test_where_there_is_none(tmp_path: Path) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path / "none")
    before = {name: value.clone() for name, value in trainable(model).items()}
    assert checkpoints.load(model, make_optimizers(model, MUON)) is None
    assert checkpoints.step() == 0
    assert same(trainable(model), before)


def test_no_pickle(tmp_path: Path) -> None:
    model = tiny.llama()
    Checkpoints(tmp_path).save(model, moved(model), {"step": 1})
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == [
        f"step-0000001/{name}"
        for name in ("optimizer-0.safetensors", "optimizer-1.safetensors", "state.json", "weights.safetensors")
    ]
    for path in tmp_path.rglob("*.safetensors"):
        assert load_file(path)
    assert json.loads((tmp_path / "step-0000001" / "state.json").read_text()) == {"step": 1}


def test_only_the_last_is_kept_and_the_order_is_that_of_numbers(tmp_path: Path) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path)
    optimizers = moved(model)
    for step in (9, 10, 100):
        checkpoints.save(model, optimizers, {"step": step})
        assert checkpoints.step() == step
        assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_before_the_old_one_is_gone_leaves_the_new_one_in_charge(tmp_path: Path) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path)
    optimizers = moved(model)
    checkpoints.save(model, optimizers, {"step": 10})
    (tmp_path / "step-0000010").rename(tmp_path / "kept")
    checkpoints.save(model, optimizers, {"step": 9})
    (tmp_path / "kept").rename(tmp_path / "step-0000010")
    assert checkpoints.load(model, optimizers) == {"step": 10}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=["kill", "disk full"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_half_a_checkpoint_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int
) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path)
    first = moved(model)
    checkpoints.save(model, first, {"step": 1})
    before = {name: value.clone() for name, value in trainable(model).items()}
    second, calls = moved(model, seed=5), []

    def torn(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) > at:
            path.write_bytes(b"half")
            raise error
        path.write_bytes(b"whole")

    monkeypatch.setattr(loop, "save_file", torn)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        checkpoints.save(model, second, {"step": 2})
    assert checkpoints.step() == 1
    assert checkpoints.load(model, second) == {"step": 1}
    assert same(trainable(model), before)


def test_what_a_kill_leaves_is_ignored_and_written_over(tmp_path: Path) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path)
    torn = tmp_path / ".step-0000002.tmp"
    torn.mkdir(parents=True)
    (torn / "weights.safetensors").write_bytes(b"half")
    (torn / "old").write_bytes(b"x")
    (tmp_path / "best.safetensors").write_bytes(b"x")
    assert checkpoints.latest() is None
    checkpoints.save(model, moved(model), {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "step-0000002"]
    assert not (tmp_path / "step-0000002" / "old").exists()


def test_an_adapter_is_saved_without_its_base(tmp_path: Path) -> None:
    model = add_lora(tiny.llama(), LoraConfig(rank=2), seed=0)
    Checkpoints(tmp_path).save(model, moved(model), {"step": 1})
    names = load_file(tmp_path / "step-0000001" / "weights.safetensors").keys()
    assert names
    assert all("lora_" in name for name in names)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    def tied(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                tie_word_embeddings=True,
                pad_token_id=0,
            )
        )

    model, other = tied(0), tied(1)
    Checkpoints(tmp_path).save(model, moved(model), {"step": 1})
    Checkpoints(tmp_path).load(other, make_optimizers(other, MUON))
    assert other.get_input_embeddings().weight is other.get_output_embeddings().weight
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(other(input_ids=ids).logits, model(input_ids=ids).logits)


def test_put_weights_copies_into_the_parameters_and_needs_their_names() -> None:
    model = tiny.llama()
    weight = model.get_output_embeddings().weight
    put_weights(model, {"lm_head.weight": torch.zeros_like(weight)})
    assert model.get_output_embeddings().weight is weight
    assert not weight.any()
    with pytest.raises(KeyError):
        put_weights(model, {"no.such.weight": weight})


def test_clear(tmp_path: Path) -> None:
    model, checkpoints = tiny.llama(), Checkpoints(tmp_path / "all")
    checkpoints.save(model, moved(model), {"step": 1})
    checkpoints.clear()
    assert not (tmp_path / "all").exists()
    checkpoints.clear()
