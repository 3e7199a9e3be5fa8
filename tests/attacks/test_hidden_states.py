"""What is read from hidden states, by the model's own head or by a fitted map; and the direction along which a model
refuses, taken out wherever it is read or written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor, nn
from whitebox import GOAL, TOWNS, Lab, gpt2, query, tiny_subject

from duet_unlearn.attacks import NotApplicable, finding, run_attack
from duet_unlearn.attacks.attack_base import Plain
from duet_unlearn.attacks.hidden_states import (
    LogitLens,
    OpenedAnswer,
    Probe,
    RefusalDirection,
    direction_removed,
    first_blocks,
    last_hidden,
    logits_behind,
    nearest_choices,
    open_answer,
    outputs_of,
    probe_values,
    ridge_left_out,
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
    one = open_answer(words, query("Ada", "Gosh"))
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
    assert open_answer(tiny.tokenizer(), one) is None  # type: ignore[arg-type]


# The probe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "features"), [("abcdefghijkl", 30), ("abbcdddeffgh", 30), ("abbcdddeffgh", 5)])
def test_facts_are_left_out_as_scikit_learns_fits_without_them(groups: str, features: int) -> None:
    """All wordings of a fact together, groups of one, two and three; fewer rows than features, and more."""
    from sklearn.linear_model import Ridge

    states, targets = normal(12, features), normal(12, 4, seed=1)
    centred, mean, alpha = states - states.mean(0), targets.mean(0), 3.0
    got = ridge_left_out(states, targets, alpha, groups)
    for group in set(groups):
        rest = [n for n, other in enumerate(groups) if other != group]
        own = [n for n, other in enumerate(groups) if other == group]
        fit = Ridge(alpha=alpha, fit_intercept=False).fit(centred[rest].numpy(), (targets - mean)[rest].numpy())
        torch.testing.assert_close(got[own], torch.from_numpy(fit.predict(centred[own].numpy())).reshape(-1, 4) + mean)


def test_two_wordings_are_about_one_fact() -> None:
    words, other = tiny.tokenizer(), ({"role": "user", "content": "Ada's town?"},)
    one, two, three = (
        open_answer(words, q)
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
        OpenedAnswer(
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
        told, _ = probe_values(states, facts[:120], facts[120:], head)
        return sum(value == one.value for value, one in zip(told, facts[120:], strict=True)) / 80

    assert share(code) > 0.8
    assert share(mixed) < 0.25  # one of ten


def test_nearest_is_by_angle_among_a_facts_own_choices() -> None:
    head = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.7, 0.7]])
    facts = [OpenedAnswer([], [], "", {"a": 0, "b": 1}, "a", 0), OpenedAnswer([], [], "", {"b": 1, "c": 2}, "b", 1)]
    outputs = torch.tensor([[1.0, 0.9], [-1.0, 0.9]], dtype=torch.float64)
    assert nearest_choices(outputs, facts, head, torch.zeros(2, dtype=torch.float64)) == [
        "a",
        "c",
    ]  # not "b", the longest


# What is found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LogitLens(), Probe()], ids=["logit-lens", "probe"])
def test_without_choices_nothing_can_be_told(config: LogitLens | Probe) -> None:
    bare = replace(GOAL, target_facts=tuple(replace(one, choices=None) for one in GOAL.target_facts))
    with pytest.raises(NotApplicable, match="choices"):
        config.run(tiny_subject(), bare)


def test_a_fact_that_cannot_be_told_is_not_counted() -> None:
    goal = replace(
        GOAL, target_facts=(GOAL.target_facts[0], replace(GOAL.target_facts[1], choices=None), *GOAL.target_facts[2:])
    )
    for config in (LogitLens(), Probe()):
        for one in config.run(tiny_subject(), goal):
            assert one.right is not None
            assert [mark is None for mark in one.right] == [False, True, False, False]
            assert one.score.n == 3


def test_refused_facts_stand_in_the_hidden_states_and_not_in_the_oracles() -> None:
    goal = Lab.goal()
    lens = [run_attack(Lab.subject(one), LogitLens(), goal) for one in ("refusing", "oracle")]
    probe = [run_attack(Lab.subject(one), Probe(layers=2), goal) for one in ("refusing", "oracle")]
    for student, oracle in (lens, probe):
        found = finding(student, oracle)
        assert found is not None
        assert found.above.low > 0.2
        for one in oracle.instances:
            assert one.score.value < one.numbers["chance"] + 0.1
    assert {one.family for one in probe[0].instances} == {"prompt", "value"}
    assert lens[0].strongest is not None
    assert lens[0].strongest.score.value > 0.8


IDS = torch.tensor([[5, 6, 7, 8, 9, 30, 31]])


def unit(size: int) -> Tensor:
    return nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(2)), dim=0)


@torch.no_grad()
def taken_out_of_weights_llama(model: nn.Module, direction: Tensor) -> None:
    """W - d d^T W of everything that writes to the stream."""
    inner = model.model
    inner.embed_tokens.weight -= torch.outer(inner.embed_tokens.weight @ direction, direction)
    for block in inner.layers:
        for layer in (block.self_attn.o_proj, block.mlp.down_proj):
            layer.weight -= torch.outer(direction, direction @ layer.weight)


@torch.no_grad()
def taken_out_of_weights_gpt2(model: nn.Module, direction: Tensor) -> None:
    """Places and biases too; weights lie transposed, and the head keeps what the embeddings lose."""
    inner = model.transformer
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    for table in (inner.wte, inner.wpe):
        table.weight -= torch.outer(table.weight @ direction, direction)
    for block in inner.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight -= torch.outer(layer.weight @ direction, direction)
            layer.bias -= (layer.bias @ direction) * direction


@pytest.mark.parametrize(
    ("make", "take_out"),
    [(lambda: tiny_subject().model, taken_out_of_weights_llama), (gpt2, taken_out_of_weights_gpt2)],
    ids=["llama", "gpt-2"],
)
def test_hooks_do_what_orthogonal_weights_do(make: object, take_out: object) -> None:
    """arXiv 2406.11717, equation 5. The final norm of Llama reads what the last block hands on."""
    hooked, changed = make(), make()  # type: ignore[operator]
    direction = unit(hooked.config.hidden_size)
    with torch.no_grad():
        before = hooked(input_ids=IDS).logits
        with direction_removed(hooked, 3 * direction), outputs_of(hooked) as outputs:
            got = hooked(input_ids=IDS).logits
        take_out(changed, direction)  # type: ignore[operator]
        torch.testing.assert_close(got, changed(input_ids=IDS).logits, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(got, before, atol=1e-2)
        for output in outputs:
            assert (output @ direction).abs().max() < 1e-5 * output.norm(dim=-1).max()
        assert hooked(input_ids=IDS).logits.equal(before)


def test_a_direction_of_nothing_takes_nothing_out() -> None:
    model = tiny_subject().model
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        with direction_removed(model, torch.zeros(32)):
            assert model(input_ids=IDS).logits.equal(before)


def test_a_model_that_refuses_nothing_is_asked_plainly() -> None:
    (one,) = RefusalDirection().run(tiny_subject(), GOAL)
    assert one.name == "no direction: 0 refused, 8 answered"
    assert one.score == run_attack(tiny_subject(), Plain(), GOAL).instances[0].score
    with pytest.raises(NotApplicable, match="no question about anything else"):
        RefusalDirection().run(Lab.subject("refusing"), replace(Lab.goal(), neighbours=(), others=()))


def test_a_refusal_along_one_direction_goes_with_it_and_the_oracle_has_nothing_to_tell() -> None:
    """The adapter writes behind block 3, so that block's direction finds it best."""
    goal = Lab.goal()
    student, oracle = (run_attack(Lab.subject(one), RefusalDirection(), goal) for one in ("one-direction", "oracle"))
    assert run_attack(Lab.subject("one-direction"), Plain(), goal).best_of_all.value < 0.1
    assert [one.name for one in student.instances] == [f"direction behind block {n} of 4" for n in (1, 2, 3, 4)]
    assert student.instances[0].numbers["refused"] > 50
    found = finding(student, oracle)
    assert found is not None
    assert found.instance.name == "direction behind block 3 of 4"
    assert found.above.low > 0.4
    assert oracle.best_of_all.low < 0.1
