"""What every trained method must do, in the real loop: one suite over the register."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import torch
from forgetting import CONFIG, DATA, FORGET, Given, begin, cases, given, steps, weights
from torch import Tensor

from duet_unlearn.cli.docs import field_texts
from duet_unlearn.config.reading import default_recipe, load_recipe, recipe_names
from duet_unlearn.config.recipe import METHODS
from duet_unlearn.data.examples import Role, items
from duet_unlearn.methods.base import Method, Need
from duet_unlearn.plan import draw
from duet_unlearn.plan.walk import Workload, target_bytes, walk_teacher, walk_training
from duet_unlearn.training.loop import Checkpoints, StepLog

CASES = cases()
every_kind = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind().name)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture(scope="module")
def ready(method: Method, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """The method's rows and what the frozen model says there; nothing may change them."""
    return given(method, tmp_path_factory.mktemp("targets"))


def test_three_steps_change_the_weights_and_stay_finite(method: Method, ready: Given, tmp_path: Path) -> None:
    student = begin(method)
    before = weights(student)
    logs = list(steps(method, student, tmp_path, ready=ready))
    assert len(logs) == 3
    assert all(math.isfinite(log.loss) and log.grad_norm > 0 for log in logs)
    moved = {name for name, value in weights(student).items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "proj" in name} <= moved <= trained
    assert all(torch.isfinite(value).all() for value in weights(student).values())


def test_micro_batches_change_neither_loss_nor_gradient(method: Method, ready: Given, tmp_path: Path) -> None:
    """Terms are means over the whole step, whatever is read at once."""

    def gradients(micro_batch_size: int | None) -> tuple[StepLog, dict[str, Tensor]]:
        student, found = begin(method), {}
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p, name=name: found.update({name: p.grad.clone()}))
        config = replace(CONFIG, batch_size=99, micro_batch_size=micro_batch_size)
        (log,) = steps(method, student, tmp_path, num_steps=1, config=config, ready=ready)
        return log, found

    whole, expected = gradients(None)
    largest = max(value.abs().max().item() for value in expected.values())
    for size in (1, 2):
        parted, got = gradients(size)
        assert (parted.loss, parted.grad_norm) == pytest.approx((whole.loss, whole.grad_norm), rel=1e-5, abs=1e-9)
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, rtol=1e-5, atol=1e-6 * largest, msg=lambda m, n=name: f"{n} {m}"
            )


def test_two_runs_are_equal_to_the_bit_also_where_one_is_killed_and_resumed(
    method: Method, ready: Given, tmp_path: Path
) -> None:
    whole = begin(method)
    undisturbed = [log.loss for log in steps(method, whole, tmp_path / "one", num_steps=4)]
    killed, again, checkpoints, losses = begin(method), begin(method), Checkpoints(tmp_path / "checkpoints"), []
    for log in steps(method, killed, tmp_path / "two", num_steps=4, checkpoints=checkpoints):
        losses.append(log.loss)
        if log.step == 3:
            break
    assert losses == undisturbed[:3]
    assert checkpoints.step() == 2
    resumed = [log.loss for log in steps(method, again, tmp_path / "two", num_steps=4, checkpoints=checkpoints)]
    assert resumed == undisturbed[2:]
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_rows(method: Method) -> None:
    """No retain row where none is read; a pair is a forget row and what should be said instead, side by side."""
    asked = method.build_examples(DATA)
    assert asked
    assert {one.role for one in asked} <= set(get_args(Role))
    assert len({one.key for one in asked}) == len(asked)
    if getattr(method, "retain", None) == "none":
        assert all(one.role != "retain" for one in asked)
    grouped = [[one for one in asked if one.pair == name] for name in dict.fromkeys(one.pair for one in asked)]
    for group in grouped:
        assert group[0].pair is None or [one.role for one in group] == ["forget", "preferred"]


def test_targets_are_kept_of_rows_that_are_asked(method: Method) -> None:
    """What a method keeps whatever the role aside."""
    kept = {role: keep for role in get_args(Role) if (keep := method.target_spec(role))}
    asked = {one.role for one in method.build_examples(DATA)}
    assert set(kept) <= asked or (len(kept) == len(get_args(Role)) and len(set(kept.values())) == 1)
    for keep in kept.values():
        keep.check(tiny.VOCABULARY)


def test_a_pair_is_one_item_of_a_batch(method: Method, ready: Given) -> None:
    """Batches of one item hold a whole pair, so that its loss is there."""
    paired = [item for item in items(ready.examples) if item[0].pair]
    assert all(len(item) == 2 for item in paired)
    needs_pairs = any(one.pair for one in method.build_examples(DATA))
    assert len(paired) == (len(FORGET) if needs_pairs else 0)
    for item in items(ready.examples):
        assert ready.out(begin(method), item).sum.requires_grad


def test_it_can_be_planned_without_data(method: Method) -> None:
    """The loss on fake tensors, whose values nobody knows."""
    recipe = replace(default_recipe("model", ["train.batch_size=4"]), method=method)
    load = Workload(tokens=8, prefix=4, queries=6, answer=5)
    config = tiny.llama().config
    assert walk_training(draw("model", config, dtype="float32"), recipe, load).activations > 0
    assert walk_teacher(draw("model", config, dtype="float32"), recipe, load).peak > 0
    assert target_bytes(method, load, tiny.VOCABULARY, config.hidden_size) >= 0


def test_names_are_unique() -> None:
    names = [kind().name for kind in METHODS]
    assert len(set(names)) == len(names)


@every_kind
def test_every_method_is_described(kind: type[Any]) -> None:
    assert is_dataclass(kind)
    assert kind.__doc__
    assert not kind.__doc__.startswith(kind.__name__ + "(")  # dataclass's own
    assert set(field_texts(kind)) == {field.name for field in fields(kind)} - {"name"}
    assert kind.needs <= set(get_args(Need))


def test_every_method_has_a_recipe_on_the_lab() -> None:
    recipes = [load_recipe(name) for name in recipe_names() if name.startswith("lab/")]
    assert {kind().name for kind in METHODS} <= {recipe.method.name for recipe in recipes}
