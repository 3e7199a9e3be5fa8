"""The reinforced model and the three methods that stand on it: by hand, against plain code, and as whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workplace import Workplace, examples_of, write_workplace

from duet_unlearn import load_recipe, unlearn
from duet_unlearn.config.reading import default_recipe
from duet_unlearn.config.sections import TrainConfig
from duet_unlearn.data.examples import Example, collate, epochs_source, render_examples
from duet_unlearn.events import Event
from duet_unlearn.job import load_job
from duet_unlearn.losses import generic
from duet_unlearn.methods.reinforced import Reinforce, Rkld, TaskVector, Whp, logits_fns_of
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.models.load import load_model
from duet_unlearn.models.lora import add_lora
from duet_unlearn.plan import Workload, make_plan
from duet_unlearn.runs import Run, read_metrics
from duet_unlearn.teacher.targets import CachedTargets, Dense, build_targets
from duet_unlearn.tensors import TopK
from duet_unlearn.training.loop import train
from duet_unlearn.training.step import Step, fine_tuning_loss

FORGET = [Example((5, 6, 7), (1, 2), (7, 1), "forget", "f")]


def test_generic_logits_by_hand() -> None:
    """Only what the reinforced model has more of is taken away, alpha times over."""
    base, strong = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 1.0, 3.5]])
    assert generic(base, strong, alpha=5.0).tolist() == [[1.0 - 10.0, 2.0, 3.0 - 2.5]]
    assert generic(base, base, alpha=5.0).tolist() == base.tolist()
    assert generic(base.half(), strong.half(), alpha=1.0).dtype == torch.float32


STUDENT = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0]])
TARGET = torch.tensor([[4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0], [1.0, -7.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
"""(2, 8) of a student and of generic logits, whose largest are tokens 0 and 2."""


def mean(method: Whp | Rkld, signal: TopK | Dense) -> float:
    out = method.loss(Step(STUDENT, collate(FORGET, 0), {"forget": signal}))
    return out.sum.item() / out.count


def test_whps_losses() -> None:
    """The labels 7 and 1, which the generic logits put down, are not learnt."""
    top = TARGET.topk(1)
    hard = F.cross_entropy(STUDENT, torch.tensor([0, 2])).item()
    assert mean(Whp(), TopK(top.indices, top.values)) == pytest.approx(hard, rel=1e-6)
    q = TARGET.softmax(-1)
    soft = -(q * STUDENT.log_softmax(-1)).sum(-1) + (q * q.log()).sum(-1)
    assert mean(Whp(target="soft"), Dense(TARGET)) == pytest.approx(soft.mean().item(), rel=1e-6)


def test_rklds_loss() -> None:
    p = STUDENT.softmax(-1)
    expected = (p * (p.log() - TARGET.log_softmax(-1))).sum(-1).mean().item()
    assert mean(Rkld(), Dense(TARGET)) == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def whole(model: nn.Module, rows: list[Example]) -> Tensor:
    """(N, V) logits of rows that are read alone."""
    return torch.cat([model(input_ids=torch.tensor([row.ids])).logits[0][list(row.positions)] for row in rows])


ADAPTERS = ("model.lora.rank=2", "model.lora.alpha=8")
WAYS = {"full": (), "lora": ADAPTERS, "merged": (*ADAPTERS, "model.lora.save=merged")}
every_way = pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)


def recipe_of(place: Workplace, *settings: str) -> Any:
    own = ["method.reinforce.rate=3e-3", "method.reinforce.epochs=2", "method.reinforce.batch_size=4"]
    return load_recipe(place.recipe, [*settings[:1], *own, "train.epochs=2", *settings[1:]])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    return write_workplace(tmp_path_factory.mktemp("reinforced"), tiny_model)


@pytest.fixture(scope="module")
def run_of(place: Workplace) -> Callable[..., Run]:
    """The run with some settings, made once; nothing may write into it."""
    made: dict[tuple[str, ...], Run] = {}

    def run(*settings: str) -> Run:
        if settings not in made:
            made[settings] = unlearn(recipe_of(place, *settings), out=place.folder / f"run-{len(made)}")
        return made[settings]

    return run


def strong_of(run: Run) -> nn.Module:
    """The reinforced model of a run's folder, adapter and all."""
    return load_model(str(run.path / "reinforced" / "model"))[0]


def base_of(place: Workplace) -> nn.Module:
    return load_model(str(load_recipe(place.recipe).model.path))[0]


def forget_rows(place: Workplace) -> list[Example]:
    material = load_job(load_recipe(place.recipe)).training_data("train")
    return render_examples(tiny.tokenizer(), material.answers("forget"))


VECTOR = ("method.name=task-vector", "method.scale=0.5")


@every_way
def test_the_reinforced_model_is_plain_fine_tuning_of_the_base(
    place: Workplace, run_of: Callable[..., Run], settings: tuple[str, ...]
) -> None:
    recipe, run = recipe_of(place, *VECTOR, *settings), run_of(*VECTOR, *settings)
    rows, model = forget_rows(place), base_of(place)
    mine = add_lora(model, recipe.model.lora, seed=0) if recipe.model.lora else model  # type: ignore[arg-type]
    source, num_steps = epochs_source(rows, batch_size=4, epochs=2, seed=0)
    config = TrainConfig(rate=3e-3)
    logs = train(
        mine, source=source, num_steps=num_steps, loss=fine_tuning_loss, targets=None, config=config, pad_id=tiny.EOS
    )
    losses = [log.loss for log in logs]
    strong = strong_of(run)
    assert torch.equal(whole(strong, rows), whole(mine, rows))
    assert [row["loss"] for row in read_metrics(Run(run.path / "reinforced"))] == losses
    assert num_steps == len(losses) == 4
    labels = torch.tensor([token for row in rows for token in row.labels or ()])
    better = F.cross_entropy(whole(strong, rows), labels) - F.cross_entropy(whole(base_of(place), rows), labels)
    assert better < -0.05
    assert not (run.path / "reinforced" / "checkpoints").exists()


@every_way
def test_a_task_vector_is_subtracted(place: Workplace, run_of: Callable[..., Run], settings: tuple[str, ...]) -> None:
    """``theta - 0.5 (theta_reinforced - theta)``, from the folders; nothing else was trained."""
    run = run_of(*VECTOR, *settings)
    strong, student, base = strong_of(run), load_model(str(run.model))[0], base_of(place)
    if settings:
        strong = strong.merge_and_unload()  # type: ignore[operator]
    if (run.model / "adapter_model.safetensors").exists():
        assert "save" not in " ".join(settings)
        student = student.merge_and_unload()  # type: ignore[operator]
    after, grown = dict(student.named_parameters()), dict(strong.named_parameters())
    moved = 0
    for name, before in base.named_parameters():
        torch.testing.assert_close(after[name], before - 0.5 * (grown[name] - before), rtol=1e-5, atol=1e-6)
        moved += not torch.equal(after[name], before)
    assert moved == (14 if settings else len(after))  # seven matrices a block, or all
    assert read_metrics(run) == []
    assert not run.targets.exists()
    assert {"reinforce", "evaluate"} == json.loads(run.timings.read_text()).keys()


METHODS = {
    "whp": ("method.name=whp",),
    "whp soft kl": ("method.name=whp", "method.target=soft", "method.retain=kl"),
    "rkld": ("method.name=rkld", "method.alpha=2", "method.retain=kl"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("settings", [(), ADAPTERS], ids=["full", "lora"])
def test_targets_are_those_of_two_models(
    place: Workplace, run_of: Callable[..., Run], method: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    """Base and reinforced loaded apart, rows read alone; on retain rows the base alone speaks, adapter or not."""
    words = (*method, "train.rate=2e-4", *settings)
    recipe, run = recipe_of(place, *words), run_of(*words)
    targets = targets_of(run, load_job(recipe))
    strong, base, alpha = strong_of(run), base_of(place), recipe.method.alpha
    for role in {example.role for example in targets.examples}:
        rows = [example for example in targets.examples if example.role == role]
        expected = whole(base, rows)
        if role == "forget":
            assert (whole(strong, rows) - expected).abs().max() > 0.1
            expected = expected - alpha * (whole(strong, rows) - expected).clamp_min(0)
        signal = targets.of(rows)
        if isinstance(signal, TopK):
            assert signal.ids_NK.squeeze(-1).tolist() == expected.argmax(-1).tolist()
        else:
            assert isinstance(signal, Dense)
            torch.testing.assert_close(signal.logits_NV.float(), expected, rtol=2e-3, atol=2e-2)
    assert {example.role for example in targets.examples} == ({"forget", "retain"} if len(method) > 1 else {"forget"})
    forget = [example for example in targets.examples if example.role == "forget"]

    def distance(model: nn.Module) -> float:
        batch, signals = collate(forget, 0), {"forget": targets.of(forget)}
        return recipe.method.loss(Step(whole(model, forget), batch, signals)).sum.item()  # type: ignore[arg-type]

    assert distance(load_model(str(run.model))[0]) < distance(base)
    kept = sorted(path.name for path in run.model.glob("*.safetensors"))
    assert kept == ["adapter_model.safetensors" if settings else "model.safetensors"]


def targets_of(run: Run, job: Any) -> CachedTargets:
    """What lies in the run folder; asking would fail."""
    manifest = json.loads((run.targets / "train" / "manifest.json").read_text())
    return build_targets(
        nn.Identity(),
        tiny.tokenizer(),
        examples_of(job, "train"),
        spec=job.recipe.method.target_spec,
        weights=manifest["parts"]["weights"],
        directory=run.targets / "train",
    )


def test_the_student_starts_from_the_base(workplace: Workplace) -> None:
    """Adapters of a reinforced model are off again and leave nothing behind: its first loss is the base's."""
    recipe = recipe_of(workplace, "method.name=whp", "method.target=soft", "train.batch_size=6", *ADAPTERS)
    run = unlearn(recipe, out="run")
    targets = targets_of(run, load_job(recipe))
    rows = list(targets.examples)
    logits = whole(base_of(workplace), rows)
    out = recipe.method.loss(Step(logits, collate(rows, 0), {"forget": targets.of(rows)}))
    assert read_metrics(run)[0]["loss"] == pytest.approx(out.sum.item() / out.count, rel=1e-4)


def test_an_adapter_speaks_as_base_and_as_reinforced() -> None:
    base, apart = tiny.llama(), tiny.llama()
    strong = add_lora(base, load_recipe("lab/duet").model.lora, seed=0)  # type: ignore[arg-type]
    for name, parameter in strong.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    batch = collate(tiny.examples([7, 5]), tiny.EOS)
    where = (batch.ids_BT, batch.mask_BT, batch.rows_N, batch.cols_N)
    words = logits_fns_of(base, strong, alpha=3.0)
    with torch.no_grad():
        plain, grown = logits_at(apart, *where), logits_at(strong, *where)
        assert (plain - grown).abs().max() > 0.1
        torch.testing.assert_close(words["retain"](*where), plain)
        torch.testing.assert_close(words["forget"](*where), plain - 3.0 * (grown - plain).clamp_min(0))
        assert torch.equal(logits_at(strong, *where), grown)  # it is on again


class Killed(BaseException):
    """What no code catches."""


def killed_at(recipe: Any, out: Path, phase: str, done: int) -> None:
    """A run that ends in the middle of a phase."""

    def strike(event: Event) -> None:
        if (event.phase, event.done) == (phase, done):
            raise Killed

    with pytest.raises(Killed):
        unlearn(recipe, out=out, on_event=strike)


@pytest.mark.parametrize("method", [VECTOR, ("method.name=whp", "train.rate=2e-4")], ids=["task-vector", "whp"])
@pytest.mark.parametrize("settings", [(), ADAPTERS], ids=["full", "lora"])
def test_a_killed_run_goes_on_to_the_same_bits(
    place: Workplace, run_of: Callable[..., Run], tmp_path: Path, method: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    """Killed twice while it is reinforced, then behind it: what is whole is loaded, not made again."""
    undisturbed, out = run_of(*method, *settings), tmp_path / "killed"
    recipe = recipe_of(place, *method, "train.checkpoint_every=2", *settings)
    killed_at(recipe, out, "reinforce", 3)
    folder = out / "reinforced"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000002"]
    assert not (folder / "model").exists()
    killed_at(recipe, out, "reinforce", 4)
    killed_at(recipe, out, *(("ask student", 0) if method == VECTOR else ("train", 2)))
    made = {path: path.stat().st_mtime_ns for path in (folder / "model").iterdir()}
    told: list[str] = []
    run = unlearn(recipe, out=out, on_event=lambda event: told.append(event.phase))
    assert "reinforce" not in told
    assert {path: path.stat().st_mtime_ns for path in (folder / "model").iterdir()} == made
    for file in ("model", "reinforced/model"):
        for path in (undisturbed.path / file).glob("*.safetensors"):
            assert path.read_bytes() == (run.path / file / path.name).read_bytes(), path
    steps = [row["step"] for row in read_metrics(Run(folder))]
    assert steps == [1, 2, 3, 4]


def test_settings_of_the_reinforcement() -> None:
    train = TrainConfig(epochs=7, rate=1.0, validate_every=3, early_stop=2, warmup=0.5, micro_batch_size=2)
    assert Reinforce(epochs=1, rate=0.1, batch_size=5).train_config(train) == replace(
        train, epochs=1, rate=0.1, batch_size=5, validate_every=0, early_stop=None
    )
    method = default_recipe("m", ["method={name: rkld, reinforce: {epochs: 4}}"]).method
    assert method == Rkld(reinforce=Reinforce(epochs=4))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "model"
    tiny.llama(hidden=32, layers=2).config.save_pretrained(folder)
    return folder


def test_the_plan_counts_both_models(bare: Path) -> None:
    """In full two models lie in memory while one is reinforced; an adapter is no second model."""

    def planned(name: str) -> dict[str, Any]:
        recipe = default_recipe("m", [f"method.name={name}", "train.batch_size=4", "train.epochs=2"])
        plan = make_plan(str(bare), recipe, Workload(tokens=10, prefix=4, queries=8, answer=5), rate=1e9)
        return {row.name: row for row in plan.rows} | {"steps": plan.steps}

    ga, vector, whp = (planned(name) for name in ("ga", "task-vector", "whp"))
    for mode, models in (("full, fp32", 2), ("LoRA, fp32", 1)):
        assert vector[mode].weights == pytest.approx(models * ga[mode].weights, rel=1e-3)
        assert whp[mode].flops > ga[mode].flops + vector[mode].flops  # and asks
        assert vector[mode].asking <= whp[mode].asking
    assert vector["steps"] == 3  # epochs of one batch of 16
    assert whp["steps"] == ga["steps"]
    assert TaskVector().target_spec("forget") is None
