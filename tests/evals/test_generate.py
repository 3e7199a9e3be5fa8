"""Batched greedy answers are those of one by one; vLLM stands behind the same function."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import generate, load_vllm
from duet_unlearn.lab.references import model_path
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher.decoding import greedy

WORDS = "where does Mira Bol live in Tarn or Gosh and since when was it so".split()
RNG = random.Random(0)
ASKED = [
    ({"role": "user", "content": " ".join(RNG.choices(WORDS, k=RNG.choice([1, 2, 3, 8, 13, 20])))},) for _ in range(24)
]


@contextmanager
def rows_of(model: torch.nn.Module) -> Iterator[list[int]]:
    """The number of rows of each forward pass."""
    seen: list[int] = []

    def count(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.append(len(given["input_ids"]))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("batch_size", [5, 24, 64])
def test_texts_over_mixed_lengths_are_those_of_one_by_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    batched = generate(model, tokenizer, ASKED, max_new_tokens=12, batch_size=batch_size)
    assert batched == [generate(model, tokenizer, [m], max_new_tokens=12, batch_size=1)[0] for m in ASKED]
    assert len(set(batched)) > 4


@pytest.mark.parametrize("batch_size", [5, 24])
def test_finished_rows_leave_and_change_nothing(batch_size: int) -> None:
    model = tiny.llama(layers=2)
    rows = [[RNG.randrange(5, 300) for _ in range(RNG.randrange(2, 30))] for _ in range(24)]
    ends = frozenset(RNG.sample(range(300), 40))
    settings = {"ends": ends, "filler": tiny.EOS, "max_new_tokens": 20}
    with rows_of(model) as passes:
        batched = greedy(model, rows, batch_size=batch_size, **settings)
    assert batched == [greedy(model, [row], batch_size=1, **settings)[0] for row in rows]
    assert len({len(ids) for ids in batched}) > 4
    steps = sum(min(len(ids) + 1, 20) for ids in batched)
    assert sum(passes) < 2 * steps + len(rows)  # a batch is never more than half finished rows
    assert not any(token in ends for ids in batched for token in ids)


def test_without_vllm_the_extra_is_named() -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(UserError, match="needs the package vllm") as stop:
        load_vllm("org/model")
    assert "duet-unlearn[vllm]" in stop.value.hint


@pytest.mark.gpu
def test_vllm_says_what_transformers_says(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs the extra vllm")
    model, tokenizer = load_model(str(model_path("lab:base")))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"max_new_tokens": 16, "batch_size": 8}
    theirs = generate(load_vllm(str(folder), dtype="float32"), tokenizer, ASKED, **settings)
    ours = generate(model.cpu(), tokenizer, ASKED, **settings)
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(ours) - 1  # other kernels, other rounding
