"""NGDiff's step against two losses, each differentiated on its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example
from duet_unlearn.methods.ascent import NgDiff
from duet_unlearn.training.loop import StepLog, train

ROWS = tiny.examples([12, 5, 8, 14, 7], positions=3)
"""Three rows to forget, two to retain."""
CONFIG = TrainConfig(rate=0.01, max_grad_norm=None)


def mean_loss(model: nn.Module, rows: list[Example]) -> Tensor:
    """Cross entropy, a mean over the tokens of rows that are read alone."""
    logits = [model(input_ids=torch.tensor([row.ids])).logits[0][list(row.positions)] for row in rows]
    return F.cross_entropy(torch.cat(logits), torch.tensor([token for row in rows for token in row.labels or ()]))


def plain_gradient(model: nn.Module, rows: list[Example]) -> list[Tensor]:
    """``g_R / |g_R| - g_F / |g_F|``."""
    parts = {}
    for role in ("forget", "retain"):
        loss = mean_loss(model, [row for row in rows if row.role == role])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        parts[role] = [gradient / norm for gradient in gradients]
    return [kept - gone for kept, gone in zip(parts["retain"], parts["forget"], strict=True)]


def fit(model: nn.Module, *, rows: list[Example] = ROWS, **changes: Any) -> list[StepLog]:
    settings: dict[str, Any] = {"config": CONFIG, "num_steps": 1, "source": lambda step: rows} | changes
    method = NgDiff()
    return list(
        train(
            model,
            loss=method.loss,
            targets=None,
            pad_id=tiny.EOS,
            combine=method.combine_gradients if method.splits_gradients else None,
            **settings,
        )
    )


def caught(model: nn.Module, **changes: Any) -> tuple[StepLog, list[Tensor]]:
    """One step, and the gradient that it hands to its optimiser."""
    seen: list[Tensor] = []

    def watch(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        seen.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)

    handle = register_optimizer_step_pre_hook(watch)
    try:
        (log,) = fit(model, **changes)
    finally:
        handle.remove()
    return log, seen


@pytest.mark.parametrize("size", [None, 1, 2])
def test_the_gradient_is_the_difference_of_two_unit_gradients(size: int | None) -> None:
    model, plain = tiny.llama().double(), tiny.llama().double()
    log, got = caught(model, config=replace(CONFIG, micro_batch_size=size))
    expected = plain_gradient(plain, ROWS)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert log.grad_norm == pytest.approx(float(torch.cat([g.flatten() for g in expected]).norm()), rel=1e-6)
    assert 0 < log.grad_norm < 2


def test_the_loss_that_is_told_is_graddiffs() -> None:
    model = tiny.llama().double()
    expected = mean_loss(model, [ROWS[1], ROWS[3]]) - mean_loss(model, [ROWS[0], ROWS[2], ROWS[4]])
    (log,) = fit(model)
    # A difference of two float32 means: each is off by some 2^-24 of itself, more of what is left between them.
    assert log.loss == pytest.approx(expected.item(), rel=1e-5)
    assert log.tokens == sum(len(row.ids) for row in ROWS)


def test_how_many_forget_rows_there_are_does_not_weigh() -> None:
    """A role's gradient is 1 long whether it has one row or many, so rows that stand there twice change nothing."""
    twice = [*ROWS, *(replace(row, key=f"{row.key} again") for row in ROWS if row.role == "forget")]
    (_, once), (_, more) = caught(tiny.llama().double()), caught(tiny.llama().double(), rows=twice)
    for mine, theirs in zip(once, more, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_every_row_goes_through_the_model_once() -> None:
    model, seen = tiny.llama(), []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    fit(model)
    fit(model, config=replace(CONFIG, micro_batch_size=2))
    assert seen == [3, 2, 2, 1, 2]


def test_a_step_with_one_role_has_its_unit_gradient() -> None:
    model, rows = tiny.llama().double(), [row for row in ROWS if row.role == "retain"]
    log, got = caught(model, rows=rows)
    assert log.grad_norm == pytest.approx(1.0, rel=1e-6)
    plain = tiny.llama().double()
    gradients = torch.autograd.grad(mean_loss(plain, rows), list(plain.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for mine, theirs in zip(got, gradients, strict=True):
        torch.testing.assert_close(mine, theirs / norm, rtol=1e-5, atol=1e-7)


def test_units_by_hand() -> None:
    def combined(forget: list[float] | None, retain: list[float] | None) -> list[list[float] | None]:
        """Of two parameters and a frozen one; the second has a gradient of the retain rows alone."""
        own = [None if forget is None else torch.tensor(forget), None, None]
        other = [None if retain is None else torch.tensor(retain), torch.tensor([0.0, 4.0]), None]
        found = NgDiff().combine_gradients({"forget": own, "retain": other})
        return [None if gradient is None else gradient.tolist() for gradient in found]

    first, second, frozen = combined([0.0, 2.0], [3.0, 0.0])
    assert first == pytest.approx([0.6, 1.0])
    assert second == pytest.approx([0.0, 0.8])
    assert frozen is None
    assert combined([0.0, 0.0], None)[0] == [0.0, 0.0]  # no gradient, no direction


WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
from safetensors.torch import save_file
from accelerate import PartialState
import tiny
from test_ngdiff import ROWS, fit
torch.set_num_threads(1)
model = tiny.llama().double()
logs = fit(model, source=lambda step: ROWS[: 5 - step], num_steps=4)
rank = PartialState().process_index
save_file({{name: p.detach().clone() for name, p in model.named_parameters()}}, Path({out!r}) / f"{{rank}}.safetensors")
(Path({out!r}) / f"{{rank}}.json").write_text(json.dumps([[log.loss, log.grad_norm, log.tokens] for log in logs]))
"""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_reach_the_same_weights(tmp_path: Path) -> None:
    """Also where one of them has no row of a role: the second step has two retain rows, the third one, the last none
    for the second process."""
    here = Path(__file__).parent
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=[str(here), str(here.parent)], out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    model = tiny.llama().double()
    logs = fit(model, source=lambda step: ROWS[: 5 - step], num_steps=4)
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told == [pytest.approx([log.loss, log.grad_norm, log.tokens], rel=1e-5) for log in logs]
        weights = load_file(tmp_path / f"{rank}.safetensors")
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-5, atol=1e-7)
