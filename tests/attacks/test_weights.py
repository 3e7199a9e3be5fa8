"""Rounding, pruning and noise, by hand and against other implementations; and that no attack on weights changes the
model that it attacks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from whitebox import GOAL, Lab, gpt2, state, tiny_subject, with_adapter
from workplace import write_model

from duet_unlearn.attacks import NotApplicable, run_attack
from duet_unlearn.attacks.attack_base import Attack, AttackGoal, Plain
from duet_unlearn.attacks.fine_tuning import Relearn
from duet_unlearn.attacks.hidden_states import LogitLens, Probe, RefusalDirection
from duet_unlearn.attacks.result import no_progress
from duet_unlearn.attacks.token_access import Exposure, Membership
from duet_unlearn.attacks.weights import (
    GROUPED,
    NF4,
    PACKINGS,
    ROUNDINGS,
    Noise,
    Pruning,
    Quantisation,
    WeightChange,
    ask_changed,
    input_norms,
    linear_layers,
    matrices,
    merged_subject,
    nearest_step,
    nf4,
    smallest_out,
    wanda,
)
from duet_unlearn.data.prompts import Prefix, render_answer
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.models.load import load_model


def matrix(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


# Rounding ------------------------------------------------------------------------------------------------------------


def test_int4_by_hand() -> None:
    """Steps of 1/4 and of 2: -7/8 is 3.5 steps, which go to the even 4; a row of zeros stays."""
    weight = torch.tensor([[1.75, -0.875, 0.4, 0.0], [-14.0, 2.9, 3.1, 0.9], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.75, -1.0, 0.5, 0.0], [-14.0, 2.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(nearest_step(weight, bits=4, group=None), expected)


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (4, 7)])
def test_it_is_torchs_fake_quantisation(bits: int, largest: int) -> None:
    weight = matrix(6, 40)
    zero = torch.zeros(6, dtype=torch.int32)
    scale = weight.abs().amax(1) / largest
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest, largest)
    torch.testing.assert_close(nearest_step(weight, bits=bits, group=None), expected)


def test_a_group_has_its_own_step_and_the_last_may_be_smaller() -> None:
    weight = matrix(3, 70)
    parts = [nearest_step(part, bits=4, group=None) for part in weight.split(32, dim=1)]
    torch.testing.assert_close(nearest_step(weight, bits=4, group=32), torch.cat(parts, dim=1))


def test_smaller_groups_and_more_bits_lose_less() -> None:
    weight = matrix(8, 256)

    def lost(bits: int, group: int | None) -> float:
        return (nearest_step(weight, bits=bits, group=group) - weight).square().mean().item()

    errors = [lost(*GROUPED[name]) for name in ("int4", "int4-64", "int4-32", "int8")]
    assert errors == sorted(errors, reverse=True)
    # uniform over a step of about 2.7 / 7 = 0.39: its square over 12
    assert lost(4, None) == pytest.approx((weight.abs().amax(1) / 7).square().mean().item() / 12, rel=0.05)


def test_nf4_levels_are_quantiles_of_the_normal_distribution() -> None:
    """QLoRA: 8 quantiles above 0, 7 below and 0 itself; the tail beyond them is the mean of 1/30 and 1/32. Scaled to
    1."""
    offset = 1 - (1 / 32 + 1 / 30) / 2
    assert offset == pytest.approx(0.9677083)

    def quantiles(count: int) -> list[float]:
        return [NormalDist().inv_cdf(offset + (0.5 - offset) * number / count) for number in range(count)]

    levels = sorted([*quantiles(8), 0.0, *(-value for value in quantiles(7))])
    torch.testing.assert_close(torch.tensor(NF4), torch.tensor(levels) / max(levels), atol=1e-6, rtol=0)


def test_nf4_takes_the_nearest_level_of_the_groups_largest_weight() -> None:
    weight = matrix(5, 64)
    parts = []
    for part in weight.split(16, dim=1):
        scale = part.abs().amax(1, keepdim=True)
        distance = (part / scale)[..., None] - torch.tensor(NF4)
        parts.append(torch.tensor(NF4)[distance.abs().argmin(-1)] * scale)
    torch.testing.assert_close(nf4(weight, group=16), torch.cat(parts, dim=1))
    assert nf4(torch.zeros(2, 8), group=4).equal(torch.zeros(2, 8))


def test_nf4_is_what_bitsandbytes_computes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = matrix(32, 128)
    packed, how = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(nf4(weight, group=64), functional.dequantize_4bit(packed, how))


def test_without_bitsandbytes_its_packings_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duet_unlearn.attacks.weights.can_pack", lambda: False)
    assert [one.name for one in Quantisation().run(tiny_subject(), GOAL)] == [*ROUNDINGS]
    result = run_attack(tiny_subject(), Quantisation(formats=("bitsandbytes-nf4",)), GOAL)
    assert (result.status, result.reason[:29]) == ("not applicable", "bitsandbytes is not installed")


def test_quantisation_says_how_robust_the_model_is() -> None:
    """With nothing right before it is the share that is still not right."""
    found = Quantisation().run(tiny_subject(), GOAL)
    assert [one.name for one in found] == [*ROUNDINGS, *PACKINGS]
    assert all(one.numbers == {"before": 0.0, "robustness": 1 - one.score.value} for one in found)
    assert {one.score.value for one in found} == {0.0, 0.25}  # by chance: a random model rounded to 4 bits says "Tarn"
    taught = AttackGoal("c", Lab.goal().target_facts)  # known all: nothing that could come back, and no number
    assert Quantisation(formats=("int8",)).run(Lab.subject("base"), taught)[0].numbers == {"before": 1.0}


# Pruning and noise ---------------------------------------------------------------------------------------------------


def test_pruning_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [-0.1, 0.2, 0.3, -0.4]])
    assert smallest_out(weight, 0.5).equal(torch.tensor([[1.0, -2.0, 3.0, 4.0], [0.0] * 4]))
    norms = torch.tensor([10.0, 1.0, 1.0, 1.0])
    kept = torch.tensor([[1.0, 0.0, 0.0, 4.0], [-0.1, 0.0, 0.0, -0.4]])
    assert wanda(weight, norms, 0.5).equal(kept)
    assert wanda(weight, torch.ones(4), 0.0).equal(weight)


def test_norms_are_those_of_the_inputs() -> None:
    """Of the first block's attention: what the norm in front of it puts out; of two questions."""
    subject = tiny_subject()
    goal = AttackGoal("c", GOAL.target_facts, others=GOAL.others[:2])
    inputs = []
    for query in goal.others:
        ids, _ = render_answer(subject.tokenizer, query.messages, query.answer or "")
        block = subject.model.model.layers[0]
        inputs.append(block.input_layernorm(subject.model.model.embed_tokens(torch.tensor(ids))))
    expected = torch.cat(inputs).norm(dim=0).detach()
    norms = input_norms(subject, goal)
    assert len(norms) == len(linear_layers(subject.model))
    torch.testing.assert_close(norms[0], expected)
    assert norms[-1].shape == (64,)  # down_proj reads the MLP's inside


def test_without_other_questions_there_is_magnitude_alone() -> None:
    goal = AttackGoal("c", GOAL.target_facts, max_new_tokens=3)
    with pytest.raises(NotApplicable, match="wanda has nothing"):
        Pruning().run(tiny_subject(), goal)
    found = Pruning(criteria=("magnitude",), sparsities=(0.5,)).run(tiny_subject(), goal)
    assert [one.name for one in found] == ["magnitude, 50% zero"]


def test_noise_is_relative_and_drawn_anew_for_every_matrix_and_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[WeightChange] = []
    monkeypatch.setattr("duet_unlearn.attacks.weights.ask_changed", lambda _s, _g, _w, given: ways.extend(given) or [])
    Noise(sigmas=(0.1,), draws=2).run(tiny_subject(), GOAL)
    weight = 5 * matrix(200, 200)
    first, second = (way.change(0, weight) - weight for way in ways)
    assert first.std().item() == pytest.approx(0.1 * weight.std().item(), rel=0.02)
    assert first.equal(ways[0].change(0, weight) - weight)
    for other in (second, ways[0].change(1, weight) - weight):
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 0.02


# The copy ------------------------------------------------------------------------------------------------------------


def test_matrices_are_outputs_by_inputs_for_gpt_2_too() -> None:
    model = gpt2()
    found = matrices(model)
    layers = linear_layers(model)
    assert [tuple(one.shape) for one in found] == [(48, 16), (16, 16), (64, 16), (16, 64)] * 2
    for one in found:
        one.zero_()
    assert all(not layer.weight.any() for layer in layers)
    assert model.lm_head.weight.any()


def test_every_way_begins_with_the_models_own_weights() -> None:
    """Twice doubled would be four times."""
    seen: list[Tensor] = []

    def doubled(place: int, weight: Tensor) -> Tensor:
        if place == 0:
            seen.append(weight.clone())
        return 2 * weight

    subject = tiny_subject()
    ask_changed(subject, GOAL, no_progress, [WeightChange("a", doubled), WeightChange("b", doubled)])
    assert seen[0].equal(seen[1])
    assert seen[0].equal(matrices(subject.model)[0])


# What is found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [Quantisation(formats=("int4",)), Pruning(sparsities=(0.5,)), Noise(sigmas=(0.1,), draws=1)],
    ids=lambda one: one.name,
)
def test_who_knows_keeps_knowing_and_the_oracle_learns_nothing(config: Quantisation | Pruning | Noise) -> None:
    base, oracle = (run_attack(Lab.subject(one), config, Lab.goal()) for one in ("base", "oracle"))
    assert base.best_of_all.value > 0.9
    assert oracle.best_of_all.low < 0.06
    assert run_attack(Lab.subject("base"), Plain(), Lab.goal()).best_of_all.value == 1.0


def test_noise_that_is_large_breaks_the_model() -> None:
    (one,) = Noise(sigmas=(2.0,), draws=1).run(Lab.subject("base"), Lab.goal())
    assert one.score.value < 0.1
    assert not math.isnan(one.score.value)


def test_linear_layers_are_those_of_the_blocks() -> None:
    model = tiny_subject().model
    names = {id(layer): name for name, layer in model.named_modules()}
    found = [names[id(layer)] for layer in linear_layers(model)]
    assert found[:2] == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert len(found) == 14
    assert isinstance(model.lm_head, nn.Linear)
    assert not any("lm_head" in name for name in found)


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
    result = run_attack(subject, config, GOAL)
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
        result = run_attack(subject, config, GOAL)
        assert result.status == "not applicable"
        assert "the weights are the base's" in result.reason


def test_packed_weights_are_no_matter_for_these_attacks(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, words = load_model(str(write_model(tmp_path / "model")), quantise="nf4")
    for config in ON_WEIGHTS:
        result = run_attack(ModelSubject("student", model, words), config, GOAL)
        assert (result.status, result.reason[:22]) == ("not applicable", "the weights are packed")


def test_an_adapter_is_merged_into_a_copy() -> None:
    subject, ids = with_adapter(), torch.tensor([[5, 6, 7, 8]])
    held = merged_subject(subject)
    assert type(held.model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        merged, adapted = (one.model(input_ids=ids).logits for one in (held, subject))
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    whole = tiny_subject()
    assert merged_subject(whole) is whole
