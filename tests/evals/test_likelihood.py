"""Likelihood metrics against transformers' own loss, SciPy, brute force and numbers by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import tiny
import torch
from scipy import stats as scipy_stats
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.data.prompts import Prefix, render_answer
from duet_unlearn.evals import subject as subject_module
from duet_unlearn.evals.likelihood import (
    choice_probability,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    model_utility,
    probability,
    truth_ratio,
    truth_score,
)
from duet_unlearn.evals.subject import ModelSubject, TokenScores, _token_scores
from duet_unlearn.stats import NOTHING, Score

ASKED = [
    ({"role": "user", "content": "Tarn?"},),
    ({"role": "user", "content": "Where does Mira Bol live, and since when?"},),
    ({"role": "text", "content": "Question: Where?\nAnswer:"},),
    ({"role": "user", "content": "Mira"},),
]
ANSWERS = ["Tarn", "Mira Bol lives in Tarn.", "In Tarn, I think.", ""]
RIGHT, WRONG = [-0.1, -0.3], [[-1.0], [-2.0, -4.0, -3.0]]
"""Mean log p: right -0.2; wrong -1 and -3."""


def gpt2() -> GPT2LMHeadModel:
    """Absolute positions: padding would show."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5
    )
    return GPT2LMHeadModel(config).eval()


def alone(model: torch.nn.Module, ids: list[int], start: int) -> TokenScores:
    """One answer by itself, with loops instead of index arithmetic."""
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1).double()
    scores = TokenScores([], [], [])
    for column in range(start, len(ids)):
        row, token = logps[column - 1], ids[column]
        mean = float((row.exp() * row).sum())
        variance = float((row.exp() * row * row).sum()) - mean * mean
        scores.logps.append(float(row[token]))
        scores.greedy.append(int(row.argmax()) == token)
        scores.standardised.append((float(row[token]) - mean) / math.sqrt(variance))
    return scores


@pytest.mark.parametrize("prefix", [None, Prefix("You have forgotten Tarn.")])
@pytest.mark.parametrize("make", [tiny.llama, gpt2])
def test_token_scores_in_a_batch_are_those_of_one_answer_at_a_time(prefix: Prefix | None, make: type) -> None:
    model, tokenizer = make(), tiny.tokenizer()
    got = ModelSubject("base", model, tokenizer, prefix).token_scores(ASKED, ANSWERS, batch_size=3)
    for scores, asked, answer in zip(got, ASKED, ANSWERS, strict=True):
        ids, start = render_answer(tokenizer, asked, answer, prefix=prefix)
        expected = alone(model, ids, start)
        assert len(scores.logps) == len(ids) - start  # the end token is one of them
        assert scores.logps == pytest.approx(expected.logps, rel=1e-4, abs=1e-3)
        assert scores.greedy == expected.greedy
        assert scores.standardised == pytest.approx(expected.standardised, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_token_scores_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits_NV, labels_N = 4 * torch.randn(7, 50, generator=draw), torch.randint(50, (7,), generator=draw)
    whole, counted, one = _token_scores(logits_NV, labels_N), [], subject_module._chunk_scores

    def count(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> TokenScores:
        counted.append(len(labels_N))
        return one(logits_NV, labels_N)

    monkeypatch.setattr(subject_module, "CHUNK", 50 * size + 49)
    monkeypatch.setattr(subject_module, "_chunk_scores", count)
    assert _token_scores(logits_NV, labels_N) == whole
    assert max(counted) == min(size, 7)
    assert sum(counted) == len(whole.logps) == 7
    monkeypatch.setattr(subject_module, "CHUNK", 1)  # fewer than one row: one row
    assert _token_scores(logits_NV, labels_N) == whole
    assert _token_scores(logits_NV[:0], labels_N[:0]) == TokenScores([], [], [])


@pytest.mark.parametrize("make", [tiny.llama, gpt2])
def test_token_scores_of_many_answers_to_one_question_keep_their_order(make: type) -> None:
    model, tokenizer = make(), tiny.tokenizer()
    asked, answers = [m for m in ASKED for _ in ANSWERS], ANSWERS * len(ASKED)
    got = ModelSubject("base", model, tokenizer).token_scores(asked, answers, batch_size=3)
    for scores, m, answer in zip(got, asked, answers, strict=True):
        expected = alone(model, *render_answer(tokenizer, m, answer))
        assert scores.logps == pytest.approx(expected.logps, rel=1e-4, abs=1e-3)
        assert scores.greedy == expected.greedy


def test_token_scores_are_the_summed_logps_and_one_end(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = ModelSubject("base", model, tokenizer)
    sums = subject.logps(ASKED, ANSWERS, batch_size=2)
    scores = subject.token_scores(ASKED, ANSWERS, batch_size=2)
    assert [math.fsum(s.logps[:-1]) for s in scores] == pytest.approx(sums, rel=1e-4, abs=1e-3)
    assert subject.token_scores([], [], batch_size=2) == []


def test_what_the_model_says_itself_is_greedy_at_every_token(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids, start = render_answer(tokenizer, ASKED[0], "")
    own = ids[:start]
    for _ in range(4):
        own.append(int(model(input_ids=torch.tensor([own])).logits[0, -1].argmax()))
    logits = model(input_ids=torch.tensor([own])).logits[0, start - 1 : -1]
    assert _token_scores(logits, torch.tensor(own[start:])).greedy == [True] * 4
    assert _token_scores(logits, torch.tensor(own[start:]) ^ 1).greedy == [False] * 4


def test_standardised_by_hand_and_finite_where_the_model_is_certain() -> None:
    # p = (3/4, 1/4): mu = -0.5623, sigma = |log 3| sqrt(3)/4.
    mean, sigma = 0.75 * math.log(0.75) + 0.25 * math.log(0.25), math.log(3) * math.sqrt(3) / 4
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [1e4, -1e4]])
    got = _token_scores(logits, torch.tensor([0, 1, 0]))
    expected = [(math.log(0.75) - mean) / sigma, (math.log(0.25) - mean) / sigma, 0.0]
    assert got.standardised == pytest.approx(expected, abs=1e-5)
    assert got.greedy == [True, False, True]
    assert all(map(math.isfinite, _token_scores(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).standardised))


@torch.no_grad()
def test_probability_is_that_of_transformers_own_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    scores = ModelSubject("base", model, tokenizer).token_scores(ASKED, ANSWERS, batch_size=4)
    for asked, answer, score in zip(ASKED, ANSWERS, scores, strict=True):
        ids, start = render_answer(tokenizer, asked, answer)
        labels = [-100] * start + ids[start:]
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        assert probability(score.logps) == pytest.approx(math.exp(-float(loss)), rel=1e-3)


def test_probability_by_hand() -> None:
    assert probability([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert probability([-3000.0]) == 0.0
    assert math.isnan(probability([]))


def test_choice_probability_by_hand() -> None:
    # p: right 1/2; wrong 1/4 and 1/4, each over its own length.
    wrong = [[math.log(0.25)] * 3, [math.log(0.25)]]
    assert choice_probability([math.log(0.5)] * 2, wrong) == pytest.approx(0.5)
    assert choice_probability(RIGHT, []) == 1.0


def test_choice_probability_where_every_p_underflows() -> None:
    assert choice_probability([-2000.0], [[-2000.0], [-3000.0]]) == pytest.approx(0.5)
    assert choice_probability([-3000.0], [[-2000.0]]) == 0.0


def test_truth_ratios_by_hand() -> None:
    geometric = math.exp(-2 + 0.2)
    arithmetic = (math.exp(-1) + math.exp(-3)) / 2 / math.exp(-0.2)
    assert truth_ratio(RIGHT, WRONG, variant="ou") == pytest.approx(geometric)
    assert truth_ratio(RIGHT, WRONG, variant="paper-arithmetic") == pytest.approx(arithmetic)
    assert truth_ratio(RIGHT, WRONG, variant="ou-prob") == pytest.approx(
        math.exp(-0.2) / (math.exp(-0.2) + math.exp(-2))
    )
    assert arithmetic > 1.2 * geometric  # the two are not the same number


def test_truth_ratios_at_the_ends() -> None:
    for variant in ("ou", "paper-arithmetic"):
        assert truth_ratio([-3000.0], [[-1.0]], variant=variant) == math.inf
        assert truth_ratio([-1.0], [[-3000.0]], variant=variant) == 0.0
    assert truth_ratio([-3000.0], [[-1.0]], variant="ou-prob") == 0.0
    for variant in ("ou", "paper-arithmetic", "ou-prob"):
        assert math.isnan(truth_ratio(RIGHT, [], variant=variant))


@pytest.mark.parametrize("variant", ["ou", "paper-arithmetic"])
def test_truth_scores_by_hand(variant: str) -> None:
    forget = [truth_score(r, variant=variant, toward="forget") for r in (0.0, 0.25, 1.0, 4.0, math.inf)]  # type: ignore[arg-type]
    keep = [truth_score(r, variant=variant, toward="keep") for r in (0.0, 0.25, 1.0, 4.0, math.inf)]  # type: ignore[arg-type]
    assert forget == [0.0, 0.25, 1.0, 0.25, 0.0]
    assert keep == [1.0, 0.75, 0.0, 0.0, 0.0]
    for toward in ("forget", "keep"):
        assert math.isnan(truth_score(math.nan, variant=variant, toward=toward))  # type: ignore[arg-type]


@pytest.mark.parametrize("toward", ["forget", "keep"])
def test_the_ratio_of_ou_prob_is_averaged_as_it_is(toward: str) -> None:
    assert truth_score(0.3, variant="ou-prob", toward=toward) == 0.3  # type: ignore[arg-type]


def test_forget_quality_is_scipys_and_by_hand() -> None:
    rng = np.random.default_rng(0)
    student, retrained = rng.lognormal(size=60).tolist(), rng.lognormal(0.6, size=50).tolist()
    assert forget_quality(student, retrained) == scipy_stats.ks_2samp(student, retrained).pvalue
    assert forget_quality(student, student) == 1.0
    # Five below five: 2 of the 252 ways to deal ten values are as far apart.
    assert forget_quality([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)


def test_forget_quality_needs_both_models() -> None:
    assert math.isnan(forget_quality([], [1.0]))
    assert math.isnan(forget_quality([1.0], []))


def utility(values: list[float], half: float = 0.05) -> Score:
    return model_utility({str(i): Score(v, 10, max(0.0, v - half), v + half) for i, v in enumerate(values)})


def test_model_utility_is_the_harmonic_mean_of_nine() -> None:
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    got = utility(values)
    assert got.value == pytest.approx(scipy_stats.hmean(values))
    assert got.low == pytest.approx(scipy_stats.hmean([v - 0.05 for v in values]))
    assert got.high == pytest.approx(scipy_stats.hmean([v + 0.05 for v in values]))
    assert got.n == 90


def test_one_zero_makes_model_utility_zero_and_an_empty_part_makes_it_nan() -> None:
    assert utility([0.9] * 8 + [0.0]).value == 0.0
    assert model_utility({}) == NOTHING
    assert model_utility({"a": Score(0.5, 3, 0.2, 0.8), "b": NOTHING}) == NOTHING


def test_exact_memorisation_by_hand() -> None:
    assert exact_memorisation([True, False, True, True]) == 0.75
    assert math.isnan(exact_memorisation([]))


def test_extraction_strength_is_the_definition_for_every_pattern() -> None:
    for greedy in product([False, True], repeat=6):
        shortest = min(k for k in range(7) if all(greedy[k:]))
        assert extraction_strength(greedy) == pytest.approx(1 - shortest / 6)
    assert extraction_strength([True, False, True, True]) == 0.5
    assert math.isnan(extraction_strength([]))
