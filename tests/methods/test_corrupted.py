"""Corrupted prompts against the slowest way to corrupt them: embeddings made by hand, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.data.prompts import answer_ids, render, turn_end
from duet_unlearn.evals.generate import marked
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.methods.guarded import PERIOD, corrupting, draw_noise
from duet_unlearn.models.blocks import num_embeddings
from duet_unlearn.teacher import shared
from duet_unlearn.teacher.decoding import end_ids

ASKED = [
    ({"role": "user", "content": text},)
    for text in ("Tarn?", "Where does Mira Bol live, and since when?", "Mira", "Is it in Tarn or in Gosh?")
]
ANSWERS = ["Tarn", "Mira Bol lives in Tarn.", "Gosh", "A"]
NOISE_PD = draw_noise(32, sigma=0.5, dims=None, seed=0)


def subject(model: Any, tokenizer: PreTrainedTokenizerFast, noise_PD: Tensor = NOISE_PD) -> Deployed:
    voice = ModelSubject("student", model, tokenizer, mark=num_embeddings(model))
    return Deployed(voice, altering=partial(corrupting, noise_PD=noise_PD))


def gpt2() -> GPT2LMHeadModel:
    """Absolute positions, tied head."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def either(request: pytest.FixtureRequest, model: LlamaForCausalLM) -> Any:
    return gpt2() if request.param == "gpt2" else model


@torch.no_grad()
def naive(model: Any, ids: list[int], prompt: int, noise_PD: Tensor = NOISE_PD) -> Tensor:
    """(T, V) logits of a row whose first `prompt` tokens, but for the last of them, get noise."""
    embedded_1TD = model.get_input_embeddings()(torch.tensor([ids]))
    embedded_1TD[0, : prompt - 1] += noise_PD[: prompt - 1]
    return model(inputs_embeds=embedded_1TD).logits[0]


def naive_answer(model: Any, prompt: list[int], opening: list[int], eos_ids: frozenset[int], steps: int) -> list[int]:
    said: list[int] = []
    for _ in range(steps):
        token = int(naive(model, prompt + opening + said, len(prompt))[-1].argmax())
        if token in eos_ids:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("prefill", [None, ["Mira Bol lives in", "", "It", "In Tarn or in"]])
def test_answers_to_corrupted_prompts(
    either: Any, tokenizer: PreTrainedTokenizerFast, batch_size: int, prefill: list[str] | None
) -> None:
    got = subject(either, tokenizer).generate(ASKED, prefill=prefill, max_new_tokens=6, batch_size=batch_size)
    expected = []
    for m, opener in zip(ASKED, prefill or [""] * 4, strict=True):
        opening = answer_ids(tokenizer, m, opener) if opener else []
        said = naive_answer(either, render(tokenizer, m), opening, end_ids(either, tokenizer), 6)
        expected.append(tokenizer.decode(said, skip_special_tokens=True).strip())
    assert got == expected
    plain = ModelSubject("base", either, tokenizer).generate(ASKED, prefill=prefill, max_new_tokens=6, batch_size=4)
    assert got != plain


@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihoods_behind_corrupted_prompts(either: Any, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    """The answer's own tokens are never corrupted, the end token among them."""
    noisy, end = subject(either, tokenizer), turn_end(tokenizer)
    assert end is not None
    got = noisy.logps(ASKED, ANSWERS, batch_size=batch_size)
    scores = noisy.token_scores(ASKED, ANSWERS, batch_size=batch_size)
    for m, answer, summed, score in zip(ASKED, ANSWERS, got, scores, strict=True):
        prompt = render(tokenizer, m)
        labels = [*answer_ids(tokenizer, m, answer), end]
        logps_TV = naive(either, prompt + labels[:-1], len(prompt)).log_softmax(-1)[len(prompt) - 1 :]
        expected = [float(logps_TV[i, token]) for i, token in enumerate(labels)]
        assert score.logps == pytest.approx(expected, abs=1e-3)
        assert score.greedy == [int(logps_TV[i].argmax()) == token for i, token in enumerate(labels)]
        assert summed == pytest.approx(sum(expected[:-1]), abs=1e-3)


def test_letters_behind_corrupted_prompts(either: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    got = subject(either, tokenizer).letter_logps(ASKED, ["ABCD"] * 4, batch_size=3)
    for values, m in zip(got, ASKED, strict=True):
        prompt = render(tokenizer, m)
        logps_V = naive(either, prompt, len(prompt))[-1].log_softmax(-1)
        tokens = [answer_ids(tokenizer, m, letter)[0] for letter in "ABCD"]
        assert values == pytest.approx(logps_V[tokens].tolist(), abs=1e-3)


def test_what_prompts_share_is_corrupted_alike(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beginning that is computed once for all, and a prompt once for all its answers."""
    monkeypatch.setattr(shared, "PREFIX_SAVES", 1)
    asked = [({"role": "user", "content": f"Where does Mira Bol live in the year {year}?"},) for year in (1, 22, 333)]
    questions = [m for m in asked for _ in range(3)]
    answers = ["Tarn", "In Gosh.", "Mira Bol lives in Tarn."] * 3
    got = subject(model, tokenizer).logps(questions, answers, batch_size=4)
    for m, answer, value in zip(questions, answers, got, strict=True):
        prompt, tail = render(tokenizer, m), answer_ids(tokenizer, m, answer)
        logps_TV = naive(model, prompt + tail, len(prompt)).log_softmax(-1)
        expected = sum(float(logps_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(tail))
        assert value == pytest.approx(expected, abs=1e-3)


def test_noise_falls_on_all_tokens_of_the_prompt_but_the_last() -> None:
    assert marked([5, 6, 7, 8, 9], 3, 300) == [305, 306, 7, 8, 9]
    assert marked([5, 6, 7, 8, 9], 1, 300) == [5, 6, 7, 8, 9]
    assert marked([5, 6], 2, 0) == [5, 6]


def test_what_the_model_reads(model: LlamaForCausalLM) -> None:
    """Seen at the first block: noise at marked tokens, by place in the row, on either side of padding."""
    seen: list[Tensor] = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    ids_BT = torch.tensor([[305, 306, 7, 1], [1, 308, 309, 8]])
    mask_BT = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    places_BT = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 2]])
    with torch.no_grad(), corrupting(model, NOISE_PD):
        model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=places_BT)
    hook.remove()
    table = model.get_input_embeddings().weight.detach()
    expected = table[torch.tensor([[5, 6, 7, 1], [1, 8, 9, 8]])]
    expected[0, :2] += NOISE_PD[:2]
    expected[1, 1:3] += NOISE_PD[:2]
    torch.testing.assert_close(seen[0], expected)


def test_noise_is_drawn_by_the_seed_with_the_width_and_strength_asked_for() -> None:
    noise_PD = draw_noise(64, sigma=3.0, dims=None, seed=1)
    assert noise_PD.shape == (PERIOD, 64)
    assert noise_PD.std().item() == pytest.approx(3.0, rel=0.03)
    assert noise_PD.mean().item() == pytest.approx(0.0, abs=0.1)
    torch.testing.assert_close(draw_noise(64, sigma=6.0, dims=None, seed=1), 2 * noise_PD)
    assert not torch.equal(draw_noise(64, sigma=3.0, dims=None, seed=2), noise_PD)
    few_PD = draw_noise(64, sigma=3.0, dims=2, seed=1)
    assert torch.equal(few_PD[:, :2], noise_PD[:, :2])
    assert not few_PD[:, 2:].any()


def test_a_prompt_longer_than_the_noise_begins_it_anew(model: LlamaForCausalLM) -> None:
    short_PD, ids = NOISE_PD[:3], [5, 6, 7, 8, 9, 10]
    with torch.no_grad(), corrupting(model, short_PD):
        got = model(input_ids=torch.tensor([marked(ids, 6, 300)]), position_ids=torch.arange(6)[None]).logits[0]
    torch.testing.assert_close(got, naive(model, ids, 6, short_PD.repeat(2, 1)), rtol=1e-4, atol=1e-4)


def test_without_noise_nothing_changes(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    silent = subject(model, tokenizer, torch.zeros(PERIOD, 32))
    base = ModelSubject("base", model, tokenizer)
    asked: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 3}
    assert silent.generate(ASKED, **asked) == base.generate(ASKED, **asked)
    assert silent.logps(ASKED, ANSWERS, batch_size=3) == base.logps(ASKED, ANSWERS, batch_size=3)


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_itself_again_afterwards(
    fail: bool, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = ModelSubject("base", model, tokenizer).logps(ASKED, ANSWERS, batch_size=4)

    def inside(then: Callable[[], None]) -> None:
        with corrupting(model, NOISE_PD):
            then()

    if fail:
        with pytest.raises(ZeroDivisionError):
            inside(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    else:
        inside(lambda: None)
    assert not model._forward_pre_hooks
    assert not model.get_input_embeddings()._forward_hooks
    assert ModelSubject("base", model, tokenizer).logps(ASKED, ANSWERS, batch_size=4) == before
