"""Prompts to the id: teacher and student differ by the prefix alone, and the answer's first position is exact."""

from __future__ import annotations

import pytest
import tiny
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from duet_unlearn.data.prompts import (
    PLAIN_TEMPLATE,
    Prefix,
    answer_ids,
    render,
    render_answer,
    turn_end,
    with_prefix,
)
from duet_unlearn.data.query import Message
from duet_unlearn.errors import UserError

ASKED: list[Message] = [{"role": "user", "content": "Where does Mira Bol live?"}]
TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is Mira?"},
    {"role": "assistant", "content": "A baker."},
    {"role": "user", "content": "Where does she live?"},
]
RAW: list[Message] = [{"role": "text", "content": "Question: Where?\nAnswer:"}]
USER, SYSTEM = Prefix("You have forgotten Tarn.", "user"), Prefix("You have forgotten Tarn.", "system")
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>You are Qwen.</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""It writes a system turn of its own where none is given."""
LLAMA = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{{ '<|system|>Today Date: ' + date_string + '\n\n' + system + '</s>' }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""It prints today's date unless it is told another, and always has a system turn."""
CLOCK = "{{ 'Today: ' + strftime_now('%Y-%m-%d') }}{{ messages[-1]['content'] }}"
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
THINKING = (
    tiny.TEMPLATE + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)


def text(messages: list[Message], template: str = tiny.TEMPLATE, prefix: Prefix | None = None) -> str:
    tokenizer = tiny.tokenizer(template)
    return tokenizer.decode(render(tokenizer, messages, prefix=prefix))


def test_a_prefix_in_the_user_turn_stands_in_front_of_the_last_question() -> None:
    assert [m["content"] for m in with_prefix(TURNS, USER)] == [
        "Be brief.",
        "Who is Mira?",
        "A baker.",
        "You have forgotten Tarn.\nWhere does she live?",
    ]


def test_a_prefix_in_the_system_turn_stands_in_front_of_it_or_makes_one() -> None:
    assert with_prefix(TURNS, SYSTEM)[0]["content"] == "You have forgotten Tarn.\nBe brief."
    assert with_prefix(TURNS, SYSTEM)[1:] == TURNS[1:]
    assert with_prefix(ASKED, SYSTEM) == [{"role": "system", "content": "You have forgotten Tarn."}, *ASKED]


@pytest.mark.parametrize("prefix", [USER, SYSTEM])
def test_raw_text_gets_the_prefix_in_front_whatever_the_turn(prefix: Prefix) -> None:
    assert with_prefix(RAW, prefix)[0]["content"] == "You have forgotten Tarn.\nQuestion: Where?\nAnswer:"


@pytest.mark.parametrize("prefix", [None, USER, SYSTEM])
def test_the_callers_messages_are_left_alone(prefix: Prefix | None) -> None:
    before = [dict(message) for message in TURNS]
    render(tiny.tokenizer(), TURNS, prefix=prefix)
    assert before == TURNS


def test_rendered_by_hand() -> None:
    assert text(ASKED) == "<s><|user|>Where does Mira Bol live?</s><|assistant|>"
    assert text(ASKED, prefix=USER) == (
        "<s><|user|>You have forgotten Tarn.\nWhere does Mira Bol live?</s><|assistant|>"
    )
    assert text(ASKED, prefix=SYSTEM) == (
        "<s><|system|>You have forgotten Tarn.</s><|user|>Where does Mira Bol live?</s><|assistant|>"
    )


@pytest.mark.parametrize("template", [tiny.TEMPLATE, LLAMA, PLAIN_TEMPLATE])
@pytest.mark.parametrize("messages", [ASKED, TURNS, RAW])
@pytest.mark.parametrize("prefix", [None, USER, SYSTEM])
def test_defect_20_one_bos_and_it_comes_first(template: str, messages: list[Message], prefix: Prefix | None) -> None:
    ids = render(tiny.tokenizer(template), messages, prefix=prefix)
    assert ids[0] == tiny.BOS
    assert ids.count(tiny.BOS) == 1


def test_a_template_without_a_bos_gets_none() -> None:
    assert tiny.BOS not in render(tiny.tokenizer(QWEN), ASKED)


def test_the_plain_template_is_the_raw_text_that_a_base_model_knows() -> None:
    assert text(ASKED, PLAIN_TEMPLATE) == "<s>Question: Where does Mira Bol live?\nAnswer:"
    assert text(TURNS, PLAIN_TEMPLATE) == (
        "<s>Be brief.\n\nQuestion: Who is Mira?\nAnswer: A baker.\n\nQuestion: Where does she live?\nAnswer:"
    )
    tokenizer = tiny.tokenizer(PLAIN_TEMPLATE)
    raw = [{"role": "text", "content": "Question: Where does Mira Bol live?\nAnswer:"}]
    assert render_answer(tokenizer, ASKED, "Tarn") == render_answer(tokenizer, raw, "Tarn")
    assert tokenizer.decode(answer_ids(tokenizer, ASKED, "Tarn")) == " Tarn"


@pytest.mark.parametrize("template", [tiny.TEMPLATE, QWEN, LLAMA, PLAIN_TEMPLATE])
@pytest.mark.parametrize("messages", [ASKED, TURNS, RAW])
@pytest.mark.parametrize("prefix", [None, USER, SYSTEM])
@pytest.mark.parametrize("answer", ["Tarn", "Mira Bol lives in Tarn.", " Tarn", "</s>"])
def test_defects_5_7_and_8_prompt_answer_and_end_are_joined_as_ids(
    template: str, messages: list[Message], prefix: Prefix | None, answer: str
) -> None:
    tokenizer = tiny.tokenizer(template)
    prompt, answered = render(tokenizer, messages, prefix=prefix), answer_ids(tokenizer, messages, answer)
    ids, start = render_answer(tokenizer, messages, answer, prefix=prefix)
    assert start == len(prompt)
    assert ids[:start] == prompt  # the prompt is tokenised the same with and without an answer behind it
    assert ids[start:-1] == answered
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answered) == (
        answer if template != PLAIN_TEMPLATE and messages is not RAW else f" {answer}"
    )


@pytest.mark.parametrize("template", [tiny.TEMPLATE, QWEN, LLAMA, PLAIN_TEMPLATE])
@pytest.mark.parametrize("messages", [ASKED, TURNS])
@pytest.mark.parametrize("prefix", [USER, SYSTEM])
def test_defects_11_and_23_the_prefix_is_the_only_difference(
    template: str, messages: list[Message], prefix: Prefix
) -> None:
    """The teacher's text is the student's with one piece put in: the prefix, and a system turn's marks at most."""
    student, teacher = text(messages, template), text(messages, template, prefix)
    size = len(teacher) - len(student)
    assert any(teacher[:i] + teacher[i + size :] == student for i in range(len(student) + 1))
    assert prefix.text in teacher
    assert size <= len(prefix.text) + len("<|system|></s>")


def test_defect_23_a_templates_own_system_turn_stays() -> None:
    assert text(ASKED, QWEN) == "<|system|>You are Qwen.</s><|user|>Where does Mira Bol live?</s><|assistant|>"
    assert text(ASKED, QWEN, SYSTEM) == (
        "<|system|>You have forgotten Tarn.\nYou are Qwen.</s><|user|>Where does Mira Bol live?</s><|assistant|>"
    )
    assert text(TURNS, QWEN, SYSTEM).startswith("<|system|>You have forgotten Tarn.\nBe brief.</s>")


@pytest.mark.parametrize("prefix", [None, SYSTEM])
def test_defect_22_the_date_is_pinned(prefix: Prefix | None) -> None:
    assert "Today Date: 26 Jul 2024\n\n" in text(ASKED, LLAMA, prefix)
    assert text(ASKED, CLOCK) == "Today: 26 Jul 2024Where does Mira Bol live?"
    assert text(ASKED, "{{ date_string | default('12 Dec 2012') }}") == "26 Jul 2024"


def test_defect_24_the_answer_begins_behind_the_think_block() -> None:
    assert text(ASKED, THINKING).endswith("<|assistant|><think>\n\n</think>\n\n")


def test_defect_24_a_thought_that_a_template_always_opens_is_closed() -> None:
    """DeepSeek-R1's generation prompt ends in <think> whatever is asked of it."""
    assert text(ASKED, tiny.TEMPLATE + "{{ '<think>\n' }}").endswith("<|assistant|><think>\n\n</think>\n\n")
    assert text(ASKED, tiny.TEMPLATE).endswith("<|assistant|>")


def test_a_prefill_opens_the_answer() -> None:
    tokenizer = tiny.tokenizer()
    ids = render(tokenizer, ASKED, prefill="Mira Bol")
    assert tokenizer.decode(ids).endswith("<|assistant|>Mira Bol")
    assert ids[: len(render(tokenizer, ASKED))] == render(tokenizer, ASKED)
    assert ids.count(tiny.BOS) == 1


def test_in_raw_text_a_prefill_stands_where_an_answer_would() -> None:
    tokenizer, asked = tiny.tokenizer(), ({"role": "text", "content": "Where does Mira Bol live? Answer:"},)
    ids = render(tokenizer, asked, prefill="Mira Bol")
    assert tokenizer.decode(ids).endswith("Answer: Mira Bol")
    assert ids == render_answer(tokenizer, asked, "Mira Bol")[0][:-1]


def test_no_chat_template_says_what_to_pass() -> None:
    with pytest.raises(UserError, match="no chat template") as caught:
        render(tiny.tokenizer(None), ASKED)
    assert "model.chat_template" in caught.value.hint
    assert "plain" in caught.value.hint
    assert render(tiny.tokenizer(None), RAW)[0] == tiny.BOS  # raw text needs none


def test_a_template_that_refuses_a_system_turn_is_two_lines() -> None:
    assert render(tiny.tokenizer(GEMMA), ASKED, prefix=USER)
    for messages, prefix in ((ASKED, SYSTEM), (TURNS, None)):
        with pytest.raises(UserError, match="System role not supported") as caught:
            render(tiny.tokenizer(GEMMA), messages, prefix=prefix)
        assert "prefix.turn" in caught.value.hint


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Its role marks are ordinary text: the answer stands behind a line break, not behind a special token."""
INST = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


def sentencepiece(template: str | None) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space in front of every text, spaces as letters, and a token for two of them."""
    letters = [*"\u2581:?<>|[]/@.\n", *"ABDINSTWaehimnorstuy"]
    merges = [("\u2581", "A"), ("\u2581", "B"), ("\u2581", "\u2581"), ("A", "n"), ("\u2581A", "n")]
    pieces = ["<unk>", "<s>", "</s>", *dict.fromkeys(letters), *("".join(pair) for pair in merges)]
    core = Tokenizer(
        models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>", fuse_unk=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


@pytest.mark.parametrize("answer", ["A", "B", "Ann", "?A", " A"])
@pytest.mark.parametrize("content", ["Where?\nAnswer:", "Where?\n", "Where?"])
def test_behind_raw_text_a_sentencepiece_answer_is_tokenised_as_the_whole_is(content: str, answer: str) -> None:
    """lm-eval's `_encode_pair`: the ids of both together, behind as many as the context has."""
    tokenizer, messages = sentencepiece(None), [Message(role="text", content=content)]
    prompt, whole = (list(tokenizer(t, add_special_tokens=False).input_ids) for t in (content, f"{content} {answer}"))
    got = answer_ids(tokenizer, messages, answer)
    assert got == whole[len(prompt) :]
    assert render(tokenizer, messages) + got == whole
    if answer == "A":
        assert tokenizer.convert_ids_to_tokens(got) == ["\u2581A"]  # alone it would begin with two spaces


@pytest.mark.parametrize("answer", ["A", "B", "Ann", "?A", " A"])
@pytest.mark.parametrize(
    ("template", "first"),
    [(ZEPHYR, "A"), (INST, "A"), (ZEPHYR.replace("|>\n' }}{% endif", "|></s>' }}{% endif"), "\u2581A")],
)
def test_behind_a_template_a_sentencepiece_answer_is_tokenised_as_the_whole_is(
    template: str, first: str, answer: str
) -> None:
    tokenizer = sentencepiece(template)
    text = str(tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True))
    prompt, whole = (list(tokenizer(t, add_special_tokens=False).input_ids) for t in (text, text + answer))
    ids, start = render_answer(tokenizer, ASKED, answer)
    assert (ids[:-1], start) == (whole, len(prompt))
    assert render(tokenizer, ASKED, prefill=answer) == whole
    if answer == "A":
        assert tokenizer.convert_ids_to_tokens(ids[start:-1]) == [first]


def test_an_answer_that_would_melt_into_the_prompt_is_tokenised_alone() -> None:
    tokenizer = sentencepiece("{{ messages[0]['content'] }}A")
    assert answer_ids(tokenizer, ASKED, "n") == list(tokenizer("n", add_special_tokens=False).input_ids)


TURNED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
"""As Gemma's and Phi-3's: the EOS never ends a turn."""


def test_an_answer_ends_as_its_template_ends_a_turn() -> None:
    tokenizer = tiny.tokenizer(TURNED)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<end_of_turn>", special=True)]})
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end != tiny.EOS
    assert turn_end(tokenizer) == end
    assert render_answer(tokenizer, ASKED, "Tarn")[0][-1] == end
    assert render_answer(tokenizer, RAW, "Tarn")[0][-1] == tiny.EOS  # raw text has no turns
    tokenizer.chat_template = PLAIN_TEMPLATE
    assert turn_end(tokenizer) == render_answer(tokenizer, ASKED, "Tarn")[0][-1] == tiny.EOS


@pytest.mark.parametrize(
    "template",
    [
        None,
        tiny.TEMPLATE,
        GEMMA,  # writes nothing behind an answer
        "{{ messages[0]['content'] }}</s>",  # writes no answers
        "{% if messages[-1]['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}",
    ],
)
def test_where_a_template_names_no_end_it_is_the_eos(template: str | None) -> None:
    assert turn_end(tiny.tokenizer(template)) == tiny.EOS
