"""Attacks on weights leave a model as it was, take adapters as part of it, and say where they do not apply."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from whitebox import GOAL, state, tiny_subject, with_adapter
from workplace import write_model

from duet_unlearn.attacks import attack
from duet_unlearn.attacks.copies import bare, copied
from duet_unlearn.attacks.directions import RefusalDirection
from duet_unlearn.attacks.hidden import LogitLens, Probe
from duet_unlearn.attacks.privacy import Exposure, Membership
from duet_unlearn.attacks.relearning import Relearn
from duet_unlearn.attacks.run import Attack
from duet_unlearn.attacks.weights import Noise, Pruning, Quantisation
from duet_unlearn.data.prompts import Prefix
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.models.load import load_model

ON_WEIGHTS: tuple[Attack, ...] = (
    Relearn(rates=(1e-3,), steps=(1,), sources=("known",)),
    Relearn("relearn-lora", rates=(1e-3,), steps=(1,), sources=("known",), rank=8),
    Quantisation(formats=("int4", "nf4")),
    Pruning(sparsities=(0.5,)),
    Noise(sigmas=(0.5,), draws=1),
    RefusalDirection(),
    LogitLens(),
    Probe(),
)
ON_LOGITS: tuple[Attack, ...] = (Membership(), Exposure())
EVERY = pytest.mark.parametrize("config", [*ON_WEIGHTS, *ON_LOGITS], ids=lambda one: one.name)
WEIGHTS = pytest.mark.parametrize("config", ON_WEIGHTS, ids=lambda one: one.name)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@EVERY
@pytest.mark.parametrize("make", [tiny_subject, with_adapter], ids=["whole", "adapter"])
def test_the_subjects_own_weights_are_bitwise_what_they_were(config: Attack, make: type) -> None:
    subject: ModelSubject = make()
    before, hooked, names = state(subject.model), hooks(subject.model), [n for n, _ in subject.model.named_modules()]
    trained = {name for name, p in subject.model.named_parameters() if p.requires_grad}
    result = attack(subject, config, GOAL)
    assert result.status == "done", result.reason
    assert result.cost.tokens > 0
    after = state(subject.model)
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert {name for name, p in subject.model.named_parameters() if p.requires_grad} == trained
    assert not any(p.grad is not None for p in subject.model.parameters())
    assert hooks(subject.model) == hooked
    assert [name for name, _ in subject.model.named_modules()] == names
    assert not subject.model.training


@WEIGHTS
def test_what_stands_beside_the_weights_is_not_attacked_in_them(config: Attack) -> None:
    prefixed = replace(tiny_subject(), prefix=Prefix("Forget {concept}.", concept="Mira"))
    for subject in (prefixed, Deployed(tiny_subject())):
        result = attack(subject, config, GOAL)
        assert result.status == "not applicable"
        assert "the weights are the base's" in result.reason


def test_packed_weights_are_no_matter_for_these_attacks(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, words = load_model(str(write_model(tmp_path / "model")), quantise="nf4")
    for config in ON_WEIGHTS:
        result = attack(ModelSubject("student", model, words), config, GOAL)
        assert (result.status, result.reason[:22]) == ("not applicable", "the weights are packed")


def test_an_adapter_is_merged_into_a_copy() -> None:
    subject, ids = with_adapter(), torch.tensor([[5, 6, 7, 8]])
    held = bare(subject)
    assert type(held.model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        merged, adapted = (one.model(input_ids=ids).logits for one in (held, subject))
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    whole = tiny_subject()
    assert bare(whole) is whole
    assert copied(whole).model is not whole.model
    assert copied(whole).model.device == whole.model.device
