"""Subtracted logits against numbers by hand and against two models asked by themselves, one prompt at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from duet_unlearn.data.prompts import answer_ids, render, turn_end
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.methods.uld import _joined, first_layers, share_ends, subtract, subtracting
from duet_unlearn.teacher import decoding, shared
from duet_unlearn.teacher.decoding import end_ids, greedy

ASKED = [
    ({"role": "user", "content": text},)
    for text in ("Tarn?", "Where does Mira Bol live, and since when?", "Mira", "Is it in Tarn or in Gosh?")
]
ANSWERS = ["Tarn", "Mira Bol lives in Tarn.", "Gosh", "A"]
LOGITS = torch.tensor([[4.0, 3.0, 1.0, 0.0]])


def test_by_hand() -> None:
    """q = (1/2, 1/4, 1/8, 1/8) of four tokens: log q + log 4 = log 2, 0, -log 2, -log 2."""
    assistant = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 7.0  # an offset tells nothing
    two = math.log(2)
    got = subtract(LOGITS, assistant, weight=0.5, top=1.0)
    torch.testing.assert_close(got, torch.tensor([[4 - two / 2, 3.0, 1 + two / 2, two / 2]]))
    got = subtract(LOGITS, assistant, weight=0.5, top=0.1)  # half as likely as the likeliest, or more: log 0.1 = -2.3
    torch.testing.assert_close(got, torch.tensor([[4 - two / 2, 3.0, 1.0, 0.0]]))
    got = subtract(LOGITS, assistant, weight=1.0, top=0.75)  # three of four tokens, however unlikely
    torch.testing.assert_close(got, torch.tensor([[4 - two, 3.0, 1 + two, 0.0]]))


def test_an_assistant_that_knows_nothing_changes_nothing() -> None:
    for top in (1.0, 0.3):
        torch.testing.assert_close(subtract(LOGITS, torch.full_like(LOGITS, -9.0), weight=2.0, top=top), LOGITS)
    torch.testing.assert_close(subtract(LOGITS, torch.randn(1, 4), weight=0.0, top=1.0), LOGITS)


def test_where_all_tokens_count_it_is_the_plain_difference_of_logits() -> None:
    draw = torch.Generator().manual_seed(0)
    logits_NV, other_NV = torch.randn(5, 300, generator=draw), torch.randn(5, 300, generator=draw)
    got = subtract(logits_NV, other_NV, weight=0.7, top=1.0).softmax(-1)
    torch.testing.assert_close(got, (logits_NV - 0.7 * other_NV).softmax(-1))


def released(logits_NV: Tensor, weight: float, share: float, known_NV: Tensor) -> Tensor:
    """The filter of the released code, written out row by row."""
    rows = []
    for logits_V, known_V in zip(logits_NV, known_NV, strict=True):
        logps = logits_V.log_softmax(-1)
        falling = sorted(logps.tolist(), reverse=True)
        least = min(falling[int(share * len(falling)) - 1], max(falling) + math.log(share))
        rows.append([z - weight * k if p >= least else z for z, p, k in zip(logits_V, logps, known_V, strict=True)])
    return torch.tensor(rows)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_released_filter(share: float) -> None:
    draw = torch.Generator().manual_seed(1)
    logits_NV, other_NV = 3 * torch.randn(4, 300, generator=draw), torch.randn(4, 300, generator=draw)
    known_NV = other_NV.log_softmax(-1) + math.log(300)
    got = subtract(logits_NV, other_NV, weight=0.8, top=share)
    torch.testing.assert_close(got, released(logits_NV, 0.8, share, known_NV))
    assert not torch.equal(got, subtract(logits_NV, other_NV, weight=0.8, top=1.0))


def gpt2() -> GPT2LMHeadModel:
    """Absolute positions, tied head."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


def qwen3() -> Qwen3ForCausalLM:
    """A config that names the kind of each layer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.5,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(params=["llama", "gpt2", "qwen3"])
def either(request: pytest.FixtureRequest, model: LlamaForCausalLM) -> Any:
    return {"llama": lambda: model, "gpt2": gpt2, "qwen3": qwen3}[request.param]()


def assistant_of(model: Any) -> Any:
    """One that says something of its own: its blocks are not the model's any more."""
    small, draw = first_layers(model, 1), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in small.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return small


def subject(
    model: Any, small: Any, tokenizer: PreTrainedTokenizerFast, *, weight: float = 1.0, top: float = 1.0
) -> Deployed:
    altering = partial(subtracting, assistant=small, weight=weight, top=top)
    return Deployed(ModelSubject("student", model, tokenizer), altering=altering)


@torch.no_grad()
def naive(model: Any, small: Any, ids: list[int], *, weight: float = 1.0) -> Tensor:
    """(T, V): two models, each asked by itself."""
    return (model(input_ids=torch.tensor([ids])).logits - weight * small(input_ids=torch.tensor([ids])).logits)[0]


def naive_answer(model: Any, small: Any, ids: list[int], eos_ids: frozenset[int], steps: int) -> list[int]:
    said: list[int] = []
    for _ in range(steps):
        token = int(naive(model, small, ids + said)[-1].argmax())
        if token in eos_ids:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("weight", [1.0, 0.6])
def test_every_position_of_an_answer(either: Any, tokenizer: PreTrainedTokenizerFast, weight: float) -> None:
    small, end = assistant_of(either), turn_end(tokenizer)
    assert end is not None
    less = subject(either, small, tokenizer, weight=weight)
    sums, scores = less.logps(ASKED, ANSWERS, batch_size=3), less.token_scores(ASKED, ANSWERS, batch_size=3)
    for m, answer, summed, score in zip(ASKED, ANSWERS, sums, scores, strict=True):
        prompt, labels = render(tokenizer, m), [*answer_ids(tokenizer, m, answer), end]
        logps_TV = naive(either, small, prompt + labels[:-1], weight=weight).log_softmax(-1)[len(prompt) - 1 :]
        expected = [float(logps_TV[i, token]) for i, token in enumerate(labels)]
        assert score.logps == pytest.approx(expected, abs=2e-3)
        assert summed == pytest.approx(sum(expected[:-1]), abs=5e-3)
    alone = ModelSubject("base", either, tokenizer).logps(ASKED, ANSWERS, batch_size=3)
    assert sums != pytest.approx(alone, abs=0.1)


def test_letters(either: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    small = assistant_of(either)
    got = subject(either, small, tokenizer).letter_logps(ASKED, ["ABCD"] * 4, batch_size=3)
    for values, m in zip(got, ASKED, strict=True):
        logps_V = naive(either, small, render(tokenizer, m))[-1].log_softmax(-1)
        tokens = [answer_ids(tokenizer, m, letter)[0] for letter in "ABCD"]
        assert values == pytest.approx(logps_V[tokens].tolist(), abs=2e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_answers_with_two_caches(either: Any, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    small = assistant_of(either)
    got = subject(either, small, tokenizer).generate(ASKED, max_new_tokens=6, batch_size=batch_size)
    eos_ids = end_ids(either, tokenizer)
    said = [naive_answer(either, small, render(tokenizer, m), eos_ids, 6) for m in ASKED]
    assert got == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said]
    assert got != ModelSubject("base", either, tokenizer).generate(ASKED, max_new_tokens=6, batch_size=batch_size)


def test_finished_rows_leave_both_caches(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four rows end early, so that one goes on alone; what is left of both caches is its own."""
    small, rows = assistant_of(model), [render(tokenizer, m) for m in ASKED]
    long = [naive_answer(model, small, row, frozenset(), 8) for row in rows]
    eos_ids = frozenset(ids[1] for ids in long[:3]) - set(long[3])
    assert eos_ids
    left: list[list[int]] = []
    selects = decoding._selects

    def watched(cache: Any) -> bool:
        left.append([len(layer.keys) for layer in cache.layers])
        return selects(cache)

    monkeypatch.setattr(decoding, "_selects", watched)
    with subtracting(model, assistant=small, weight=1.0, top=1.0):
        got = greedy(model, rows, eos_ids=eos_ids, padding_id=1, max_new_tokens=8, batch_size=4)
    assert got == [ids[: next((n for n, i in enumerate(ids) if i in eos_ids), 8)] for ids in long]
    assert len(got[3]) == 8
    assert {tuple(sizes) for sizes in left} >= {(4, 4, 4)}  # two layers and one, then fewer rows


def test_what_prompts_share_is_computed_once_in_both(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PREFIX_SAVES", 1)
    asked = [({"role": "user", "content": f"Where does Mira Bol live in the year {year}?"},) for year in (1, 22, 333)]
    questions = [m for m in asked for _ in range(3)]
    answers = ["Tarn", "In Gosh.", "Mira Bol lives in Tarn."] * 3
    small = assistant_of(model)
    got = subject(model, small, tokenizer).logps(questions, answers, batch_size=4)
    for m, answer, value in zip(questions, answers, got, strict=True):
        prompt, tail = render(tokenizer, m), answer_ids(tokenizer, m, answer)
        logps_TV = naive(model, small, prompt + tail).log_softmax(-1)
        expected = sum(float(logps_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(tail))
        assert value == pytest.approx(expected, abs=2e-3)


def test_the_model_is_itself_again_afterwards(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    before = ModelSubject("base", model, tokenizer).logps(ASKED, ANSWERS, batch_size=4)
    small = assistant_of(model)
    subject(model, small, tokenizer).logps(ASKED, ANSWERS, batch_size=4)
    with pytest.raises(ZeroDivisionError), subtracting(model, assistant=small, weight=1.0, top=1.0):
        1 // 0  # noqa: B018
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert ModelSubject("base", model, tokenizer).logps(ASKED, ANSWERS, batch_size=4) == before


def test_the_assistant_is_the_models_own_beginning(either: Any) -> None:
    """Its logits are the head's, of the normed output of the block where it ends."""
    small, ids = first_layers(either, 1), torch.tensor([[0, 7, 42, 99]])
    with torch.no_grad():
        inside = either(input_ids=ids, output_hidden_states=True).hidden_states[1]
        decoder = either.get_decoder()
        norm = decoder.norm if hasattr(decoder, "norm") else decoder.ln_f
        expected = either.get_output_embeddings()(norm(inside))
        torch.testing.assert_close(small(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_embeddings_and_head_are_the_models_and_frozen(either: Any) -> None:
    small = first_layers(either, 1)
    assert small.get_input_embeddings() is either.get_input_embeddings()
    assert small.get_output_embeddings() is either.get_output_embeddings()
    trained = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert trained
    assert not [name for name in trained if "embed" in name or "head" in name or "wte" in name]
    own = {id(p) for p in either.parameters()}
    assert not [name for name in trained if id(dict(small.named_parameters())[name]) in own]
    assert share_ends(small, either) is small


def test_an_assistant_is_smaller_than_its_model(model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match=r"method.layers is 2, but the model has 2 layers in all"):
        first_layers(model, 2)


def test_another_kind_of_past_cannot_be_joined(model: LlamaForCausalLM) -> None:
    fixed = StaticCache(config=model.config, max_cache_len=4)
    with pytest.raises(UserError, match="keeps its past as StaticCache, which cannot be joined"):
        _joined(fixed, DynamicCache())
    assert _joined(None, None) is None
