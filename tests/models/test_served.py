"""Every family of models with noise on its prompts, and with an assistant beside it: batched, cached answers against
one prompt at a time, without cache."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import FAMILIES, Family, write
from torch import Tensor

from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.evals.subject import Deployed, ModelSubject
from duet_unlearn.methods.guarded import PromptFeatures, corrupting, draw_noise, features
from duet_unlearn.methods.uld import first_layers, subtracting
from duet_unlearn.models.blocks import num_embeddings
from duet_unlearn.models.load import load_model
from duet_unlearn.teacher.decoding import end_ids

ASKED = [
    ({"role": "user", "content": text},)
    for text in ("Tarn?", "Where does Mira Bol live, and since when?", "Who is Mira?", "Is it in Tarn or in Gosh?")
]
ANSWERS = ["Tarn", "Mira Bol lives in Tarn.", "A miller.", "No"]
NOISE_PD = draw_noise(32, sigma=0.2, dims=4, seed=0)
STEPS = 4


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    family: Family = request.param
    folder: Path = write(family, tmp_path_factory.mktemp("models") / family.name)
    return load_model(str(folder), chat_template=family.chat_template)


@torch.no_grad()
def with_noise(model: Any, ids: list[int], prompt: int) -> Tensor:
    embedded_1TD = model.get_input_embeddings()(torch.tensor([ids]))
    embedded_1TD[0, : prompt - 1] += NOISE_PD[: prompt - 1]
    return model(inputs_embeds=embedded_1TD, use_cache=False).logits[0]


@torch.no_grad()
def with_less(model: Any, small: Any, ids: list[int], prompt: int) -> Tensor:
    own, other = (one(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for one in (model, small))
    return own - 0.8 * other


def check(model: Any, words: Any, subject: Deployed, naive: Any) -> None:
    """Answers, and likelihoods of given ones."""
    eos_ids, expected = end_ids(model, words), []
    for m in ASKED:
        prompt, said = render(words, m), list[int]()
        while len(said) < STEPS:
            token = int(naive(prompt + said, len(prompt))[-1].argmax())
            if token in eos_ids:
                break
            said.append(token)
        text = words.decode(said, skip_special_tokens=True)
        expected.append(text)
    got = subject.generate(ASKED, max_new_tokens=STEPS, batch_size=3, until="length")
    assert [text.strip() for text in got] == [text.strip() for text in expected]
    for m, answer, value in zip(ASKED, ANSWERS, subject.logps(ASKED, ANSWERS, batch_size=3), strict=True):
        prompt, tail = render(words, m), answer_ids(words, m, answer)
        logps_TV = naive(prompt + tail, len(prompt)).log_softmax(-1)
        summed = sum(float(logps_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(tail))
        assert value == pytest.approx(summed, abs=2e-3, rel=1e-3)


def test_corrupted_prompts(loaded: tuple[Any, Any]) -> None:
    model, words = loaded
    voice = ModelSubject("student", model, words, mark=num_embeddings(model))
    noisy = Deployed(voice, altering=partial(corrupting, noise_PD=NOISE_PD))
    check(model, words, noisy, partial(with_noise, model))


def test_an_assistant_beside_it(loaded: tuple[Any, Any]) -> None:
    model, words = loaded
    small = first_layers(model, 1)
    less = partial(subtracting, assistant=small, weight=0.8, top=1.0)
    check(
        model, words, Deployed(ModelSubject("student", model, words), altering=less), partial(with_less, model, small)
    )


def test_what_a_detector_reads(loaded: tuple[Any, Any]) -> None:
    model, words = loaded
    got = features(model, words, ASKED, PromptFeatures(0, "last"), batch_size=3)
    for row_D, m in zip(got, ASKED, strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([render(words, m)]), output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(row_D, states[0, -1], rtol=1e-3, atol=1e-4)
