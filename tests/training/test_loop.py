"""The loop against a plain training loop written here, and against itself in pieces and in two processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fitting import PLAIN, UNEVEN, assert_close, fit, lora, numbers, same_to_the_bit, weights
from safetensors.torch import load_file
from torch import Tensor, nn

from duet_unlearn.config.sections import LoraConfig, TrainConfig
from duet_unlearn.data.examples import Batch, collate
from duet_unlearn.methods.duet import Duet
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.lora import add_lora, save_gradient_memory, teacher_mode
from duet_unlearn.tensors import topk
from duet_unlearn.training.step import LossOut, Step, fine_tuning_loss


def test_the_loop_is_a_plain_loop_over_one_mean() -> None:
    """Written out with transformers' own loss: a mean over all labelled tokens, clipped, AdamW."""
    mine, plain = tiny.llama().double(), tiny.llama().double().train()
    logs = fit(mine, PLAIN)
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    batch = collate(UNEVEN, tiny.EOS)
    assert batch.labels_N is not None
    for log in logs:
        logits = plain(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits[batch.rows_N, batch.cols_N]
        loss = torch.nn.functional.cross_entropy(logits, batch.labels_N)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert (log.loss, log.grad_norm) == pytest.approx((loss.item(), norm.item()), rel=1e-5)
        assert norm > 0.5  # the clipping is at work
        optimizer.step()
        optimizer.zero_grad()
    assert_close(mine, plain, rtol=1e-4, atol=1e-6)
    assert [log.step for log in logs] == [1, 2, 3]
    assert {(log.num_steps, log.tokens, log.rate) for log in logs} == {(3, 35, 0.01)}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_defect_12_micro_batches_change_nothing(size: int) -> None:
    whole, pieces = tiny.llama().double(), tiny.llama().double()
    expected = numbers(fit(whole))
    got = numbers(fit(pieces, TrainConfig(**{**vars(PLAIN), "micro_batch_size": size})))
    assert got == [pytest.approx(row, rel=1e-5) for row in expected]
    assert_close(pieces, whole)


def test_defect_12_a_launchers_own_accumulation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = numbers(fit(tiny.llama()))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert numbers(fit(tiny.llama())) == expected


def test_defect_4_the_pad_id_does_not_matter() -> None:
    one, two = tiny.llama(), tiny.llama()
    assert numbers(fit(one, pad_id=tiny.EOS)) == numbers(fit(two, pad_id=17))
    assert same_to_the_bit(weights(one), weights(two))


def test_duet_with_its_targets() -> None:
    """The student meets what the teacher said: the loss falls, and the logits come near."""
    model, batch = tiny.llama(), collate(UNEVEN, tiny.EOS)
    with torch.no_grad():
        other = tiny.llama(seed=1)
        said_NV = logits_at(other, batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    place = {e.key: [n for n, row in enumerate(batch.rows_N.tolist()) if row == i] for i, e in enumerate(UNEVEN)}

    def signals(what: Batch) -> Any:
        roles = {e.role for e in what.examples}
        return {r: topk(said_NV[[n for e in what.examples if e.role == r for n in place[e.key]]], 20) for r in roles}

    config = TrainConfig(rate=0.02, micro_batch_size=3)
    logs = fit(model, config, num_steps=60, loss=Duet(k=20).loss, targets=signals)
    assert logs[-1].loss < 0.1 * logs[0].loss


@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(wrap: Callable[[nn.Module], nn.Module]) -> None:
    base, saving = tiny.llama(layers=2), tiny.llama(layers=2)
    plain, thrifty = wrap(base), wrap(saving)
    save_gradient_memory(saving)
    assert saving.is_gradient_checkpointing
    expected = numbers(fit(plain))
    assert numbers(fit(thrifty)) == [pytest.approx(row, rel=1e-6) for row in expected]
    assert_close(thrifty, plain)


def test_defect_13_every_adapter_is_trained_under_gradient_checkpointing() -> None:
    base = tiny.llama(layers=2)
    model = lora(base)
    save_gradient_memory(base)
    before = weights(model)
    fit(model, num_steps=1)
    moved = {name for name, p in weights(model).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert len(moved) == 2 * 2 * 7  # A and B, two layers, seven matrices a layer


def test_the_adapter_switched_off_is_the_teacher_to_the_bit() -> None:
    base, batch = tiny.llama(), collate(UNEVEN, tiny.EOS)

    @torch.no_grad()
    def said(model: nn.Module) -> Tensor:
        return model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits

    before = said(base)
    model = add_lora(base, LoraConfig(rank=2, alpha=4), seed=0)
    fit(model)
    student = said(model)
    model.train()
    with teacher_mode(model):
        assert torch.equal(said(model), before)
    assert model.training
    assert torch.equal(said(model.eval()), student)
    assert (student - before).abs().max() > 0.1


def test_the_head_is_computed_at_the_losss_positions_only() -> None:
    model, seen = tiny.llama(), []
    model.get_output_embeddings().register_forward_hook(lambda m, inputs, output: seen.append(tuple(output.shape)))
    fit(model, num_steps=1)
    fit(model, TrainConfig(micro_batch_size=2), num_steps=1)
    assert seen == [(1, 10, tiny.VOCABULARY), (1, 4, tiny.VOCABULARY), (1, 6, tiny.VOCABULARY)]


def test_bf16_is_autocast_and_a_process_may_do_both() -> None:
    exact, rough = tiny.llama(), tiny.llama()
    dtypes: list[torch.dtype] = []

    def loss(step: Step) -> LossOut:
        dtypes.append(step.logits_NV.dtype)
        return fine_tuning_loss(step)

    expected = fit(exact, loss=loss)
    got = fit(rough, TrainConfig(**{**vars(PLAIN), "precision": "bf16"}), loss=loss)
    assert dtypes == [torch.float32] * 3 + [torch.bfloat16] * 3
    assert [log.loss for log in got] == pytest.approx([log.loss for log in expected], rel=0.05)
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert rough(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float32


WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
import tiny
from safetensors.torch import save_file
from fitting import UNEVEN, fit, numbers, weights
from accelerate import PartialState
seen = []
def loss(step):
    from duet_unlearn.training.step import fine_tuning_loss
    seen.extend(example.key for example in step.batch.examples)
    return fine_tuning_loss(step)
torch.set_num_threads(1)
model = tiny.llama().double()
logs = fit(model, source=lambda step: UNEVEN[: 4 - step] if step < 3 else UNEVEN[:1], num_steps=4, loss=loss)
rank = PartialState().process_index
save_file(weights(model), Path({out!r}) / f"{{rank}}.safetensors")
(Path({out!r}) / f"{{rank}}.json").write_text(json.dumps([numbers(logs), seen, PartialState().num_processes]))
"""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_defect_6_two_processes_share_a_step_and_reach_the_same_weights(tmp_path: Path) -> None:
    """Also where a step has three examples, or one: a process then has less to do, or nothing."""
    here = Path(__file__).parent
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(here.parent), here=str(here), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    model = tiny.llama().double()
    expected = numbers(fit(model, source=lambda step: UNEVEN[: 4 - step] if step < 3 else UNEVEN[:1], num_steps=4))
    keys = []
    for rank in (0, 1):
        logs, seen, num_processes = json.loads((tmp_path / f"{rank}.json").read_text())
        assert num_processes == 2
        assert [tuple(row) for row in logs] == [pytest.approx(row, rel=1e-5) for row in expected]
        for name, value in load_file(tmp_path / f"{rank}.safetensors").items():
            torch.testing.assert_close(value, weights(model)[name], rtol=1e-5, atol=1e-7)
        keys.append(seen)
    assert keys[0][:2] == ["q0", "q2"]
    assert sorted(keys[1][:2]) == ["q1", "q3"]
