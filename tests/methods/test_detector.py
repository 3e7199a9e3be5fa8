"""The detector of forget queries: its regression against numbers by hand and scikit-learn, its features against
transformers' own hidden states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast
from workplace import FORGET, RETAIN

from duet_unlearn.data.prompts import render
from duet_unlearn.errors import UserError
from duet_unlearn.methods.guarded import Boundary, Detector, PromptFeatures, features, fit, load_boundary, save_boundary

ASKED = [({"role": "user", "content": question},) for question, *_ in (*FORGET, *RETAIN)]
HELD_OUT = ("Where does Mira Bol sleep?", "Whom does Mira Bol know?", "What does Mira Bol eat?")


def test_two_points_on_a_line_by_hand() -> None:
    """x = 3 and x = 1 become 1 and -1. The loss log(1 + e^-w) + l2 w^2 / 2 is least where l2 w (1 + e^w) = 1; the bias
    is 0 by symmetry."""
    boundary = fit(torch.tensor([[3.0]]), torch.tensor([[1.0]]), l2=0.1)
    weight = float(boundary.weight_D)
    assert 0.1 * weight * (1 + torch.tensor(weight).exp()) == pytest.approx(1.0, abs=1e-6)
    assert boundary.bias == pytest.approx(0.0, abs=1e-9)
    assert (float(boundary.mean_D), float(boundary.scale_D)) == (2.0, 1.0)
    scores = boundary.score(torch.tensor([[3.0], [1.0], [2.0]])).tolist()
    assert scores == pytest.approx([torch.sigmoid(torch.tensor(weight)).item(), 1 - scores[0], 0.5], abs=1e-6)


@pytest.mark.parametrize(("num_forget", "num_retain"), [(40, 40), (10, 90)])
def test_scikit_learn_finds_the_same_boundary(num_forget: int, num_retain: int) -> None:
    """Its C is 1 / (N l2) for a mean loss over N rows; "balanced" gives each class half of the weight."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    draw = torch.Generator().manual_seed(0)
    forget_ND = torch.randn(num_forget, 6, generator=draw) + torch.tensor([1.0, 0, 0, 2, 0, 0])
    retain_ND = 3 * torch.randn(num_retain, 6, generator=draw)
    boundary = fit(forget_ND, retain_ND, l2=0.02)
    rows_ND = torch.cat([forget_ND, retain_ND]).double()
    standard_ND = (rows_ND - rows_ND.mean(0)) / rows_ND.std(0, correction=0)
    other = linear_model.LogisticRegression(
        C=1 / (0.02 * len(rows_ND)), class_weight="balanced", tol=1e-10, max_iter=10_000
    )
    other.fit(standard_ND.numpy(), [1] * num_forget + [0] * num_retain)
    assert boundary.weight_D.tolist() == pytest.approx(other.coef_[0].tolist(), abs=1e-5)
    assert boundary.bias == pytest.approx(float(other.intercept_[0]), abs=1e-5)
    expected = other.predict_proba(standard_ND.numpy())[:, 1].tolist()
    assert boundary.score(torch.cat([forget_ND, retain_ND])).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_number_that_never_changes_says_nothing() -> None:
    forget_ND, retain_ND = torch.tensor([[3.0, 7.0], [2.0, 7.0]]), torch.tensor([[1.0, 7.0], [0.0, 7.0]])
    boundary = fit(forget_ND, retain_ND, l2=0.1)
    assert float(boundary.weight_D[1]) == pytest.approx(0.0, abs=1e-9)
    assert torch.isfinite(boundary.score(forget_ND)).all()


def test_more_shrinkage_smaller_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    forget_ND, retain_ND = torch.randn(9, 4, generator=draw) + 1, torch.randn(9, 4, generator=draw)
    norms = [fit(forget_ND, retain_ND, l2=l2).weight_D.norm().item() for l2 in (1.0, 0.1, 0.01)]
    assert norms == sorted(norms)
    assert norms[0] < 0.5 * norms[2]


@pytest.mark.parametrize("role", ["forget", "retain"])
def test_a_side_without_queries_is_an_error(role: str) -> None:
    sides = {"forget": torch.randn(3, 2), "retain": torch.randn(3, 2)} | {role: torch.zeros(0, 2)}
    with pytest.raises(UserError, match=f"no {role} queries to learn from"):
        fit(sides["forget"], sides["retain"], l2=0.1)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_are_the_hidden_states_of_the_prompt(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pooling: Literal["mean", "last"], batch_size: int
) -> None:
    """Block 0 of two: transformers counts the embeddings as hidden state 0."""
    got = features(model, tokenizer, ASKED, PromptFeatures(0, pooling), batch_size=batch_size)
    for row_D, messages in zip(got, ASKED, strict=True):
        ids = torch.tensor([render(tokenizer, messages)])
        with torch.no_grad():
            states_TD = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
        expected = states_TD.mean(0) if pooling == "mean" else states_TD[-1]
        torch.testing.assert_close(row_D, expected, rtol=1e-4, atol=1e-4)


def test_the_middle_block_is_the_usual_one_and_the_model_is_left_as_it_was(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    try:
        usual = features(model, tokenizer, ASKED, PromptFeatures(None, "last"), batch_size=4)
        assert model.training
        assert len(model.model.layers) == 2
    finally:
        model.eval()
    torch.testing.assert_close(usual, features(model, tokenizer, ASKED, PromptFeatures(1, "last"), batch_size=4))
    assert features(model, tokenizer, [], PromptFeatures(None, "mean"), batch_size=4).shape == (0, 32)


def test_a_block_that_is_not_there(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="the model's blocks are 0 to 1"):
        features(model, tokenizer, ASKED[:1], PromptFeatures(7, "mean"), batch_size=1)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_separates_what_it_was_fitted_to_and_more(
    kind: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Stored and loaded it gives the same scores to the bit, whatever is asked together."""
    asked = gpt2() if kind == "gpt2" else model
    reading = PromptFeatures(None, "mean")
    rows = features(asked, tokenizer, ASKED, reading, batch_size=4)  # type: ignore[arg-type]
    boundary = fit(rows[: len(FORGET)], rows[len(FORGET) :], l2=0.01)
    detector = Detector(asked, tokenizer, reading, boundary, threshold=0.5)  # type: ignore[arg-type]
    assert detector(ASKED, batch_size=3) == [True] * len(FORGET) + [False] * len(RETAIN)
    others = [({"role": "user", "content": text},) for text in HELD_OUT]
    assert sum(detector(others, batch_size=2)) >= 2
    save_boundary(boundary, reading, tmp_path / "detector")
    assert json.loads((tmp_path / "detector" / "detector.json").read_text())["pooling"] == "mean"
    again, how = load_boundary(tmp_path / "detector")
    assert how == reading
    loaded = Detector(asked, tokenizer, how, again, threshold=0.5)  # type: ignore[arg-type]
    assert loaded.scores(ASKED, batch_size=3) == detector.scores(ASKED, batch_size=3)
    alone = [loaded.scores([one], batch_size=1)[0] for one in ASKED]
    assert alone == pytest.approx(detector.scores(ASKED, batch_size=12), abs=1e-5)


def test_the_threshold_is_reached_or_not(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    flat = Boundary(torch.zeros(32).double(), torch.ones(32).double(), torch.zeros(32).double(), bias=0.0)
    for threshold, found in ((0.5, True), (0.51, False)):
        detector = Detector(model, tokenizer, PromptFeatures(0, "last"), flat, threshold)
        assert detector(ASKED[:2], batch_size=2) == [found] * 2
