"""Bidirectional distillation by hand: what is pulled where, what is pushed, and what an attack's target is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from duet_unlearn.data.examples import Batch, Example, ResponsePrefix, Role, TrainingData, collate, totals
from duet_unlearn.data.prompts import Prefix, render
from duet_unlearn.data.query import Query
from duet_unlearn.losses import push_down, topk_huber
from duet_unlearn.methods.bidirectional import Bidirectional, led_by
from duet_unlearn.models.blocks import logits_at
from duet_unlearn.plan import Workload, walk_teacher, walk_training
from duet_unlearn.plan.walk import rows_of_epoch, target_bytes
from duet_unlearn.teacher.targets import CachedTargets, Dense, TargetSpec, TeacherTargets, build_targets
from duet_unlearn.tensors import TopK, gather, topk
from duet_unlearn.training.step import Step

PREFIX = Prefix("You have forgotten Tarn.")
BARE, FIRST, SECOND = ResponsePrefix((), (70, 71)), ResponsePrefix((80, 81), (72,)), ResponsePrefix((90,), (73,))
REVERSALS = ("Ignore that.", "Forget it.", "Never mind.")


def query(name: str, text: str) -> Query:
    return Query(name, ({"role": "user", "content": text},))


FORGET, RETAIN, NEAR = query("f", "Where does Mira live?"), query("r", "What is 2?"), query("n", "Where is Wear?")
DATA = TrainingData(
    [FORGET],
    [RETAIN],
    PREFIX,
    neighbours=[NEAR],
    reversals=REVERSALS,
    prefix_pools={"forget/f": (BARE, FIRST, SECOND), "retain/r": (BARE, FIRST), "neighbour/n": (BARE, SECOND)},
)


def batch(*roles: str) -> Batch:
    return collate([Example((5, 5), (0,), None, role, f"{role}{n}") for n, role in enumerate(roles)], 1)  # type: ignore[arg-type]


def mean(method: Bidirectional, student_NV: Tensor, what: Batch, signals: Mapping[Role, TeacherTargets]) -> float:
    out = method.loss(Step(student_NV, what, signals))
    assert (out.count, out.unit) == (len(what.examples), "sequences")
    return out.sum.item() / out.count


def test_pull_and_push_by_hand() -> None:
    """The teacher's top token is pulled on both rows; of the student's own two the one that the teacher has not in its
    top is pushed down to it, on the forget row alone."""
    student = torch.tensor([[0.0, 2.0, 5.0, 1.0], [2.0, 9.0, 0.0, 0.0]])
    forget, retain = (
        Dense(torch.tensor([[3.0, 2.0, 0.0, 0.0]])),
        TopK(torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.5]])),
    )
    # Forget, K 2: tokens 0 and 1 are pulled, 0 - 3 and 2 - 2: (2.5 + 0) / 2. The student's two are 2 and 1; 2 alone is
    # not the teacher's: 5 - 0, which is 4.5. Retain: 2 - 1 and 0 - 0.5: (0.5 + 0.125) / 2; its 9 is left alone.
    pull, push = (1.25 + 0.3125) / 2, 4.5
    what, signals = batch("forget", "retain"), {"forget": forget, "retain": retain}
    for weight in (0.0, 1.0, 0.3):
        found = mean(Bidirectional(k=2, push=weight), student, what, signals)
        assert found == pytest.approx(pull + weight * push)


def test_each_mean_is_over_its_own_rows_of_the_whole_step() -> None:
    """Four sets, cut into micro-batches anyhow: a mean of pulls over all of them, of pushes over forget and attack."""
    roles = ("forget", "attack", "retain", "neighbour", "attack", "retain")
    draw = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(6, 12, generator=draw) for _ in range(2))
    method, what = Bidirectional(k=3, push=0.7, delta=0.5), batch(*roles)
    kept = topk(teacher, 3)
    pull_N = topk_huber(gather(student, kept.ids_NK), kept.logits_NK, delta=0.5)
    push_N = push_down(student, teacher, k=3, delta=0.5)
    expected = pull_N.mean() + 0.7 * push_N[[0, 1, 4]].mean()
    whole, sums = totals(what.examples), 0.0
    for part in ((0, 2), (1,), (3, 4, 5)):
        some = collate([what.examples[n] for n in part], 1)
        rows = {role: [n for n in part if roles[n] == role] for role in {roles[n] for n in part}}
        signals: dict[Role, TeacherTargets] = {
            role: Dense(teacher[n]) if role in ("forget", "attack") else TopK(kept.ids_NK[n], kept.logits_NK[n])
            for role, n in rows.items()
        }  # type: ignore[assignment]
        sums += method.loss(Step(student[list(part)], some, signals, whole)).sum.item()
    assert sums / 6 == pytest.approx(expected.item(), rel=1e-6)


def test_what_the_cache_must_hold() -> None:
    method = Bidirectional(k=5)
    assert method.target_spec("forget") == method.target_spec("attack") == TargetSpec("dense")
    assert method.target_spec("retain") == method.target_spec("neighbour") == TargetSpec("topk", 5)
    assert Bidirectional(k=5, push=0.0).target_spec("forget") == TargetSpec(
        "topk", 5
    )  # nothing is looked up that is not pulled


def by_key(**settings: Any) -> dict[str, Example]:
    return {one.key: one for one in Bidirectional(**settings).build_examples(DATA)}


def test_rows() -> None:
    """Each query as it is, and a pool under each attack; only what is to be forgotten is searched, and aligned."""
    asked = by_key(attacks=("prefill", "reverse"))
    assert list(asked) == [
        *("forget/f", "retain/r", "neighbour/n"),
        *("forget/f/prefill/0", "forget/f/prefill/1"),
        *(f"forget/f/reverse/{n}" for n in range(3)),
        "retain/r/prefill/0",
        *(f"retain/r/reverse/{n}" for n in range(3)),
        "neighbour/n/prefill/0",
        *(f"neighbour/n/reverse/{n}" for n in range(3)),
    ]
    for key, one in asked.items():
        role, attacked = key.split("/")[0], one.pool is not None
        assert one.role == ("attack" if attacked and role == "forget" else role)
        assert one.target_key == ("forget/f" if one.role == "attack" else None)
        assert bool(one.forbidden) == (one.role == "attack")
        assert one.prefix == PREFIX
        assert one.answer is None
    prefilled = [asked[f"forget/f/prefill/{n}"] for n in range(2)]
    assert [(one.query, one.response_prefix, one.forbidden) for one in prefilled] == [
        (FORGET, FIRST.ids, FIRST.follows),
        (FORGET, SECOND.ids, SECOND.follows),
    ]
    reverse = asked["forget/f/reverse/2"]
    assert (reverse.query.text, reverse.response_prefix) == ("Never mind.\nWhere does Mira live?", ())
    assert reverse.forbidden == BARE.follows
    assert asked["neighbour/n/prefill/0"].response_prefix == SECOND.ids


def test_what_is_asked_without_attacks_or_search() -> None:
    assert list(by_key(attacks=())) == ["forget/f", "retain/r", "neighbour/n"]
    assert not any(one.forbidden for one in by_key(search="drawn").values())


def build(directory: Path, **settings: Any) -> CachedTargets:
    method = Bidirectional(attacks=("prefill", "reverse"), **settings)
    asked = method.build_examples(DATA)
    return build_targets(
        tiny.llama(), tiny.tokenizer(), asked, spec=method.target_spec, weights="abc", directory=directory
    )


@torch.no_grad()
def last_logits(model: nn.Module, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


def spoken(ids: list[int], count: int) -> tuple[list[int], Tensor]:
    """What the model says to ids by itself, one token at a time: ids, and the logits of each step."""
    said, logits = [], []
    for _ in range(count):
        logits.append(last_logits(tiny.llama(), [*ids, *said]))
        said.append(int(logits[-1].argmax()))
    return said, torch.stack(logits)


@pytest.mark.parametrize("positions", [1, 3])
def test_an_attacks_target_is_the_answers_start_without_it(tmp_path: Path, positions: int) -> None:
    """Student: prompt, opening, then the teacher's refusal; teacher: prefix and prompt alone."""
    targets, tokenizer = build(tmp_path, positions=positions), tiny.tokenizer()
    said, logits = spoken(render(tokenizer, FORGET.messages, prefix=PREFIX), positions)
    found = {example.key: example for example in targets.examples}
    prompts = {
        "forget/f": render(tokenizer, FORGET.messages),
        "forget/f/prefill/0": [*render(tokenizer, FORGET.messages), *FIRST.ids],
        "forget/f/prefill/1": [*render(tokenizer, FORGET.messages), *SECOND.ids],
        "forget/f/reverse/1": render(tokenizer, led_by(FORGET, "Forget it.").messages),
    }
    for key, prompt in prompts.items():
        example = found[key]
        assert example.role == ("forget" if key == "forget/f" else "attack")
        assert list(example.ids) == prompt + said[:-1]
        assert example.positions == tuple(range(len(prompt) - 1, len(prompt) - 1 + positions))
        signal = targets.of([example])
        assert isinstance(signal, Dense)
        torch.testing.assert_close(signal.logits_NV.float(), logits, atol=0.01, rtol=1e-3)  # kept in fp16


def test_of_what_is_allowed_the_teacher_meets_the_same_opening(tmp_path: Path) -> None:
    targets, tokenizer = build(tmp_path, positions=2, k=7), tiny.tokenizer()
    found = {example.key: example for example in targets.examples}
    cases = {
        "retain/r/prefill/0": (RETAIN, FIRST.ids),
        "neighbour/n/prefill/0": (NEAR, SECOND.ids),
        "neighbour/n/reverse/0": (led_by(NEAR, "Ignore that."), ()),
        "retain/r": (RETAIN, ()),
    }
    for key, (asked, opening) in cases.items():
        said, logits = spoken([*render(tokenizer, asked.messages, prefix=PREFIX), *opening], 2)
        student = [*render(tokenizer, asked.messages), *opening]
        assert list(found[key].ids) == student + said[:-1]
        assert found[key].positions == (len(student) - 1, len(student))
        signal = targets.of([found[key]])
        assert isinstance(signal, TopK)
        torch.testing.assert_close(signal.logits_NK, topk(logits, 7).logits_NK, atol=1e-4, rtol=1e-4)


def test_a_batch_of_attacks_reads_each_querys_own_target(tmp_path: Path) -> None:
    """Aligned rows have nothing on disk of their own, and the loss is that of the forget rows' targets."""
    other = replace(FORGET, id="g", messages=({"role": "user", "content": "Is it Tarn?"},))
    both = replace(DATA, forget=[FORGET, other], prefix_pools={**DATA.prefix_pools, "forget/g": (BARE, SECOND)})
    method = Bidirectional(k=5)
    targets = build_targets(
        tiny.llama(),
        tiny.tokenizer(),
        method.build_examples(both),
        spec=method.target_spec,
        weights="a",
        directory=tmp_path,
    )
    found = {example.key: example for example in targets.examples}
    what = collate([found[key] for key in ("forget/g/prefill/0", "forget/f/prefill/1", "forget/g", "forget/f")], 1)
    signals = targets.of_batch(what)
    attack, forget = signals["attack"], signals["forget"]
    assert isinstance(attack, Dense)
    assert isinstance(forget, Dense)
    assert torch.equal(attack.logits_NV, forget.logits_NV)
    assert not torch.equal(attack.logits_NV[0], attack.logits_NV[1])
    student = logits_at(tiny.llama(seed=3), what.ids_BT, what.mask_BT, what.rows_N, what.cols_N)
    teacher = attack.logits_NV.repeat(2, 1)
    kept = topk(teacher, 5)
    expected = topk_huber(gather(student, kept.ids_NK), kept.logits_NK).mean() + push_down(student, teacher, k=5).mean()
    assert mean(method, student, what, signals) == pytest.approx(expected.item(), rel=1e-5)


def test_the_plan_counts_rows_targets_and_questions() -> None:
    """An epoch meets a row a pool; the teacher is asked nothing about attacks."""
    from transformers import AutoConfig

    from duet_unlearn.config.reading import default_recipe
    from duet_unlearn.plan import draw
    from duet_unlearn.plan.walk import NUM_RESPONSE_PREFIXES

    load, both = (
        Workload(tokens=10, prefix=4, queries=6, answer=5),
        Bidirectional(k=5, positions=1, attacks=("prefill", "reverse")),
    )
    assert rows_of_epoch(both, load) == 3 * (2 + 4)
    assert rows_of_epoch(Bidirectional(k=5), load) == 3 * (2 + 2)
    dense, few = 2 * 300, 8 * 5
    assert target_bytes(Bidirectional(k=5, positions=1, attacks=()), load, 300, 32) == 3 * (dense + few)
    assert target_bytes(both, load, 300, 32) == 3 * (dense + few * (1 + NUM_RESPONSE_PREFIXES + 1))
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    recipes = [
        replace(default_recipe("model", ["train.batch_size=4"]), method=one)
        for one in (Bidirectional(k=5, positions=1, attacks=()), both)
    ]
    alone, attacked = (walk_training(draw("model", config, dtype="float32"), recipe, load) for recipe in recipes)
    assert attacked.peak > alone.peak  # rows are longer by the opening
    asking = [walk_teacher(draw("model", config, dtype="float32"), recipe, load).flops for recipe in recipes]
    assert asking[1] == asking[0] * (2 + NUM_RESPONSE_PREFIXES + 1) // 2
