"""Greedy decoding against transformers' own, and the small helpers around it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import GenerationConfig

from duet_unlearn.data.prompts import render
from duet_unlearn.teacher.decoding import end_ids, evaluating, greedy, pad_id
from duet_unlearn.teacher.shared import next_logits
from duet_unlearn.tensors import batches

ROWS = [
    render(tiny.tokenizer(), [{"role": "user", "content": text}])
    for text in ("Where?", "Where does Mira Bol live, and since when?", "Mira", "Is it Tarn?")
]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_greedy_is_transformers_generate(batch_size: int) -> None:
    model = tiny.llama(layers=2)
    got = greedy(
        model, ROWS, eos_ids=frozenset({tiny.EOS}), padding_id=tiny.EOS, max_new_tokens=5, batch_size=batch_size
    )
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=tiny.EOS, eos_token_id=tiny.EOS)
    for row, new in zip(ROWS, got, strict=True):
        mask = torch.ones(1, len(row), dtype=torch.long)
        ids = model.generate(torch.tensor([row]), attention_mask=mask, generation_config=settings)[0].tolist()
        assert new == [token for token in ids[len(row) :] if token != tiny.EOS]


def test_nothing_is_decoded_where_nothing_is_asked() -> None:
    model = tiny.llama()
    assert greedy(model, ROWS, eos_ids=frozenset(), padding_id=0, max_new_tokens=0, batch_size=2) == [[]] * 4
    assert greedy(model, [], eos_ids=frozenset(), padding_id=0, max_new_tokens=3, batch_size=2) == []


def test_a_first_token_that_ends_is_an_empty_answer() -> None:
    model = tiny.llama()
    first = greedy(model, ROWS[:1], eos_ids=frozenset(), padding_id=0, max_new_tokens=1, batch_size=1)[0][0]
    assert greedy(model, ROWS[:1], eos_ids=frozenset({first}), padding_id=0, max_new_tokens=4, batch_size=1) == [[]]


@torch.no_grad()
def test_next_logits_belong_to_their_rows() -> None:
    model, seen = tiny.llama(), []
    for indices, logits_BV in next_logits(model, ROWS, padding_id=tiny.EOS, batch_size=3):
        for index, logits_V in zip(indices, logits_BV, strict=True):
            expected = model(input_ids=torch.tensor([ROWS[index]])).logits[0, -1]
            torch.testing.assert_close(logits_V, expected, rtol=1e-4, atol=1e-5)
        seen += indices
    assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_puts_the_mode_back_even_after_an_error(training: bool) -> None:
    model, inside = tiny.llama().train(training), []

    def stop() -> None:
        with evaluating(model):
            inside.append((model.training, torch.is_grad_enabled()))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert inside == [(False, False)]
    assert model.training is training
    assert torch.is_grad_enabled()


def test_batches_are_bounded_by_rows_and_by_tokens() -> None:
    lengths = [3, 50, 4, 50, 3]
    got = list(batches(lengths, batch_size=3, token_budget=100))
    assert got == [[1, 3], [2, 0, 4]]
    assert list(batches([500, 1], batch_size=8, token_budget=100)) == [[0], [1]]  # a long row goes alone


def test_every_end_of_an_answer_counts() -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    assert end_ids(model, tokenizer) == {tiny.EOS}
    model.generation_config.eos_token_id = [7, 9]  # as Llama 3
    assert end_ids(model, tokenizer) == {7, 9, tiny.EOS}
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<|user|>' }}{% endfor %}"  # as Gemma ends turns
    )
    assert end_ids(model, tokenizer) == {7, 9, tiny.EOS, tokenizer.convert_tokens_to_ids("<|user|>")}


def test_rows_can_be_filled_without_a_pad_token() -> None:
    for pad, eos, expected in ((5, 1, 5), (0, 1, 0), (None, 1, 1), (None, None, 0)):
        assert pad_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected  # type: ignore[arg-type]
