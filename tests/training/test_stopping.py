"""Runs that stop: killed and resumed, on what is not finite, early; and what two runs of one seed share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fitting import MAKERS, UNEVEN, fit, noisy, numbers, same_to_the_bit, steps, weights
from torch import nn

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, collate
from duet_unlearn.errors import UserError
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.training.loop import Checkpoints
from duet_unlearn.training.step import LossOut, Step, fine_tuning_loss

OPTIMIZERS = {"adamw": {}, "muon": {"optimizer": "muon", "schedule": "linear", "warmup": 0.3}}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_two_runs_are_equal_to_the_bit(make: Callable[[], nn.Module]) -> None:
    one, two = make(), make()
    first = numbers(fit(one, seed=3))
    torch.rand(7)
    assert numbers(fit(two, seed=3)) == first
    assert same_to_the_bit(weights(one), weights(two))


def test_dropout_is_drawn_from_the_seed_and_anew_at_every_step() -> None:
    losses = [[log.loss for log in fit(noisy(), TrainConfig(rate=1e-9), seed=seed)] for seed in (0, 1)]
    assert len({*losses[0], *losses[1]}) == 6


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, make: Callable[[], nn.Module], settings: dict[str, Any]
) -> None:
    config = TrainConfig(rate=0.01, checkpoint_every=2, micro_batch_size=3, **settings)

    def source(step: int) -> list[Example]:
        return UNEVEN[step % 2 :]

    whole, killed, resumed = make(), make(), make()
    expected = fit(whole, config, num_steps=7, source=source, checkpoints=Checkpoints(tmp_path / "whole"))
    halfway = steps(killed, config, num_steps=7, source=source, checkpoints=Checkpoints(tmp_path / "killed"))
    early = [next(halfway) for _ in range(5)]
    halfway.close()
    late = fit(resumed, config, num_steps=7, source=source, checkpoints=Checkpoints(tmp_path / "killed"))
    assert [log.step for log in late] == [5, 6, 7]
    assert numbers(early[:4] + late) == numbers(expected)
    assert same_to_the_bit(weights(resumed), weights(whole))
    assert not same_to_the_bit(weights(resumed), weights(make()))


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = TrainConfig(rate=0.01, checkpoint_every=1)
    first, second = tiny.llama(), tiny.llama()
    fit(first, config, checkpoints=Checkpoints(tmp_path))
    assert fit(second, config, checkpoints=Checkpoints(tmp_path)) == []
    assert same_to_the_bit(weights(first), weights(second))


def poisoned(kind: str, at: str) -> Callable[[Step], LossOut]:
    """A loss that is not finite, or whose gradient is not, at one query of the second step."""
    calls: list[int] = []

    def loss(step: Step) -> LossOut:
        calls.append(1)
        out = fine_tuning_loss(step)
        if len(calls) < 2 or at not in {e.key for e in step.batch.examples}:
            return out
        zero = 0.0 * step.logits_NV.float().sum()
        return out._replace(sum=out.sum + (zero.sqrt() if kind == "gradient" else out.sum * float(kind)))

    return loss


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_what_is_not_finite_stops_before_the_step_and_names_the_queries(tmp_path: Path, kind: str) -> None:
    model = tiny.llama()
    running = steps(
        model, TrainConfig(checkpoint_every=1), loss=poisoned(kind, "q2"), checkpoints=Checkpoints(tmp_path)
    )
    next(running)
    before = weights(model)
    with pytest.raises(UserError) as caught:
        next(running)
    assert caught.value.message.startswith(
        "step 2: the loss or its gradient is not a finite number (queries q0, q1, q2"
    )
    assert "train.rate" in caught.value.hint
    assert same_to_the_bit(weights(model), before)
    assert Checkpoints(tmp_path).step() == 1


def test_many_queries_are_not_all_named() -> None:
    rows = tiny.examples([6] * 9)
    with pytest.raises(UserError, match=r"\(queries q0, q1, q2, q3, q4, \.\.\)"):
        fit(
            tiny.llama(),
            source=lambda step: rows,
            loss=lambda step: LossOut(step.logits_NV.sum() * float("nan"), 1, "tokens"),
        )


def scripted(values: list[float]) -> Callable[[Step], LossOut]:
    """The training loss is the real one; each validation gets the next value."""
    left = iter(values)

    def loss(step: Step) -> LossOut:
        if torch.is_grad_enabled():
            return fine_tuning_loss(step)
        return LossOut(torch.tensor(next(left)), 1, "tokens")

    return loss


EARLY = TrainConfig(rate=0.01, validate_every=1, early_stop=2, checkpoint_every=2)


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    model, after = tiny.llama(), []
    loss = scripted([5.0, 3.0, 3.0, 4.0, 1.0])
    logs = []
    for log in steps(model, EARLY, num_steps=9, loss=loss, validation=UNEVEN[:1], checkpoints=Checkpoints(tmp_path)):
        logs.append(log)
        after.append(weights(model))
    assert [log.validation for log in logs] == [5.0, 3.0, 3.0, 4.0]
    assert same_to_the_bit(weights(model), after[1])
    assert not same_to_the_bit(after[1], after[3])
    assert not model.training


def test_early_stop_survives_a_kill(tmp_path: Path) -> None:
    """Stopped after step 3, resumed from step 2: the best value and the failures so far are remembered."""
    killed, resumed = tiny.llama(), tiny.llama()
    settings: dict[str, Any] = {"validation": UNEVEN[:1], "checkpoints": Checkpoints(tmp_path), "num_steps": 9}
    running = steps(killed, EARLY, loss=scripted([3.0, 4.0, 5.0]), **settings)
    next(running)
    best = weights(killed)
    next(running), next(running)
    running.close()
    logs = fit(resumed, EARLY, loss=scripted([5.0, 1.0]), **settings)
    assert [(log.step, log.validation) for log in logs] == [(3, 5.0)]
    assert same_to_the_bit(weights(resumed), best)


def test_without_early_stop_the_last_weights_stay(tmp_path: Path) -> None:
    model, after = tiny.llama(), []
    config = TrainConfig(rate=0.01, validate_every=2)
    values = scripted([1.0, 2.0])
    for log in steps(model, config, num_steps=5, loss=values, validation=UNEVEN[:1], checkpoints=Checkpoints(tmp_path)):
        after.append((log.validation, weights(model)))
    assert [value for value, _ in after] == [None, 1.0, None, 2.0, None]
    assert same_to_the_bit(weights(model), after[-1][1])


def test_validation_is_the_mean_loss_without_dropout_or_gradients() -> None:
    model, values = noisy(), []
    config = TrainConfig(rate=1e-9, validate_every=1, batch_size=3)
    for log in steps(model, config, validation=UNEVEN):
        values.append(log.validation)
        assert model.training
    batch = collate(UNEVEN, tiny.EOS)
    model.eval()
    with torch.no_grad():
        logits_NV = logits_at(model, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    out = fine_tuning_loss(Step(logits_NV, batch))
    assert values == pytest.approx([out.sum.item() / 10] * 3, rel=1e-4)
