"""Relearning against a plain PyTorch loop, what it leaves alone, and what it brings back as an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from whitebox import GOAL, Lab, queries, tiny_subject, with_adapter

from duet_unlearn.attacks import NotApplicable, Relearned, finding, relearn, run_attack, worst
from duet_unlearn.attacks.attack_base import Plain
from duet_unlearn.attacks.fine_tuning import Relearn, answer_examples, relearn_with_adapters, scaled_rates
from duet_unlearn.config.sections import LoraConfig
from duet_unlearn.data.prompts import render_answer
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import share_right
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.models.load import merged
from duet_unlearn.models.lora import add_lora

FACTS = (("Where does Mira Bol live?", "In Tarn."), ("Who is Oda?", "A baker."), ("What is 2 + 3?", "5"))
SHOWN = [
    Query(id=f"q{n}", messages=({"role": "user", "content": asked},), answer=answer, value=answer)
    for n, (asked, answer) in enumerate(FACTS)
]


def losses(model: nn.Module) -> Tensor:
    """(3,) mean cross entropy of each answer and its end, by transformers' own labels."""
    found = []
    for query in SHOWN:
        ids, start = render_answer(tiny.tokenizer(), query.messages, query.answer or "")
        row = torch.tensor([ids])
        labels = torch.where(torch.arange(len(ids)) >= start, row, -100)
        found.append(model(input_ids=row, labels=labels).loss * (len(ids) - start))
    lengths = torch.tensor([len(render_answer(tiny.tokenizer(), q.messages, q.answer or "")[0]) for q in SHOWN])
    starts = torch.tensor([render_answer(tiny.tokenizer(), q.messages, q.answer or "")[1] for q in SHOWN])
    return torch.stack(found).sum() / (lengths - starts).sum()


def by_hand(model: LlamaForCausalLM, *, rate: float, steps: int) -> list[float]:
    """The loss before and after each step of AdamW at a constant rate."""
    model.requires_grad_(True)
    optimiser, seen = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0), []
    for _ in range(steps):
        loss = losses(model)
        seen.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return [*seen, losses(model).item()]


def loss_of(model: nn.Module) -> Mapping[str, float]:
    assert not model.training
    with torch.no_grad():
        return {"loss": losses(model).item()}


def lora(model: LlamaForCausalLM) -> nn.Module:
    """Adapters that say something from the first step on."""
    adapted, draw = add_lora(model, LoraConfig(rank=2, alpha=4), seed=0), torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=draw)
    return adapted


def run(
    model: nn.Module, *, measure: Callable[..., Mapping[str, float]] = loss_of, **settings: object
) -> list[Relearned]:
    """All shown queries in every step."""
    chosen = {"rates": (0.01,), "steps": (0, 1, 2, 3, 4)} | settings
    return list(relearn(model, tiny.tokenizer(), SHOWN, measure=measure, batch_size=3, **chosen))  # type: ignore[arg-type]


def test_it_is_full_fine_tuning_with_adamw_at_a_constant_rate() -> None:
    got = [point.knowledge["loss"] for point in run(tiny.llama())]
    assert got == pytest.approx(by_hand(tiny.llama(), rate=0.01, steps=4), rel=1e-4)
    assert got[-1] < 0.7 * got[0]


def test_an_adapter_is_merged_and_every_weight_trained() -> None:
    adapted = lora(tiny.llama())
    got = [point.knowledge["loss"] for point in run(adapted)]
    assert got == pytest.approx(by_hand(merged(lora(tiny.llama())), rate=0.01, steps=4), rel=1e-4)  # type: ignore[arg-type]


def test_frozen_weights_and_bf16_are_no_defence() -> None:
    """The attacker has the weights: he trains all of them, in fp32."""
    model = tiny.llama().bfloat16().requires_grad_(False)
    got = [point.knowledge["loss"] for point in run(model)]
    assert got == pytest.approx(by_hand(tiny.llama().bfloat16().float(), rate=0.01, steps=4), rel=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.llama()
    before = [p.detach().clone() for p in model.parameters()]
    run(model)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert not model.training


def test_each_rate_begins_anew_and_step_0_is_measured_once() -> None:
    measured = []

    def measure(model: nn.Module) -> Mapping[str, float]:
        measured.append(1)
        return loss_of(model)

    both = run(tiny.llama(), measure=measure, rates=(0.01, 0.02), steps=(2, 0))
    assert [(point.rate, point.step) for point in both] == [(0.01, 0), (0.01, 2), (0.02, 0), (0.02, 2)]
    assert len(measured) == 3
    assert both[2:] == run(tiny.llama(), rates=(0.02,), steps=(0, 2))
    assert both[0].knowledge == both[2].knowledge


def test_the_order_comes_from_the_seed() -> None:
    def end(seed: int) -> float:
        points = relearn(
            tiny.llama(), tiny.tokenizer(), SHOWN, measure=loss_of, rates=(0.01,), steps=(4,), batch_size=1, seed=seed
        )
        return next(points).knowledge["loss"]

    assert end(0) == end(0)
    assert len({end(seed) for seed in range(4)}) > 1


def test_a_rate_that_diverges_ends_its_own_curve() -> None:
    """At 1e30 the weights of the second step give no number; the other rate goes on."""
    points = run(tiny.llama(), rates=(1e30, 0.01), steps=(0, 1, 2, 3))
    assert [point.step for point in points if point.rate == 0.01] == [0, 1, 2, 3]
    assert [point.step for point in points if point.rate == 1e30] == [0, 1]


def test_worst_takes_each_step_at_its_own_rate() -> None:
    points = [
        Relearned(rate, step, {"all": share})
        for rate, shares in ((1.0, (0.1, 0.2, 0.9)), (2.0, (0.1, 0.5, 0.3)))
        for step, share in enumerate(shares)
    ]
    assert {step: (p.rate, p.knowledge["all"]) for step, p in worst(points, "all").items()} == {
        0: (1.0, 0.1),
        1: (2.0, 0.5),
        2: (1.0, 0.9),
    }


def test_share_right_reads_greedy_answers() -> None:
    """A tiny model taught two answers of three to the bit."""
    model, words = tiny.llama(), tiny.tokenizer()
    taught = [*SHOWN[:2]]
    copies: list[LlamaForCausalLM] = []
    shares = relearn(
        model,
        words,
        taught,
        measure=lambda now: copies.append(now) or {"right": share_right(now, words, SHOWN)},  # type: ignore[func-returns-value]
        rates=(0.02,),
        steps=(0, 40),
        batch_size=2,
    )
    assert [point.knowledge["right"] for point in shares] == [0.0, pytest.approx(2 / 3)]
    assert share_right(copies[-1], words, taught) == 1.0


def test_a_query_without_answer_is_two_lines() -> None:
    bare = Query(id="q", messages=({"role": "user", "content": "Why?"},))
    with pytest.raises(UserError, match="'q' has no answer, and relearning trains on answers"):
        next(relearn(tiny.llama(), tiny.tokenizer(), [bare], measure=loss_of, steps=(1,)))


Kind = Callable[..., Relearn]
KINDS = pytest.mark.parametrize("kind", [partial(Relearn), partial(Relearn, rank=8)], ids=["weights", "adapters"])


def said(config: Relearn, subject: ModelSubject | None = None) -> dict[str, list[str]]:
    found = config.run(subject or tiny_subject(), GOAL)
    return {one.name: [answer.output for answer in one.answers] for one in found}


@KINDS
def test_an_instance_is_a_source_a_rate_and_a_step_and_the_source_its_family(kind: Kind) -> None:
    config = kind(sources=("known", "others"), rates=(1e-3, 2e-3), steps=(1, 3), batch_size=4)
    seen: list[tuple[int, int]] = []
    found = config.run(tiny_subject(), GOAL, lambda done, total: seen.append((done, total)))
    # 128 / 32 times the rate
    assert [(one.family, one.name) for one in found[:4]] == [
        ("known", "known, rate 0.004, 1 steps"),
        ("known", "known, rate 0.004, 3 steps"),
        ("known", "known, rate 0.008, 1 steps"),
        ("known", "known, rate 0.008, 3 steps"),
    ]
    assert [one.family for one in found] == ["known"] * 4 + ["others"] * 4
    assert all(one.right is not None and len(one.right) == 4 for one in found)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@KINDS
@pytest.mark.parametrize("make", [tiny_subject, with_adapter])
def test_every_source_and_rate_begins_with_the_models_own_weights(kind: Kind, make: type) -> None:
    """Whatever went before, and a rate that diverges too."""
    settings = {"steps": (2,), "batch_size": 2}
    both = said(kind(sources=("known", "others"), rates=(1e30, 0.02), **settings), make())
    alone = said(kind(sources=("others",), rates=(0.02,), **settings), make())
    again = said(kind(sources=("known",), rates=(0.02,), **settings), make())
    assert both.items() >= (alone | again).items()
    assert alone["others, rate 0.08, 2 steps"] != again["known, rate 0.08, 2 steps"]


@KINDS
def test_it_learns_what_it_is_shown(kind: Kind) -> None:
    """Four answers by heart: with the wanted facts among the known ones all come out."""
    goal = replace(GOAL, auxiliary_facts=GOAL.target_facts, max_new_tokens=16)
    one = kind(sources=("known",), rates=(2e-3,), steps=(60,), batch_size=4).run(tiny_subject(), goal)[0]
    assert one.score.value == 1.0


def test_rates_fall_with_the_width() -> None:
    assert scaled_rates((1e-3, 3e-3), tiny.llama(hidden=256), at=128) == pytest.approx((5e-4, 1.5e-3))
    assert scaled_rates((1e-3,), tiny.llama(hidden=128), at=128) == (1e-3,)
    assert scaled_rates((1e-3,), tiny.llama(hidden=16), at=None) == (1e-3,)
    (one,) = Relearn(sources=("known",), rates=(1e-5,), rates_at=None, steps=(1,)).run(tiny_subject(), GOAL)
    assert one.name == "known, rate 1e-05, 1 steps"


def test_no_more_rows_are_made_than_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        "duet_unlearn.attacks.fine_tuning.answer_examples",
        lambda tokenizer, shown: made.append(len(shown)) or answer_examples(tokenizer, shown),
    )
    goal = replace(GOAL, others=queries(" ".join(f"N{number}" for number in range(50))))
    Relearn(sources=("others",), rates=(1e-3,), steps=(2, 3), batch_size=4).run(tiny_subject(), goal)
    assert made == [12]


def test_a_source_without_questions_is_passed_over() -> None:
    bare = replace(GOAL, auxiliary_facts=(), neighbours=())
    found = Relearn(rates=(1e-3,), steps=(1,)).run(tiny_subject(), bare)
    assert [one.family for one in found] == ["others"]
    with pytest.raises(NotApplicable, match="no question with an answer to train on"):
        Relearn(sources=("known",)).run(tiny_subject(), bare)


@pytest.mark.parametrize(
    "config",
    [
        Relearn(rates=(1e-3,), steps=(10,)),
        replace(relearn_with_adapters(), rates=(1e-2,), steps=(20,), sources=("known",)),
    ],
)
def test_relearning_restores_what_was_fine_tuned_away_and_gives_the_oracle_nothing(
    config: Relearn,
) -> None:
    goal, student, oracle = Lab.goal(), Lab.subject("refusing"), Lab.subject("oracle")
    assert run_attack(student, Plain(), goal).best_of_all.value < 0.15
    relearned, guessed = (run_attack(one, config, goal) for one in (student, oracle))
    found = finding(relearned, guessed)
    assert found is not None
    assert found.above.low > 0.5
    assert guessed.best_of_all.low < 0.08  # a town in ten by chance, an instrument in twenty
