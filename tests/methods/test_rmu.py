"""RMU by hand, against a plain loop over transformers' own hidden states, and as whole runs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from forgetting import CONFIG, DATA, begin, steps
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from workplace import Workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.config.reading import default_recipe
from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Batch, Example, collate, totals
from duet_unlearn.data.prompts import render_answer
from duet_unlearn.errors import UserError
from duet_unlearn.losses import mean_square
from duet_unlearn.methods.rmu import Rmu, direction
from duet_unlearn.plan import Workload, draw, walk_teacher, walk_training
from duet_unlearn.runs import read_metrics
from duet_unlearn.teacher.targets import Hidden, TargetSpec, build_targets
from duet_unlearn.training.loop import train
from duet_unlearn.training.optimizers import make_optimizers
from duet_unlearn.training.step import Step

ROWS = [
    Example((5, 6), (0, 1), (6, 0), "forget", "f"),
    Example((7,), (0,), (0,), "retain", "r"),
]


def test_the_loss_by_hand() -> None:
    """D = 2: two forget tokens and one retain token."""
    hidden_ND = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 3.0]], requires_grad=True)
    frozen = Hidden(torch.tensor([[3.0, 1.0]]))
    c, alpha, u = 2.0, 10.0, direction(2, seed=4)
    out = Rmu(c=c, alpha=alpha).loss(Step(hidden_ND, collate(ROWS, 0), {"retain": frozen}, seed=4))
    forget = [((1 - c * u[0]) ** 2 + (2 - c * u[1]) ** 2) / 2, c * c * (u[0] ** 2 + u[1] ** 2) / 2]
    retain = (0 + 4) / 2
    assert out.sum.item() / out.count == pytest.approx(float(sum(forget) / 2) + alpha * retain, rel=1e-6)
    out.sum.backward()
    assert hidden_ND.grad is not None
    # d/dh of (h - t)^2 / D, over 2 forget tokens; of a retain token alpha times that.
    torch.testing.assert_close(hidden_ND.grad[1] / out.count, -c * u / 2)
    torch.testing.assert_close(hidden_ND.grad[2] / out.count, torch.tensor([0.0, 2 * alpha]))


def test_mean_square_by_hand() -> None:
    got = mean_square(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 0.0]]))
    assert got.tolist() == [2.5, 0.5]
    assert mean_square(torch.ones(1, 2).bfloat16(), torch.zeros(2)).dtype == torch.float32


def test_the_direction_is_of_the_seed_alone() -> None:
    u = direction(1000, seed=0)
    assert u.norm().item() == pytest.approx(1.0, rel=1e-6)
    assert u.min() >= 0
    spread = u / u.max()  # uniform over [0, 1): no half of it is fuller than the other
    assert 0.4 < (spread < 0.5).float().mean() < 0.6
    torch.rand(3)
    assert torch.equal(direction(1000, seed=0), u)
    assert not torch.equal(direction(1000, seed=1), u)


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        (Rmu(), (1, 2, 3)),
        (Rmu(layer=1), (0, 1)),
        (Rmu(layer=4), (2, 3, 4)),
        (Rmu(layer=4, train_layers=(0, 3)), (0, 3)),
    ],
)
def test_which_weights_are_trained(method: Rmu, numbers: tuple[int, ...]) -> None:
    """The middle of six blocks is block 3."""
    model = tiny.llama(layers=6)
    method.choose_weights(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.layers.{number}.mlp.down_proj.weight" for number in numbers}
    (optimizer,) = make_optimizers(model, TrainConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(numbers)


def test_a_bias_is_not_trained() -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=40, n_embd=16, n_layer=2, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    assert [p.shape for p in Rmu(layer=0).trained_weights(model)] == [(64, 16)]
    Rmu(layer=0).choose_weights(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["transformer.h.0.mlp.c_proj.weight"]


def plain_loss(model: torch.nn.Module, frozen: torch.nn.Module, *, layer: int, c: float, alpha: float) -> Tensor:
    """Written out: every row alone, hidden states from transformers, one mean over all tokens and dimensions."""
    states: dict[str, list[Tensor]] = {"forget": [], "retain": []}
    before: list[Tensor] = []
    for role, queries in (("forget", DATA.forget), ("retain", DATA.retain)):
        for query in queries:
            ids = render_answer(tiny.tokenizer(), query.messages, query.answer or "")[0][:-1]
            row = torch.tensor([ids])
            states[role].append(model(input_ids=row, output_hidden_states=True).hidden_states[layer + 1][0])
            if role == "retain":
                with torch.no_grad():
                    before.append(frozen(input_ids=row, output_hidden_states=True).hidden_states[layer + 1][0])
    aim = c * direction(16, seed=7)
    forget = (torch.cat(states["forget"]).float() - aim).square().mean()
    retain = (torch.cat(states["retain"]).float() - torch.cat(before).float()).square().mean()
    return forget + alpha * retain


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_loop_is_a_plain_loop(tmp_path: Path, micro_batch_size: int | None) -> None:
    method = Rmu(layer=1, c=3.0, alpha=5.0)
    mine, plain, frozen = (tiny.llama(layers=3).double() for _ in range(3))
    targets = build_targets(
        mine, tiny.tokenizer(), method.build_examples(DATA), spec=method.target_spec, weights="", directory=tmp_path
    )
    method.choose_weights(mine)
    chosen = [plain.model.layers[number].mlp.down_proj.weight for number in (0, 1)]
    plain.requires_grad_(False)
    for weight in chosen:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=0.01, weight_decay=0.0)
    logs = train(
        mine,
        source=lambda step: list(targets.examples),
        num_steps=3,
        loss=method.loss,
        targets=targets.of_batch,
        config=TrainConfig(rate=0.01, max_grad_norm=None, micro_batch_size=micro_batch_size),
        pad_id=tiny.EOS,
        hidden_block=method.hidden_block,
        seed=7,
    )
    for log in logs:
        loss = plain_loss(plain, frozen, layer=1, c=3.0, alpha=5.0)
        loss.backward()
        norm = torch.cat([weight.grad.flatten() for weight in chosen if weight.grad is not None]).norm()
        assert (log.loss, log.grad_norm) == pytest.approx((loss.item(), norm.item()), rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
    for (name, a), b, c in zip(mine.named_parameters(), plain.parameters(), frozen.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n} {m}")
        assert torch.equal(a, c) == (not name.endswith(("0.mlp.down_proj.weight", "1.mlp.down_proj.weight")))


def test_nothing_above_the_block_runs_in_the_loop(tmp_path: Path) -> None:
    method, model, ran = Rmu(layer=0), tiny.llama(layers=3), []
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    model.lm_head.register_forward_hook(lambda _m, _i, output: ran.append(tuple(output.shape)))
    targets = build_targets(
        model,
        tiny.tokenizer(),
        method.build_examples(DATA),
        spec=method.target_spec,
        weights="",
        directory=tmp_path,
    )
    assert set(ran) == {0, (1, 0, tiny.VOCABULARY)}
    ran.clear()
    shapes: list[tuple[int, ...]] = []

    def signals(batch: Batch) -> dict[str, Hidden]:
        shapes.append((len(batch.rows_N),))
        return targets.of_batch(batch)  # type: ignore[return-value]

    method.choose_weights(model)
    list(
        train(
            model,
            source=lambda step: list(targets.examples),
            num_steps=2,
            loss=method.loss,
            targets=signals,  # type: ignore[arg-type]
            config=TrainConfig(),
            pad_id=tiny.EOS,
            hidden_block=method.hidden_block,
        )
    )
    assert ran == [0, (1, 0, tiny.VOCABULARY)] * 2
    assert len(model.model.layers) == 3
    assert shapes == [(sum(totals(targets.examples).positions.values()),)] * 2


SETTINGS = ["method.name=rmu", "train.epochs=2"]


def test_a_run(workplace: Workplace, tiny_model: Path) -> None:
    """Only the matrices move; the rest of the student is the base to the bit."""
    run = unlearn(load_recipe(workplace.recipe, [*SETTINGS, "method.alpha=1"]), out="run")
    before, after = load_file(tiny_model / "model.safetensors"), load_file(run.model / "model.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {f"model.layers.{number}.mlp.down_proj.weight" for number in (0, 1)}
    rows = read_metrics(run)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not run.probe.exists()  # no prefix is read
    manifest = json.loads((run.targets / "train" / "manifest.json").read_text())
    assert manifest["parts"]["kind of target"]["retain"] == {"kind": "hidden", "k": None, "layer": "middle"}
    assert manifest["parts"]["kind of target"]["forget"] is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.lora.rank=2", "method rmu trains chosen weights of the model itself, not adapters"),
        ("method.layer=2", "method.layer is 2, but the model's blocks are 0 to 1"),
        ("method.train_layers=[0, 5]", "method.layer is 5, but the model's blocks are 0 to 1"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(workplace: Workplace, setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        unlearn(load_recipe(workplace.recipe, [*SETTINGS, setting]), out="run")
    assert not Path("run").exists()


def test_the_plan_walks_it() -> None:
    """Three small matrices have gradients; the blocks above and the head take no operations."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    load = Workload(tokens=10, prefix=4, queries=6, answer=5)

    def walked(num_layers: int, *settings: str) -> tuple[int, int, int, int]:
        config = AutoConfig.for_model("llama", **sizes, num_hidden_layers=num_layers)
        recipe = default_recipe("model", ["method.name=rmu", "train.batch_size=4", *settings])
        trained = walk_training(draw("model", config, dtype="float32"), recipe, load)
        asked = walk_teacher(draw("model", config, dtype="float32"), recipe, load)
        return trained.trained, trained.gradients, trained.flops, asked.flops

    trained, gradients, flops, asking = walked(8)
    assert (trained, gradients) == (3 * 32 * 48, 4 * 3 * 32 * 48)
    assert walked(8, "method.layer=2")[2] < flops
    assert walked(5, "method.layer=4") == (trained, gradients, flops, asking)  # the same block, three fewer above it


WORKER = """
import json, os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
from accelerate import PartialState
from test_rmu import losses
torch.set_num_threads(1)
rank = os.environ["RANK"]
found = losses(Path({out!r}, rank))
Path({out!r}, rank + ".json").write_text(json.dumps([found, PartialState().num_processes]))
PartialState().destroy_process_group()
"""


def losses(directory: Path) -> list[tuple[float, float]]:
    """Steps of three rows, the third of one alone."""
    config = replace(CONFIG, batch_size=3, micro_batch_size=1)
    logs = steps(Rmu(c=3.0, alpha=5.0), begin(Rmu()), directory, num_steps=4, config=config)
    return [(log.loss, log.grad_norm) for log in logs]


@pytest.mark.slow
def test_two_processes_do_as_one(tmp_path: Path) -> None:
    """Their wrapper meets forward passes that end with a block."""
    expected, here = losses(tmp_path / "alone"), Path(__file__).parent
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=[str(here.parent), str(here)], out=str(tmp_path)))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        got, num_processes = json.loads((tmp_path / f"{rank}.json").read_text())
        assert num_processes == 2
        assert [tuple(row) for row in got] == [pytest.approx(row, rel=1e-5) for row in expected]


def test_what_is_kept() -> None:
    assert Rmu().target_spec("retain") == TargetSpec("hidden", layer="middle")
    assert Rmu(layer=7).target_spec("retain") == TargetSpec("hidden", layer=7)
    assert Rmu().target_spec("forget") is None
