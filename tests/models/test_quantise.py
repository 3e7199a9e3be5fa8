"""Training adapters on 4-bit weights is training them on the dequantised weights, on every processor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, llama, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from workplace import Workplace

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.errors import UserError
from duet_unlearn.models.load import load_model, save_model
from duet_unlearn.models.lora import add_lora, save_gradient_memory, teacher_mode
from duet_unlearn.models.quantise import say_once

pytest.importorskip("bitsandbytes")
LENGTH, LAYERS = 12, 2
PROCESSOR = Path(__file__).parents[1] / "processor"
OURS = re.compile(r"(warning|hint|probe|ask \w+|targets|train|report): ")
"""How every line begins that `duet` writes to stderr here: progress, and a warning with its hint."""


@pytest.fixture(params=["this processor", "a processor with AVX512-BF16"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer of bitsandbytes believes when it is made."""
    if request.param != "this processor":
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


@pytest.fixture(scope="module", params=[32, 128], ids="{} inputs".format)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 inputs are fewer than a block of bitsandbytes, 64: most of its layers stay whole."""
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(llama(hidden=request.param, layers=LAYERS), tokenizer(), path)
    return path


def dequantised(packed: nn.Module, folder: Path) -> nn.Module:
    """The same model with ordinary layers that hold what the packed ones stand for."""
    from bitsandbytes.functional import dequantize_4bit

    whole, _ = load_model(str(folder))
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for name, p in packed.named_parameters():
            state = getattr(p, "quant_state", None)
            weights[name].copy_(p if state is None else dequantize_4bit(p.data, state))
    return whole


def adapted(model: nn.Module) -> nn.Module:
    """With adapters that already say something, so that both of their matrices get a gradient."""
    student, draw = add_lora(model, LoraConfig(rank=4, alpha=8), seed=0), torch.Generator().manual_seed(1)
    for name, p in student.named_parameters():
        if "lora_B" in name:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=draw))
    return student


def gradients(student: nn.Module, ids_BT: Tensor) -> dict[str, Tensor]:
    student.train()
    logits_BTV = student(input_ids=ids_BT, use_cache=False).logits
    nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("taught", [False, True], ids=["fresh", "after a teacher's pass"])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_gradients_of_a_qlora_step_are_those_on_the_dequantised_weights(
    processor: None, folder: Path, batch: int, taught: bool
) -> None:
    """Tolerance: a float32 sum over n terms is off by at most n 2^-24 of the sum of their sizes, and a gradient has
    passed through all products forward and back, 2 x 7 in each block and 2 at the head, each with at most as many terms
    as the largest of vocabulary, tokens and hidden units. A product in bfloat16 is off by 2^-9 at once."""
    packed, _ = load_model(str(folder), quantise="nf4")
    whole = adapted(dequantised(packed, folder))
    student = adapted(packed)
    save_gradient_memory(packed)
    ids_BT = torch.randint(5, VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(2))
    if taught:
        with torch.no_grad(), teacher_mode(student):
            student(input_ids=ids_BT, use_cache=False)
    found, expected = gradients(student, ids_BT), gradients(whole, ids_BT)
    assert found.keys() == expected.keys() == {name for name, p in student.named_parameters() if "lora_" in name}
    tolerance = (2 * 7 * LAYERS + 2) * max(VOCABULARY, batch * LENGTH) * 2**-24
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_a_teachers_pass_does_not_change_what_is_computed(processor: None, folder: Path) -> None:
    packed, _ = load_model(str(folder), quantise="nf4")
    ids_BT = torch.arange(5, 5 + LENGTH)[None]
    with torch.no_grad():
        first, again = (packed(input_ids=ids_BT, use_cache=False).logits for _ in range(2))
        plain = dequantised(packed, folder)(input_ids=ids_BT, use_cache=False).logits
    assert torch.equal(first, again)
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-4)


def test_the_library_believes_what_this_run_tells_it_of_the_processor() -> None:
    """Or `make test-processors` would prove nothing."""
    from bitsandbytes.functional import has_avx512bf16

    told = os.environ.get("BNB_AVX512BF16")
    assert told is None or has_avx512bf16() == (told == "1")


def test_dequantised_weights_are_near_the_weights(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nearest of 16 levels: off by about 9 % of the norm. Layers that the library would get wrong stay as they are."""
    say_once.cache_clear()
    packed, _ = load_model(str(folder), quantise="nf4")
    exact = load_model(str(folder))[0].state_dict()
    off = {
        name: float((p.detach() - exact[name]).norm() / exact[name].norm())
        for name, p in dequantised(packed, folder).named_parameters()
        if "_proj" in name
    }
    small = exact["model.layers.0.self_attn.q_proj.weight"].shape[1] < 64
    packs = ("down_proj",) if small else ("_proj",)
    assert all(
        (0.07 < share < 0.12) if any(word in name for word in packs) else share == 0 for name, share in off.items()
    )
    assert ("12 layers stay unquantised (gate_proj, k_proj" in caplog.text) == small
    load_model(str(folder), quantise="nf4")
    assert len(caplog.records) == small


def test_a_model_saved_in_4_bits_that_would_be_computed_wrongly_is_refused(tmp_path: Path) -> None:
    save_model(llama(hidden=96), tokenizer(), tmp_path / "whole")
    config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=BitsAndBytesConfig(**config), dtype=torch.float32
    )
    save_model(packed, tokenizer(), tmp_path / "packed")
    with pytest.raises(UserError, match=r"q_proj has 96 inputs, which 64 does not divide") as caught:
        load_model(str(tmp_path / "packed"))
    assert "load it on a GPU" in caught.value.hint


@pytest.mark.parametrize("command", [pytest.param("plan", marks=pytest.mark.slow), "run"])
def test_nothing_is_printed_that_is_not_ours(command: str, workplace: Workplace) -> None:
    """On a processor with AVX512-BF16, in a process of its own: bitsandbytes speaks when it is imported, torch once."""
    settings = [word for one in ("lora={rank: 2}", "quantise=nf4") for word in ("--set", f"model.{one}")]
    model = load_recipe(workplace.recipe).model.path
    words = ["plan", model, "--recipe"] if command == "plan" else ["run", "--out", "run", "--set", "train.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-m", "duet_unlearn", *words, str(workplace.recipe), *settings],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROCESSOR), *sys.path]), "BNB_AVX512BF16": "1"},
    )
    assert done.returncode == 0, done.stderr
    foreign = [line for line in done.stderr.splitlines() if not OURS.match(line)]
    assert foreign == []
