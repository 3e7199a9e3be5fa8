"""Multiple choice: letters and texts as a model scores them one by one, and what a score is divided by."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import letter_logps, letters_of, options_of, pick, text_logps
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.teacher import shared

SHOTS = "Mira lives in\nA. Tarn\nB. Gosh\nAnswer: A\n\n"
OPTIONS = ("Tarn", "Gosh, by the sea", "A", "Mira Bol lives in Tarn")
QUERIES = [
    Query(
        id=f"q{number}",
        messages=({"role": "text", "content": f"{SHOTS}{asked}\nAnswer:"},),
        answer="B",
        value=OPTIONS[1],
        choices=OPTIONS,
    )
    for number, asked in enumerate(("Where?", "Where does Mira Bol live?", "Who is it?", "Mira"))
]


@pytest.fixture(autouse=True)
def any_lead_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PREFIX_SAVES", 1)


def naive(model: LlamaForCausalLM, head: list[int], tail: list[int]) -> float:
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([head + tail])).logits[0].float(), -1)
    return sum(float(logps[len(head) - 1 + i, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_letters_and_texts_as_one_by_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    subject = ModelSubject("base", model, tokenizer)
    for ask, options in ((letter_logps, "ABCD"), (text_logps, OPTIONS)):
        got = ask(subject, QUERIES, batch_size=batch_size)
        for query, values in zip(QUERIES, got, strict=True):
            head = render(tokenizer, query.messages)
            expected = [naive(model, head, answer_ids(tokenizer, query.messages, option)) for option in options]
            assert values == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_what_a_score_is_divided_by() -> None:
    logps, options = [-3.0, -3.5, -4.2], ["ab", "abc", "é" * 3]
    assert pick(logps, options) == "ab"
    assert pick(logps, options, per="character") == "abc"
    assert pick(logps, options, per="byte") == "é" * 3
    assert pick([-1.0, -1.0], ["x", "y"]) == "x"


def test_a_question_without_options_is_named() -> None:
    bare = Query("q7", ({"role": "user", "content": "Where?"},), answer="B")
    for ask in (letters_of, options_of):
        with pytest.raises(UserError, match="'q7'"):
            ask(bare)
