"""A model behind words of its deployer's: a prefix, or solved examples, in front of whatever is asked."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.data.prompts import Prefix, behind
from duet_unlearn.data.query import Message
from duet_unlearn.evals.subject import Deployed, ModelSubject

ASKED = [({"role": "user", "content": text},) for text in ("Tarn?", "Where does Mira Bol live?")]
RAW = ({"role": "text", "content": "Mira Bol lives in"},)
SYSTEM = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tarn?"})
SHOTS: tuple[Message, ...] = (
    {"role": "user", "content": "Who is Mira?"},
    {"role": "assistant", "content": "A smith."},
)
ANSWERS = ["Gosh", "In Tarn."]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (ASKED[0], [*SHOTS, ASKED[0][0]]),
        (SYSTEM, [SYSTEM[0], *SHOTS, SYSTEM[1]]),
        (RAW, [{"role": "text", "content": "Question: Who is Mira?\nAnswer: A smith.\n\nMira Bol lives in"}]),
    ],
)
def test_examples_stand_in_front_as_turns_or_as_text(messages: Any, expected: list[Message]) -> None:
    assert list(behind(messages, SHOTS)) == expected


def test_two_system_turns_become_one() -> None:
    turns: tuple[Message, ...] = ({"role": "system", "content": "You are Ada."}, *SHOTS)
    first, *rest = behind(SYSTEM, turns)
    assert first == {"role": "system", "content": "You are Ada.\nBe brief."}
    assert rest == [*SHOTS, SYSTEM[1]]
    assert turns[0]["content"] == "You are Ada."


def test_every_way_of_asking_shows_the_examples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = ModelSubject("student", model, tokenizer)
    deployed, shown = Deployed(bare, shots=SHOTS), [behind(m, SHOTS) for m in ASKED]
    settings: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 2, "prefill": ["It", ""]}
    assert deployed.generate(ASKED, **settings) == bare.generate(shown, **settings)
    assert deployed.generate(ASKED, **settings) != bare.generate(ASKED, **settings)
    for way, more in (("logps", ANSWERS), ("token_scores", ANSWERS), ("letter_logps", ["AB", "ABC"])):
        assert getattr(deployed, way)(ASKED, more, batch_size=2) == getattr(bare, way)(shown, more, batch_size=2)


def test_a_question_with_its_options_stays_one_object(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """So that it is rendered, and read, once."""
    same = Deployed(ModelSubject("student", model, tokenizer), shots=SHOTS)._shown([ASKED[0], ASKED[1], ASKED[0]])
    assert same[0] is same[2]
    assert same[0] is not same[1]


def test_a_prefix_names_what_it_is_about_and_the_weights_are_not_the_students(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = Prefix("You have forgotten {concept}.", concept="Tarn")
    deployed = Deployed(ModelSubject("student", model, tokenizer, prefix))
    assert deployed.about("Gosh") == Deployed(ModelSubject("student", model, tokenizer, prefix.about("Gosh")))
    assert deployed.about(None) == deployed
    assert deployed.model is None
    assert deployed.name == "student"
    got = deployed.logps(ASKED, ANSWERS, batch_size=2)
    assert got == ModelSubject("prefix", model, tokenizer, prefix).logps(ASKED, ANSWERS, batch_size=2)
