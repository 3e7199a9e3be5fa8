"""Models in and out of folders, adapters, and folders that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.prompts import PLAIN_TEMPLATE, render, render_answer
from duet_unlearn.errors import UserError
from duet_unlearn.lab.references import MODELS as LAB
from duet_unlearn.models.load import default_device, load_model, merged, save_model
from duet_unlearn.models.lora import add_lora, default_targets, teacher_mode

ASKED = [{"role": "user", "content": "Where does Mira Bol live?"}]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.tensor([[0, 5, 9, 7]])).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder; a test may break it."""
    save_model(tiny.llama(), tiny.tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def adapted(folder: Path, dtype: str = "float32") -> nn.Module:
    """The folder's model with an adapter that says something."""
    base, _ = load_model(str(folder), dtype=dtype)  # type: ignore[arg-type]
    model = add_lora(base, LoraConfig(rank=2, alpha=8), seed=0)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=draw)
    return model.eval()


def test_what_is_saved_is_loaded_to_the_bit(folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    assert torch.equal(logits(model), logits(tiny.llama()))
    assert render(tokenizer, ASKED) == render(tiny.tokenizer(), ASKED)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (tiny.EOS, tiny.EOS)
    assert not model.training
    assert model.device.type == default_device().type


def test_a_folder_has_no_pickle_and_nothing_half_done(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_again_replaces_the_whole_folder(folder: Path) -> None:
    (folder / "old.txt").write_text("x")
    (folder.parent / ".model.tmp").mkdir()  # of a kill
    save_model(tiny.llama(seed=1), tiny.tokenizer(), folder)
    assert torch.equal(logits(load_model(str(folder))[0]), logits(tiny.llama(seed=1)))
    assert not (folder / "old.txt").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_is_the_one_that_was_asked_for(folder: Path, dtype: str) -> None:
    model, _ = load_model(str(folder), dtype=dtype)  # type: ignore[arg-type]
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_folder_loads_with_its_base(folder: Path, dtype: str) -> None:
    model = adapted(folder, dtype)
    save_model(model, tiny.tokenizer(), folder.parent / "adapter")
    again, tokenizer = load_model(str(folder.parent / "adapter"), dtype=dtype)  # type: ignore[arg-type]
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(load_model(str(folder), dtype=dtype)[0]))  # type: ignore[arg-type]
    assert render(tokenizer, ASKED) == render(tiny.tokenizer(), ASKED)
    assert not again.training
    assert not (folder.parent / "adapter" / "model.safetensors").exists()


def test_a_merged_adapter_is_a_model_of_its_own(folder: Path) -> None:
    model = adapted(folder)
    expected = logits(model)
    save_model(merged(model), tiny.tokenizer(), folder.parent / "merged")
    shutil.rmtree(folder)
    whole, _ = load_model(str(folder.parent / "merged"))
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-5)
    assert (
        load_file(folder.parent / "merged" / "model.safetensors").keys() == dict(tiny.llama().named_parameters()).keys()
    )


def test_adapters_are_drawn_from_the_seed_and_alone_are_trained() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        model = add_lora(tiny.llama(), LoraConfig(rank=2), seed=seed)
        assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())
        return {name: p for name, p in model.named_parameters() if "lora_A" in name}

    one, two, other = drawn(0), drawn(0), drawn(1)
    assert len(one) == 7
    assert all(torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name]) for name in one)


OLD_DEFAULT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What `targets` was until it became null; results in the repository were trained with it."""
DRAWN = (0.53443187, 0.00707656, -0.41960639, 0.42866617, 0.79891932, 0.02061248, -0.3922545)
"""Sums of the A matrices that seed 0 drew then, layer by layer."""


@pytest.mark.parametrize("make", [tiny.llama, lambda: load_model(str(LAB / "base"))[0]], ids=["tiny", "lab"])
def test_on_a_llama_the_default_adapters_are_the_seven_linears_drawn_to_the_bit(make: Callable[[], Any]) -> None:
    default, named = (add_lora(make(), LoraConfig(rank=4, targets=t), seed=0) for t in (None, OLD_DEFAULT))
    one, two = dict(default.named_parameters()), dict(named.named_parameters())
    assert list(one) == list(two)  # and so the optimiser meets them in the same order
    assert all(torch.equal(one[name], two[name]) and one[name].requires_grad == two[name].requires_grad for name in two)
    assert sum("lora_A" in name for name in one) == 7 * default.config.num_hidden_layers  # type: ignore[union-attr]


def test_the_draw_of_the_adapters_is_as_it_was() -> None:
    model = add_lora(tiny.llama(), LoraConfig(rank=2), seed=0)
    drawn = [p.double().sum().item() for name, p in model.named_parameters() if "lora_A" in name]
    assert drawn == pytest.approx(DRAWN, abs=1e-6)


def test_routers_and_what_is_outside_the_blocks_get_no_adapter() -> None:
    """A mixture with a shared expert, and a text decoder beside a vision tower, as shapes without weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    with torch.device("meta"):
        moe = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2_moe", **sizes, **shared))
        vision = {**sizes, "image_size": 28, "patch_size": 14}
        both = AutoConfig.for_model("gemma3", text_config={**sizes, "head_dim": 8}, vision_config=vision)
        seeing = AutoModelForCausalLM.from_config(both)
    linear = {name for name, module in moe.named_modules() if isinstance(module, nn.Linear)}
    assert {name.rsplit(".", 1)[-1] for name in linear} - set(default_targets(moe)) == {"shared_expert_gate", "lm_head"}
    targets = default_targets(seeing)
    assert len(targets) == 2 * 7
    assert all(".language_model.layers." in target for target in targets)


def test_an_unknown_adapter_target_names_the_layers_that_there_are() -> None:
    with pytest.raises(UserError, match="the model has no layer 'c_attn'") as caught:
        add_lora(tiny.llama(), LoraConfig(targets=("q_proj", "c_attn")), seed=0)
    assert "down_proj, gate_proj, k_proj" in caught.value.hint


def test_teacher_mode_is_left_even_after_an_error(folder: Path) -> None:
    model = adapted(folder).train()

    def stop() -> None:
        with teacher_mode(model):
            assert not model.training
            raise RuntimeError("stop")

    student = logits(model.eval())
    model.train()
    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert model.training
    assert torch.equal(logits(model.eval()), student)


@pytest.mark.parametrize("template", [None, tiny.TEMPLATE])
def test_plain_is_the_plain_template_and_stays_so_on_disk(tmp_path: Path, template: str | None) -> None:
    save_model(tiny.llama(), tiny.tokenizer(template), tmp_path / "base")
    model, tokenizer = load_model(str(tmp_path / "base"), chat_template="plain")
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    save_model(model, tokenizer, tmp_path / "student")
    _, again = load_model(str(tmp_path / "student"))
    assert render_answer(again, ASKED, "Tarn") == render_answer(tokenizer, ASKED, "Tarn")


def test_a_template_file_takes_the_place_of_the_models_own(folder: Path) -> None:
    path = folder.parent / "mine.jinja"
    path.write_text("{{ messages[0]['content'] }}")
    _, tokenizer = load_model(str(folder), chat_template=str(path))
    assert tokenizer.decode(render(tokenizer, ASKED)) == "Where does Mira Bol live?"
    with pytest.raises(UserError, match="no such file"):
        load_model(str(folder), chat_template=str(folder.parent / "none.jinja"))


def test_a_model_without_a_chat_template_says_what_to_pass(tmp_path: Path) -> None:
    save_model(tiny.llama(), tiny.tokenizer(None), tmp_path / "base")
    _, tokenizer = load_model(str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"base: the tokeniser has no chat template") as caught:
        render(tokenizer, ASKED)
    assert "set model.chat_template to a jinja file, or to `plain`" in caught.value.hint


def test_a_tokeniser_without_a_pad_token_gets_its_end(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    save_model(tiny.llama(), tokenizer, tmp_path / "model")
    assert load_model(str(tmp_path / "model"))[1].pad_token_id == tiny.EOS


def failure(path: Path | str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert "\n" not in caught.value.message
    return caught.value


KINDS = {
    "t5": "an encoder-decoder",
    "bart": "an encoder-decoder",
    "bert": "an encoder",
    "roberta": "an encoder",
    "modernbert": "an encoder",
    "vit": "no causal language model",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_write_from_left_to_right_says_what_it_is(tmp_path: Path, kind: str) -> None:
    """Of BERT and BART transformers would load a causal half, with random weights or a mask never trained with."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    error = failure(tmp_path)
    assert error.message == f"{tmp_path}: is {KINDS[kind]} ({kind})"
    assert "Llama" in error.hint


def test_a_decoder_of_an_encoders_kind_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", is_decoder=True, vocab_size=tiny.VOCABULARY, **sizes)
    save_model(AutoModelForCausalLM.from_config(config), tiny.tokenizer(), tmp_path / "model")
    model, _ = load_model(str(tmp_path / "model"))
    alone = model(input_ids=torch.tensor([[0, 5]])).logits
    torch.testing.assert_close(logits(model)[:, :2], alone)  # what comes later changes nothing


def test_what_is_no_model_folder(tmp_path: Path) -> None:
    assert "no such model folder" in failure(tmp_path / "none").message
    assert "no such model folder" in failure("modell").message
    (tmp_path / "file").write_text("x")
    assert "is a file, not a model folder" in failure(tmp_path / "file").message
    error = failure(tmp_path)
    assert "is no model (it has no config.json)" in error.message
    assert "save_pretrained" in error.hint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["gone", "torn"])
def test_a_broken_model_folder_is_two_lines(folder: Path, name: str, how: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if how == "torn":
        (folder / name).write_bytes(content[: len(content) // 2])
    assert str(folder) in failure(folder).message


def test_a_model_of_an_unknown_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nothing", "architectures": ["Nothing"]}))
    assert "cannot be loaded" in failure(folder).message


def test_weights_in_pickle_are_refused(folder: Path) -> None:
    torch.save(tiny.llama().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded" in failure(folder).message


def test_adapter_weights_in_pickle_are_refused(folder: Path) -> None:
    adapter = folder.parent / "adapter"
    save_model(adapted(folder), tiny.tokenizer(), adapter)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in failure(adapter).message


def test_an_adapter_whose_base_is_gone(folder: Path) -> None:
    save_model(adapted(folder), tiny.tokenizer(), folder.parent / "adapter")
    shutil.rmtree(folder)
    assert "cannot be loaded" in failure(folder.parent / "adapter").message


def test_an_adapter_whose_base_is_in_pickle_is_refused(folder: Path) -> None:
    save_model(adapted(folder), tiny.tokenizer(), folder.parent / "adapter")
    torch.save(tiny.llama().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded" in failure(folder.parent / "adapter").message
