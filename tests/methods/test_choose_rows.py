"""The inner search against a forward pass a row, and what it leaves for a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from duet_unlearn.data.examples import Example
from duet_unlearn.methods.bidirectional import choose_rows, forbidden_logps


def row(key: str, *, pool: str | None, forbidden: tuple[int, ...], ids: tuple[int, ...]) -> Example:
    """Two positions, of which the first is the one behind the opening."""
    return Example((*ids, 9), (len(ids) - 1, len(ids)), None, "attack", key, pool=pool, forbidden=forbidden)


def rows() -> list[Example]:
    """Three pools: two that are searched, of unlike lengths, and one that is not."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, tiny.VOCABULARY, (count,), generator=draw).tolist())

    searched = [
        row(f"{pool}/{n}", pool=pool, forbidden=tokens(1 + n % 4), ids=tokens(3 + 5 * n))
        for pool, size in (("a", 6), ("b", 3))
        for n in range(size)
    ]
    drawn = [row(f"c/{n}", pool="c", forbidden=(), ids=tokens(4)) for n in range(40)]
    return [row("plain", pool=None, forbidden=(), ids=tokens(3)), *searched, *drawn]


@torch.no_grad()
def brute_force(model: nn.Module, example: Example) -> float:
    """Mean log-probability of the forbidden tokens, asked one by one."""
    ids, logps = list(example.ids[: example.positions[0] + 1]), []
    for token in example.forbidden:
        logps.append(model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
        ids.append(token)
    return sum(logps) / len(logps)


def scores(model: nn.Module, examples: Sequence[Example]) -> list[float]:
    return forbidden_logps(model, examples, precision="fp32", pad_id=tiny.EOS)


def test_scores_are_those_of_a_pass_a_row() -> None:
    model, examples = tiny.llama(), [example for example in rows() if example.forbidden]
    assert scores(model, examples) == pytest.approx([brute_force(model, example) for example in examples], rel=1e-4)


def test_scoring_leaves_the_model_as_it_was() -> None:
    """Dropout, which training has on, is off; no gradient is left; no random number is used."""
    model, examples = tiny.llama(), [example for example in rows() if example.forbidden]
    model.train()
    state = torch.get_rng_state()
    scores(model, examples)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_each_pool_the_strongest_is_picked(tmp_path: Path, seed: int) -> None:
    model, examples = tiny.llama(seed=seed), rows()
    pick = choose_rows(examples, scores=lambda some: scores(model, some), folder=tmp_path, seed=0)
    best = {
        max((e for e in examples if e.pool == pool), key=lambda e: brute_force(model, e)).key for pool in ("a", "b")
    }
    picked = pick(0)
    assert best < picked
    (other,) = picked - best
    assert other.startswith("c/")


def test_of_equals_the_first_and_without_forbidden_words_a_new_one_each_epoch(tmp_path: Path) -> None:
    pick = choose_rows(rows(), scores=lambda some: [0.0] * len(some), folder=tmp_path, seed=0)
    picked = [pick(epoch) for epoch in range(5)]
    assert all({"a/0", "b/0"} < one for one in picked)
    drawn = [key for one in picked for key in one if key.startswith("c/")]
    assert len(set(drawn)) > 2
    other = choose_rows(rows(), scores=lambda some: [0.0] * len(some), folder=tmp_path / "again", seed=0)
    assert [other(epoch) for epoch in range(5)] == picked


def test_a_run_that_goes_on_takes_what_was_chosen_then(tmp_path: Path) -> None:
    """Another student would choose otherwise, and is not asked."""
    chosen = choose_rows(
        rows(), scores=lambda some: [float(e.key.endswith("2")) for e in some], folder=tmp_path, seed=0
    )(3)
    assert {"a/2", "b/2"} < chosen
    assert sorted(json.loads((tmp_path / "epoch-0003.json").read_text()).values()) == sorted(chosen)

    def never(some: Sequence[Example]) -> list[float]:
        raise AssertionError("it was chosen already")

    assert choose_rows(rows(), scores=never, folder=tmp_path, seed=0)(3) == chosen
    with pytest.raises(AssertionError, match="chosen already"):
        choose_rows(rows(), scores=never, folder=tmp_path, seed=0)(4)
