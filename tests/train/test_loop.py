"""The loop against a plain training loop written here, and against itself: in pieces, resumed, in two processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from duet_unlearn.config import LoraConfig, TrainConfig
from duet_unlearn.data.examples import Batch, Example, collate
from duet_unlearn.errors import UserError
from duet_unlearn.methods import Duet, LossOut, Sft, Step
from duet_unlearn.tensors import logits_at, topk
from duet_unlearn.train import Checkpoints, StepLog, train
from duet_unlearn.train.model import add_lora, save_gradient_memory, teacher_mode

UNEVEN = [
    example
    for count, example in enumerate(tiny.examples([5, 14, 7, 9], positions=1))
    for example in [tiny.example(example.ids, range(count, 2 * count + 1), example.key, role=example.role)]
]
"""1, 2, 3 and 4 positions: a mean of means is not their mean."""
PLAIN = TrainConfig(rate=0.01, max_grad_norm=0.5, weight_decay=0.1)


def fit(model: nn.Module, config: TrainConfig = PLAIN, *, num_steps: int = 3, **changes: Any) -> list[StepLog]:
    return list(steps(model, config, num_steps=num_steps, **changes))


def steps(model: nn.Module, config: TrainConfig = PLAIN, *, num_steps: int = 3, **changes: Any) -> Iterator[StepLog]:
    settings: dict[str, Any] = {"source": lambda step: UNEVEN, "loss": Sft().loss, "signal": None, "pad_id": tiny.EOS}
    return train(model, num_steps=num_steps, config=config, **(settings | changes))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_to_the_bit(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


def assert_close(one: nn.Module, two: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(weights(one).items(), weights(two).values(), strict=True):
        torch.testing.assert_close(
            a, b, **(tolerance or {"rtol": 1e-5, "atol": 1e-7}), msg=lambda m, n=name: f"{n} {m}"
        )


def numbers(logs: list[StepLog]) -> list[tuple[float, ...]]:
    return [(log.step, log.loss, log.grad_norm, log.rate, log.tokens) for log in logs]


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

    def signal(what: Batch) -> Any:
        return topk(said_NV[[n for e in what.examples for n in place[e.key]]], 20)

    config = TrainConfig(rate=0.02, micro_batch_size=3)
    logs = fit(model, config, num_steps=60, loss=Duet(k=20).loss, signal=signal)
    assert logs[-1].loss < 0.1 * logs[0].loss


def lora(model: nn.Module) -> nn.Module:
    """Adapters that say something from the first step on."""
    adapted = add_lora(model, LoraConfig(rank=2, alpha=4), seed=0)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=draw)
    return adapted


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
        return Sft().loss(step)

    expected = fit(exact, loss=loss)
    got = fit(rough, TrainConfig(**{**vars(PLAIN), "precision": "bf16"}), loss=loss)
    assert dtypes == [torch.float32] * 3 + [torch.bfloat16] * 3
    assert [log.loss for log in got] == pytest.approx([log.loss for log in expected], rel=0.05)
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert rough(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float32


def noisy() -> nn.Module:
    """A model with dropout."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config)


MAKERS = {"full": tiny.llama, "lora": lambda: lora(tiny.llama()), "dropout": noisy}
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
        out = Sft().loss(step)
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
            return Sft().loss(step)
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
    out = Sft().loss(Step(logits_NV, batch, None))
    assert values == pytest.approx([out.sum.item() / 10] * 3, rel=1e-4)


WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
import tiny
from safetensors.torch import save_file
from test_loop import PLAIN, UNEVEN, fit, numbers, weights
from accelerate import PartialState
seen = []
def loss(step):
    from duet_unlearn.methods import Sft
    seen.extend(example.key for example in step.batch.examples)
    return Sft().loss(step)
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
