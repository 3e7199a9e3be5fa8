"""What is read from hidden states: the right ones, by the model's own head or by a fitted map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor
from whitebox import GOAL, TOWNS, Lab, query, tiny_subject

from duet_unlearn.attacks import NotApplicable, attack, finding
from duet_unlearn.attacks.hidden import (
    LogitLens,
    Opened,
    Probe,
    first_blocks,
    last_hidden,
    logits_behind,
    nearest,
    opened,
    ridge,
    spread,
)
from duet_unlearn.data.prompts import render

ROWS = [[0, 5, 6, 7], [0, 40, 41, 42, 43, 44, 45], [0, 9]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# What is read --------------------------------------------------------------------------------------------------------


def test_last_hidden_is_what_transformers_calls_hidden_states() -> None:
    """Each row alone and without padding; what transformers gives of the last block has gone through the norm."""
    subject = tiny_subject(layers=3)
    got = last_hidden(subject, ROWS, 2)
    assert got.shape == (3, 3, 32)
    for place, row in enumerate(ROWS):
        with torch.no_grad():
            states = subject.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
            normed = subject.model.model.norm(got[2, place])
        torch.testing.assert_close(got[0, place], states[1][0, -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got[1, place], states[2][0, -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(normed, states[3][0, -1], atol=1e-5, rtol=1e-4)


def test_the_lens_is_final_norm_and_head_on_a_blocks_output() -> None:
    subject = tiny_subject(layers=3)
    model, hidden = subject.model, last_hidden(subject, ROWS, 8)
    for count in (1, 2, 3):
        with first_blocks(model, count):
            got = logits_behind(subject, ROWS, 2)
        with torch.no_grad():
            torch.testing.assert_close(got, model.lm_head(model.model.norm(hidden[count - 1])), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(got[1], model(input_ids=torch.tensor([ROWS[1]])).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_the_blocks_come_back_whatever_happens() -> None:
    model = tiny_subject(layers=3).model
    before = list(model.model.layers)
    with first_blocks(model, 1):
        assert list(model.model.layers) == before[:1]
    with pytest.raises(RuntimeError, match="stop"), first_blocks(model, 1):
        raise RuntimeError("stop")
    assert list(model.model.layers) == before


@pytest.mark.parametrize(
    ("depth", "count", "numbers"),
    [(4, None, [1, 2, 3, 4]), (4, 2, [2, 4]), (32, 4, [8, 16, 24, 32]), (4, 9, [1, 2, 3, 4]), (5, 2, [2, 5])],
)
def test_blocks_are_spread_evenly_up_to_the_last(depth: int, count: int | None, numbers: list[int]) -> None:
    assert spread(depth, count) == numbers


def test_an_answer_is_opened_up_to_its_value() -> None:
    words = tiny.tokenizer()
    one = opened(words, query("Ada", "Gosh"))
    assert one is not None
    assert one.prompt == render(words, query("Ada", "Gosh").messages)
    assert one.ids[: len(one.prompt)] == one.prompt
    assert words.decode(one.ids[len(one.prompt) :]) == one.head
    assert one.head == "Ada is in ("
    assert list(one.tokens) == list(TOWNS)
    assert len({*one.tokens.values()}) == 4
    assert [words.decode([token])[0] for token in one.tokens.values()] == ["T", "G", "L", "M"]


@pytest.mark.parametrize(
    "one",
    [
        query("Ada", "Gosh", None),
        replace(query("Ada", "Gosh"), answer="She is there."),
        query("Ada", "Gosh", ("Tarn", "Gosh", "Gost")),  # G is the value's and another's
        query("Ada", "Gosh", ("Gosh",)),
    ],
)
def test_a_value_that_cannot_be_told_by_one_token_is_left_out(one: object) -> None:
    assert opened(tiny.tokenizer(), one) is None  # type: ignore[arg-type]


# The probe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 60])
def test_ridge_is_scikit_learns(size: int) -> None:
    """Fewer rows than features, and more."""
    from sklearn.linear_model import Ridge

    known, targets, rows = normal(size, 30), normal(size, 4, seed=1), normal(5, 30, seed=2)
    centred = known - known.mean(0)
    alpha = 0.1 * centred.square().sum(1).mean().item()
    got = ridge(known, targets, rows, penalty=0.1, groups=range(size))
    expected = Ridge(alpha=alpha).fit(known.numpy(), targets.numpy()).predict(rows.numpy())
    torch.testing.assert_close(got.rows_ND, torch.from_numpy(expected))
    for place in (0, size - 1):
        rest = [number for number in range(size) if number != place]
        away = (targets - targets.mean(0))[rest]
        one = Ridge(alpha=alpha, fit_intercept=False).fit(centred[rest].numpy(), away.numpy())
        left_out = torch.from_numpy(one.predict(centred[place : place + 1].numpy()))[0] + targets.mean(0)
        torch.testing.assert_close(got.left_out_ME[place], left_out)


def test_wordings_of_one_fact_are_left_out_together() -> None:
    """By fits without them, groups of one, two and three."""
    from sklearn.linear_model import Ridge

    known, targets = normal(12, 30), normal(12, 4, seed=1)
    groups = list("abbcdddeffgh")
    centred, mean = known - known.mean(0), targets.mean(0)
    alpha = 0.1 * centred.square().sum(1).mean().item()
    got = ridge(known, targets, known, penalty=0.1, groups=groups).left_out_ME
    for group in "abdh":
        rest = [n for n, other in enumerate(groups) if other != group]
        own = [n for n, other in enumerate(groups) if other == group]
        fit = Ridge(alpha=alpha, fit_intercept=False).fit(centred[rest].numpy(), (targets - mean)[rest].numpy())
        torch.testing.assert_close(got[own], torch.from_numpy(fit.predict(centred[own].numpy())).reshape(-1, 4) + mean)


def test_two_wordings_are_about_one_fact() -> None:
    words, other = tiny.tokenizer(), ({"role": "user", "content": "Ada's town?"},)
    one, two, three = (
        opened(words, q)
        for q in (query("Ada", "Gosh"), replace(query("Ada", "Gosh"), id="x", messages=other), query("Bo", "Gosh"))
    )
    assert one
    assert two
    assert three
    assert one.about == two.about != three.about


def test_a_linear_code_that_was_planted_is_read_and_one_that_was_not_is_not() -> None:
    """States that hold the value's vector in a subspace of their own, under noise of the same size."""
    head, draw = normal(20, 16), torch.Generator().manual_seed(5)
    facts = [
        Opened(
            [0],
            [0],
            "",
            {str(v): v for v in range(10 * (n % 2), 10 * (n % 2) + 10)},
            str(10 * (n % 2) + n // 2 % 10),
            n,
        )
        for n in range(200)
    ]
    values = torch.tensor([one.tokens[one.value] for one in facts])
    code = head[values] @ normal(16, 64, seed=1) + 4 * torch.randn(200, 64, generator=draw, dtype=torch.float64)
    mixed = code[torch.randperm(200, generator=draw)]

    def share(states: Tensor) -> float:
        targets = head[values[:120]]
        fit = ridge(states[:120], targets, states[120:], penalty=0.01, groups=range(120))
        told = nearest(fit.rows_ND, facts[120:], head, targets.mean(0))
        return sum(value == one.value for value, one in zip(told, facts[120:], strict=True)) / 80

    assert share(code) > 0.8
    assert share(mixed) < 0.25  # one of ten


def test_nearest_is_by_angle_among_a_facts_own_choices() -> None:
    head = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.7, 0.7]])
    facts = [Opened([], [], "", {"a": 0, "b": 1}, "a", 0), Opened([], [], "", {"b": 1, "c": 2}, "b", 1)]
    outputs = torch.tensor([[1.0, 0.9], [-1.0, 0.9]], dtype=torch.float64)
    assert nearest(outputs, facts, head, torch.zeros(2, dtype=torch.float64)) == ["a", "c"]  # not "b", the longest


# What is found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LogitLens(), Probe()], ids=["logit-lens", "probe"])
def test_without_choices_nothing_can_be_told(config: LogitLens | Probe) -> None:
    bare = replace(GOAL, wanted=tuple(replace(one, choices=None) for one in GOAL.wanted))
    with pytest.raises(NotApplicable, match="choices"):
        config.carry_out(tiny_subject(), bare)


def test_a_fact_that_cannot_be_told_is_not_counted() -> None:
    goal = replace(GOAL, wanted=(GOAL.wanted[0], replace(GOAL.wanted[1], choices=None), *GOAL.wanted[2:]))
    for config in (LogitLens(), Probe()):
        for one in config.carry_out(tiny_subject(), goal):
            assert one.right is not None
            assert [mark is None for mark in one.right] == [False, True, False, False]
            assert one.score.n == 3


def test_refused_facts_stand_in_the_hidden_states_and_not_in_the_oracles() -> None:
    goal = Lab.goal()
    lens = [attack(Lab.subject(one), LogitLens(), goal) for one in ("refusing", "oracle")]
    probe = [attack(Lab.subject(one), Probe(layers=2), goal) for one in ("refusing", "oracle")]
    for student, oracle in (lens, probe):
        found = finding(student, oracle)
        assert found is not None
        assert found.above.low > 0.2
        for one in oracle.instances:
            assert one.score.value < one.numbers["chance"] + 0.1
    assert {one.family for one in probe[0].instances} == {"prompt", "value"}
    assert lens[0].strongest is not None
    assert lens[0].strongest.score.value > 0.8
