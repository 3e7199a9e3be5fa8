"""Schedules by hand; Muon against PyTorch's own and against one written down matrix by matrix."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor, nn

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.training.optimizers import (
    ADAMW_RATE_OF_MUON,
    Muon,
    make_optimizers,
    orthogonalise,
    rate_factor,
    set_rate,
)


def factors(num_steps: int, **settings: object) -> list[float]:
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    return [rate_factor(step, num_steps, config) for step in range(num_steps)]


def test_constant_by_hand() -> None:
    assert factors(4) == [1.0] * 4
    assert factors(8, warmup=0.5) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_by_hand() -> None:
    assert factors(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(6, schedule="linear", warmup=1 / 3) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factors(4, schedule="linear", decay=0.5) == [1.0, 1.0, 1.0, 0.5]


def test_cosine_by_hand() -> None:
    half = 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.5 * (1 - math.cos(math.pi / 4))
    assert factors(4, schedule="cosine") == pytest.approx([1.0, *half])
    assert factors(5, schedule="cosine", warmup=0.2) == pytest.approx([1.0, 1.0, *half])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_no_step_is_wasted_and_none_is_over_the_peak(schedule: str, num_steps: int, warmup: float) -> None:
    assert all(0 < factor <= 1 for factor in factors(num_steps, schedule=schedule, warmup=warmup))


def test_adamw_decays_matrices_and_not_vectors() -> None:
    model = tiny.llama()
    (optimizer,) = make_optimizers(model, TrainConfig(rate=0.5, weight_decay=0.1, beta2=0.9))
    decayed, plain = optimizer.param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.9)
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_frozen_weights_are_left_out() -> None:
    model = tiny.llama()
    model.get_input_embeddings().weight.requires_grad_(False)
    (optimizer,) = make_optimizers(model, TrainConfig())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters())) - 1


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = tiny.llama()
    muon, adamw = make_optimizers(model, TrainConfig(optimizer="muon", rate=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    rest = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert hidden == {n for n in names.values() if "proj" in n}
    assert rest == set(names.values()) - hidden
    set_rate([muon, adamw], 0.5)
    assert {g["lr"] for g in muon.param_groups} == {0.05}
    assert {g["lr"] for g in adamw.param_groups} == {0.5 * ADAMW_RATE_OF_MUON * 0.1}


SHAPES = ((6, 6), (8, 3), (3, 8), (6, 6), (8, 3))


def matrices(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> list[Tensor]:
    for step in range(steps):
        for p, gradient in zip(params, matrices(step + 1), strict=True):
            p.grad = gradient
        optimizer.step()
    return [p.detach().clone() for p in params]


def by_hand(steps: int, *, rate: float, decay: float, momentum: float) -> list[Tensor]:
    """Each matrix alone, with the polynomial of Jordan et al. on its singular values."""
    results = []
    for index, weight in enumerate(matrices(0)):
        average = torch.zeros_like(weight)
        for step in range(steps):
            gradient = matrices(step + 1)[index]
            average = momentum * average + gradient
            update = gradient + momentum * average
            u, s, vh = torch.linalg.svd(update.double() / update.double().norm(), full_matrices=False)
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight = (1 - rate * decay) * weight - rate * scale * (u @ torch.diag(s) @ vh).float()
        results.append(weight)
    return results


def test_muon_is_the_published_step_one_matrix_at_a_time() -> None:
    params = [nn.Parameter(m) for m in matrices(0)]
    got = run(Muon(params, rate=0.1, weight_decay=0.2, momentum=0.9), params, 3)
    for mine, theirs in zip(got, by_hand(3, rate=0.1, decay=0.2, momentum=0.9), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_muon_is_pytorchs_but_for_its_bf16() -> None:
    mine, theirs = ([nn.Parameter(m) for m in matrices(0)] for _ in range(2))
    own = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, momentum=0.9)
    moved = run(Muon(mine, rate=0.1, weight_decay=0.2, momentum=0.9), mine, 3)
    for a, b, start in zip(moved, run(own, theirs, 3), matrices(0), strict=True):
        assert (a - b).norm() < 0.03 * (a - start).norm()


def test_muon_leaves_a_matrix_without_a_gradient_alone() -> None:
    params = [nn.Parameter(m) for m in matrices(0)]
    params[0].grad = matrices(1)[0]
    Muon(params, rate=0.1, weight_decay=0.2).step()
    assert not torch.equal(params[0], matrices(0)[0])
    assert torch.equal(params[3], matrices(0)[3])


@pytest.mark.parametrize("shape", [(2, 6, 6), (3, 9, 4), (1, 4, 9)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5
    assert values.max() < 1.3
