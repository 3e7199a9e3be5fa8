"""Adapters on a base of 4 or 8 bits, for real: bitsandbytes computes on a CPU too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, write
from safetensors.torch import load_file
from test_conformance import PREFIX, QUESTIONS, Loaded, asking, fit, moved, naive, targets_of, weights
from transformers import AutoModelForCausalLM
from workplace import Done, Workplace

from duet_unlearn.attacks.weights import Packing
from duet_unlearn.attacks.weights import packed as bitsandbytes_packed
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.prompts import render
from duet_unlearn.errors import UserError
from duet_unlearn.models.load import load_model, merged, save_model
from duet_unlearn.models.lora import add_lora, save_gradient_memory, teacher_mode
from duet_unlearn.models.quantise import is_quantised

PACKED = {"nf4": torch.uint8, "int8": torch.int8}


WHOLE_BLOCKS = {
    "llama-3": {"hidden_size": 64, "intermediate_size": 128},
    "gpt-2": {"n_embd": 64},
    "qwen-3-moe": {"hidden_size": 64, "head_dim": 16, "moe_intermediate_size": 64},
}
"""Sizes that bitsandbytes' blocks of 64 weights divide, so that every layer can be packed on a CPU."""


@pytest.fixture(scope="module", params=WHOLE_BLOCKS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = BY_NAME[request.param]
    family = replace(family, settings=family.settings | WHOLE_BLOCKS[request.param])
    return write(family, tmp_path_factory.mktemp("quantised") / request.param)


@pytest.fixture(params=["nf4", "int8"])
def one(request: pytest.FixtureRequest, folder: Path) -> Loaded:
    pytest.importorskip("bitsandbytes")
    family = BY_NAME[folder.name]
    model, words = load_model(str(folder), chat_template=family.chat_template, quantise=request.param)
    return Loaded(family, folder, model, words)


def packed(one: Loaded) -> str:
    return next(name for name, dtype in PACKED.items() if dtype in {p.dtype for p in one.model.parameters()})


def test_the_blocks_are_packed_and_the_head_is_not(one: Loaded) -> None:
    whole = one.again()
    assert is_quantised(one.model)
    assert not is_quantised(whole)
    small = {name.rsplit(".", 2)[-2] for name, p in one.model.named_parameters() if p.dtype == PACKED[packed(one)]}
    assert small == set(one.family.layers)
    assert one.model.get_output_embeddings().weight.dtype == torch.float32
    ids = render(one.words, asking(QUESTIONS[1]))
    rough, exact = naive(one.model, ids).flatten(), naive(whole, ids).flatten()
    assert not torch.equal(rough, exact)
    assert torch.corrcoef(torch.stack([rough, exact]))[0, 1] > 0.8


def test_an_attacker_who_packs_the_weights_gets_what_from_pretrained_packs(one: Loaded) -> None:
    whole = one.again()
    to: Packing = "bitsandbytes-int8" if packed(one) == "int8" else "bitsandbytes-nf4"
    ids = render(one.words, asking(QUESTIONS[1]))
    before = naive(whole, ids)
    assert torch.equal(naive(bitsandbytes_packed(whole, to), ids), naive(one.model, ids))
    assert torch.equal(naive(whole, ids), before)


def test_defect_13_adapters_on_a_packed_base_are_trained_and_saved_and_merged(one: Loaded, tmp_path: Path) -> None:
    kind: Any = packed(one)
    targets, ids = targets_of(one, tmp_path / "targets"), render(one.words, asking(QUESTIONS[1]))
    teacher = naive(one.model, ids)
    student = add_lora(one.model, LoraConfig(rank=4, alpha=8), seed=0)
    save_gradient_memory(one.model)
    before = weights(student)
    losses = fit(student, targets, num_steps=12, rate=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    assert moved(student, before) == {name for name in before if "lora_" in name}
    said = naive(student, ids)
    with teacher_mode(student):
        assert torch.equal(naive(student, ids), teacher)
    save_model(student, one.words, tmp_path / "adapter")
    again, _ = load_model(str(tmp_path / "adapter"), quantise=kind)
    assert torch.equal(naive(again, ids), said)
    _merged_is_the_whole_base_with_the_adapter(one, student, tmp_path)


def _merged_is_the_whole_base_with_the_adapter(one: Loaded, student: torch.nn.Module, folder: Path) -> None:
    """The unquantised base with the same adapter, computed apart and added, say the same."""
    save_model(merged(student), one.words, folder / "merged")
    assert {w.dtype for w in load_file(folder / "merged" / "model.safetensors").values()} == {torch.float32}
    assert "quantization_config" not in json.loads((folder / "merged" / "config.json").read_text())
    whole = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    apart, _ = load_model(str(folder / "adapter"))
    ids = render(one.words, asking(QUESTIONS[1]))
    torch.testing.assert_close(naive(whole, ids), naive(apart, ids), rtol=1e-3, atol=1e-4)


def test_in_bfloat16_all_but_the_packed_weights_are_bfloat16(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    family = BY_NAME[folder.name]
    model, words = load_model(str(folder), dtype="bfloat16", chat_template=family.chat_template, quantise="nf4")
    assert {p.dtype for p in model.parameters()} == {torch.uint8, torch.bfloat16}
    student = add_lora(model, LoraConfig(rank=2), seed=0)
    assert {p.dtype for p in merged(student).parameters()} == {torch.bfloat16}
    assert torch.isfinite(naive(model, render(words, asking("Who?"), prefix=PREFIX))).all()


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"model\.quantise: nf4 needs the package bitsandbytes") as caught:
        load_model(str(folder), quantise="nf4")
    assert "duet-unlearn[quant]" in caught.value.hint


def test_packed_weights_cannot_be_trained_whole(workplace: Workplace, duet: Callable[..., Done]) -> None:
    done = duet("run", workplace.recipe, "--set", "model.quantise=nf4", "--out", "run")
    assert done.code == 1
    assert "quantised weights cannot be trained, and model.lora is null" in done.err
    assert "model.lora, for example {rank: 16}" in done.err
    assert not Path("run").exists()


@pytest.mark.parametrize("save", ["adapter", "merged"])
def test_a_run_on_a_packed_base(workplace: Workplace, duet: Callable[..., Done], save: str) -> None:
    pytest.importorskip("bitsandbytes")
    lora = f"model.lora={{rank: 2, save: {save}}}"
    settings = [word for text in (lora, "model.quantise=nf4", "train.epochs=1") for word in ("--set", text)]
    done = duet("run", workplace.recipe, *settings, "--out", "run")
    assert done.code == 0, done.err
    names = {path.name for path in Path("run/model").iterdir()}
    assert ("adapter_config.json" in names) == (save == "adapter")
    assert ("model.safetensors" in names) == (save == "merged")
    student, _ = load_model("run/model")
    assert not is_quantised(student)
    assert duet("evaluate", "run").code == 0
