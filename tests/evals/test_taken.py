"""The protocol ``likelihood``: what is stored is the model's own, and the scores are those of the pure functions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.likelihood import choice_probability, min_k, min_k_plus_plus, probability, truth_ratio
from duet_unlearn.evals.question_sets import EvalSet, run_suite, score_samples
from duet_unlearn.evals.subject import ModelSubject

QUERY = Query(
    id="a",
    messages=({"role": "user", "content": "Where does Mira Bol live?"},),
    answer="Mira Bol lives in Tarn.",
    paraphrase="Tarn is her home.",
    wrong=("Gosh is her home.", "Ost is."),
)


def likelihood_set(*queries: Query, better: Any = "low") -> EvalSet:
    return EvalSet("asked", "Asked", "forget", better, "Asked.", queries, protocol="likelihood", metric="probability")


def test_the_scores_are_those_of_the_tokens(model: Any, tokenizer: Any) -> None:
    subject = ModelSubject("base", model, tokenizer)
    result = run_suite(subject, [likelihood_set(QUERY)])
    texts = [str(QUERY.answer), str(QUERY.paraphrase), *(QUERY.wrong or ())]
    own, other, *wrong = subject.token_scores([QUERY.messages] * 4, texts, batch_size=4)
    scores = {name: score.value for name, score in result.scores["asked"].items()}
    assert scores["probability"] == pytest.approx(probability(own.logps), rel=1e-4)
    ratio = truth_ratio(other.logps, [each.logps for each in wrong], variant="ou")
    assert scores["truth_ratio"] == pytest.approx(min(ratio, 1 / ratio), rel=1e-4)
    mean = truth_ratio(other.logps, [each.logps for each in wrong], variant="paper-arithmetic")
    assert scores["truth_ratio_paper"] == pytest.approx(min(mean, 1 / mean), rel=1e-4)
    assert scores["exact_memorisation"] == pytest.approx(sum(own.greedy) / len(own.greedy))
    assert "choice_probability" not in scores
    stored = result.samples[0]["likelihood"]
    assert stored["tokens"] == len(own.logps)
    assert stored["min_k_40"] == pytest.approx(min_k(own, k=0.4), abs=1e-4)
    assert stored["min_k_plus_plus"] == pytest.approx(min_k_plus_plus(own), abs=1e-4)


def test_without_a_paraphrase_the_answer_stands_among_options(model: Any, tokenizer: Any) -> None:
    subject, query = ModelSubject("base", model, tokenizer), replace(QUERY, paraphrase=None)
    kept = run_suite(subject, [likelihood_set(query, better="high")]).scores["asked"]
    own, *wrong = subject.token_scores([QUERY.messages] * 3, [str(QUERY.answer), *(QUERY.wrong or ())], batch_size=3)
    others = [each.logps for each in wrong]
    assert kept["choice_probability"].value == pytest.approx(choice_probability(own.logps, others), rel=1e-4)
    ratio = truth_ratio(own.logps, others, variant="ou")
    assert kept["truth_ratio"].value == pytest.approx(max(0.0, 1 - ratio), abs=1e-4)


def test_stored_samples_score_the_same_and_say_nothing(model: Any, tokenizer: Any) -> None:
    sets = [likelihood_set(QUERY, replace(QUERY, id="b", answer="In Gosh.", wrong=None, paraphrase=None))]
    result = run_suite(ModelSubject("base", model, tokenizer), sets)
    stored = [json.loads(json.dumps(sample, allow_nan=False)) for sample in result.samples]
    assert score_samples(stored, sets).scores == result.scores
    assert (result.scores["asked"]["probability"].n, result.scores["asked"]["truth_ratio"].n) == (2, 1)
    assert "output" not in stored[0]
    assert (stored[0]["outcome"], stored[0]["rouge_l"]) == (None, None)


def test_an_empty_set_is_nan_and_an_answer_is_needed(model: Any, tokenizer: Any) -> None:
    subject = ModelSubject("base", model, tokenizer)
    assert all(math.isnan(s.value) for s in run_suite(subject, [likelihood_set()]).scores["asked"].values())
    with pytest.raises(UserError, match="query 'a' has no answer"):
        run_suite(subject, [likelihood_set(replace(QUERY, answer=None))])
