"""Rows that begin alike: the logits are those of one row at a time, and what is shared is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from duet_unlearn.teacher import decoding, shared
from duet_unlearn.teacher.decoding import greedy
from duet_unlearn.teacher.shared import answer_logits, next_logits, shared_prefixes, shares

DRAW = torch.Generator().manual_seed(0)


def ids(length: int) -> list[int]:
    return torch.randint(5, tiny.VOCABULARY, (length,), generator=DRAW).tolist()


LEADS = [ids(30), ids(20)]
QUESTIONS = [[*lead, *ids(length)] for lead in LEADS for length in (3, 9, 1, 5)] + [ids(7), ids(2)]
"""Two subjects of four questions each, and two questions of none."""


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=300, **sizes, initializer_range=0.4, bos_token_id=0, eos_token_id=1)
    ).eval()


def mistral() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return MistralForCausalLM(config).eval()


def gpt_neo() -> PreTrainedModel:
    """Its second layer looks back four tokens, by its mask: the cache does not tell."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=128,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPTNeoForCausalLM(config).eval()


def mpt() -> PreTrainedModel:
    """Its ALiBi counts columns of keys, padding among them."""
    torch.manual_seed(0)
    config = MptConfig(
        vocab_size=300, d_model=16, n_layers=2, n_heads=2, max_seq_len=128, initializer_range=0.4, bos_token_id=0
    )
    return MptForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def any_lead_pays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shared, "PREFIX_SAVES", 10)
    monkeypatch.setattr(decoding, "PREFIX_SAVES", 10)
    with torch.no_grad():
        yield


@contextmanager
def tokens_of(model: PreTrainedModel) -> Iterator[list[int]]:
    """The number of tokens, padding included, of each forward pass."""
    seen: list[int] = []

    def count(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.append(given["input_ids"].numel())

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def alone(model: PreTrainedModel, row: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([row])).logits[0]


@pytest.mark.parametrize(
    "make",
    [lambda: tiny.llama(layers=2), gpt2, mistral, gpt_neo, mpt],
    ids=["llama", "gpt2", "sliding", "local", "alibi"],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_next_logits_are_those_of_one_row_at_a_time(make: Any, batch_size: int) -> None:
    model, seen = make(), []
    for indices, logits_BV in next_logits(model, QUESTIONS, padding_id=1, batch_size=batch_size):
        for index, logits_V in zip(indices, logits_BV, strict=True):
            torch.testing.assert_close(logits_V, alone(model, QUESTIONS[index])[-1], rtol=1e-4, atol=1e-4)
        seen += indices
    assert sorted(seen) == list(range(len(QUESTIONS)))


@pytest.mark.parametrize(
    "make",
    [lambda: tiny.llama(layers=2), gpt2, mistral, gpt_neo, mpt],
    ids=["llama", "gpt2", "sliding", "local", "alibi"],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("num_answers", [1, 3])
def test_answer_logits_are_those_of_one_row_at_a_time(make: Any, batch_size: int, num_answers: int) -> None:
    model, lengths = make(), (1, 4, 2)
    rows = [([*q, *ids(length)], len(q)) for q in QUESTIONS for length in lengths[:num_answers]]
    rows.append((QUESTIONS[0], len(QUESTIONS[0])))  # an empty answer is in no batch
    seen: list[int] = []
    for indices, answers in answer_logits(model, rows, padding_id=1, batch_size=batch_size):
        for place, index in enumerate(indices):
            row, start = rows[index]
            mine = answers.rows_N == place
            assert answers.labels_N[mine].tolist() == row[start:]
            expected = alone(model, row)[start - 1 : len(row) - 1]
            torch.testing.assert_close(answers.logits_NV[mine], expected, rtol=1e-4, atol=1e-4)
        seen += indices
    assert sorted(seen) == list(range(len(rows) - 1))


@pytest.mark.parametrize(
    "make",
    [lambda: tiny.llama(layers=2), gpt2, mistral, gpt_neo, mpt],
    ids=["llama", "gpt2", "sliding", "local", "alibi"],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_answers_are_those_of_one_row_at_a_time(make: Any, batch_size: int) -> None:
    model, eos_ids = make(), frozenset({7, 8, 9, 10})
    got = greedy(model, QUESTIONS, eos_ids=eos_ids, padding_id=1, max_new_tokens=8, batch_size=batch_size)
    for row, said in zip(QUESTIONS, got, strict=True):
        whole, expected = list(row), []
        while len(expected) < 8 and (token := int(alone(model, whole)[-1].argmax())) not in eos_ids:
            expected.append(token)
            whole.append(token)
        assert said == expected


def test_greedy_answers_compute_a_lead_once() -> None:
    model = tiny.llama()
    with tokens_of(model) as tokens:
        greedy(model, QUESTIONS[:4], eos_ids=frozenset(), padding_id=1, max_new_tokens=3, batch_size=2)
    assert tokens[:2] == [1, 30]
    assert tokens[2:] == [2 * 9, 2, 2, 2 * 3, 2, 2]


def test_a_lead_is_computed_once() -> None:
    model = tiny.llama()
    with tokens_of(model) as tokens:
        list(next_logits(model, QUESTIONS[:4], padding_id=1, batch_size=2))
    lead, *batches = tokens[1:]  # the first pass asks what kind of model it is
    assert tokens[0] == 1
    assert lead == 30
    assert batches == [2 * 9, 2 * 3]


def test_a_prompt_is_computed_once_for_all_its_answers() -> None:
    model, prompt = tiny.llama(), ids(25)
    rows = [([*prompt, *ids(length)], 25) for length in (3, 1, 2)]
    with tokens_of(model) as tokens:
        list(answer_logits(model, rows, padding_id=1, batch_size=8))
    assert tokens[1:] == [25, 2 * 2]  # an answer's last token predicts nothing, and its first needs no pass


def test_a_window_is_computed_row_by_row() -> None:
    model = mistral()
    with tokens_of(model) as tokens:
        list(next_logits(model, QUESTIONS[:4], padding_id=1, batch_size=8))
    assert tokens == [1, 4 * 39]


def test_which_models_share() -> None:
    assert shares(tiny.llama())
    assert shares(gpt2())
    assert not shares(mistral())
    assert not shares(gpt_neo())
    assert not shares(mpt())
    moving = tiny.llama()
    moving.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not shares(moving)


def test_leads_save_most() -> None:
    a, b, c = [1] * 20, [2] * 20, [1] * 20 + [3] * 30
    rows = [[*a, 5], [*b, 6], [*a, 7], [*c, 8], [*b, 9], [*c, 1], [*c, 2], [4]]
    limits = [len(row) - 1 for row in rows]
    got = shared_prefixes(rows, limits, saves=10)
    assert sorted((lead, sorted(members)) for lead, members in got) == [
        (0, [7]),
        (20, [0, 2]),
        (20, [1, 4]),
        (50, [3, 5, 6]),
    ]


def test_a_lead_ends_before_the_first_wanted_column() -> None:
    rows = [[7] * 40] * 3
    assert shared_prefixes(rows, [39, 39, 39], saves=10) == [(39, [0, 1, 2])]
    assert shared_prefixes(rows, [30, 39, 35], saves=10) == [(30, [0, 2, 1])]
    assert shared_prefixes(rows, [0, 0, 0], saves=10) == [(0, [0, 1, 2])]
    assert shared_prefixes([], [], saves=10) == []


def test_rows_that_grow_token_by_token_are_no_deep_recursion() -> None:
    row = ids(1500)
    rows = [row[:stop] for stop in range(1, 1500)]
    groups = shared_prefixes(rows, [len(r) - 1 for r in rows], saves=10)
    assert sorted(index for _, members in groups for index in members) == list(range(1499))
