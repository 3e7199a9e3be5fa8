"""A subject's answers against the slowest way to get them: one prompt at a time, no cache, no padding."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from duet_unlearn.data.prompts import Prefix, answer_ids, render
from duet_unlearn.errors import UserError
from duet_unlearn.evals.generate import cut
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.teacher.decoding import end_ids, greedy
from duet_unlearn.tensors import batches

ASKED = [
    ({"role": "user", "content": text},)
    for text in (
        "Tarn?",
        "Where does Mira Bol live, and since when?",
        "Mira",
        "Is it in Tarn or in Gosh or in Velby?",
    )
]
RAW = ({"role": "text", "content": "Question: Where?\nAnswer:"},)
PREFIX = Prefix("You have forgotten Tarn.")


def naive(model: torch.nn.Module, ids: list[int], eos_ids: frozenset[int], steps: int) -> list[int]:
    new: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in eos_ids:
            break
        new.append(token)
    return new


def naive_logp(model: torch.nn.Module, head: list[int], tail: list[int]) -> float:
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([head + tail])).logits[0].float(), -1)
    return sum(float(logps[len(head) - 1 + i, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("prefix", [None, PREFIX])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_defect_10_batched_answers_are_those_of_one_at_a_time(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prefix: Prefix | None, batch_size: int
) -> None:
    subject = ModelSubject("base", model, tokenizer, prefix)
    got = subject.generate(ASKED, max_new_tokens=6, batch_size=batch_size)
    eos_ids = end_ids(model, tokenizer)
    ids = [naive(model, render(tokenizer, m, prefix=prefix), eos_ids, 6) for m in ASKED]
    assert got == [tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids]
    assert len(set(got)) > 1


def test_defect_21_absolute_positions_survive_left_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    got = ModelSubject("gpt2", gpt2, tokenizer).generate(ASKED, max_new_tokens=5, batch_size=4)
    ids = [naive(gpt2, render(tokenizer, m), end_ids(gpt2, tokenizer), 5) for m in ASKED]
    assert got == [tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids]


def test_a_row_stops_at_its_own_end(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [render(tokenizer, m) for m in ASKED]
    long = [naive(model, row, frozenset(), 6) for row in rows]
    stop = long[0][2]
    expected = [ids[: ids.index(stop)] if stop in ids else ids for ids in long]
    got = greedy(model, rows, eos_ids=frozenset({stop}), padding_id=1, max_new_tokens=6, batch_size=4)
    assert got == expected
    assert any(len(ids) < 6 for ids in got)
    assert any(len(ids) == 6 for ids in got)


def test_a_prefill_opens_the_answer_and_is_not_part_of_it(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = ModelSubject("base", model, tokenizer)
    got = subject.generate(ASKED[:2], prefill=["Mira Bol lives in", ""], max_new_tokens=4, batch_size=2)
    ids = render(tokenizer, ASKED[0]) + tokenizer.encode("Mira Bol lives in", add_special_tokens=False)
    assert got[0] == tokenizer.decode(naive(model, ids, end_ids(model, tokenizer), 4), skip_special_tokens=True).strip()
    assert got[1] == subject.generate(ASKED[1:2], max_new_tokens=4, batch_size=1)[0]


def test_a_prefill_for_every_question_or_none(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="shorter"):
        ModelSubject("base", model, tokenizer).generate(ASKED, prefill=["a"], max_new_tokens=1, batch_size=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Tarn.\n\nQuestion: Who?", "Tarn."),
        (" Tarn.\nQuestion: Who?", "Tarn."),
        (" Tarn. Question", "Tarn."),
        ("\n\nTarn", "Tarn"),
        ("Tarn\n \nGosh", "Tarn"),
        ("Tarn\nGosh", "Tarn\nGosh"),
    ],
)
def test_an_answer_to_raw_text_is_cut(text: str, expected: str) -> None:
    assert cut(text) == expected


@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_logps_are_sums_over_the_answer_without_the_end(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prefix: Prefix | None
) -> None:
    asked, answers = [*ASKED, RAW], ["Tarn", "Mira Bol lives in Tarn.", "Gosh", "A", "Tarn"]
    got = ModelSubject("base", model, tokenizer, prefix).logps(asked, answers, batch_size=3)
    expected = [
        naive_logp(model, render(tokenizer, m, prefix=prefix), answer_ids(tokenizer, m, a))
        for m, a in zip(asked, answers, strict=True)
    ]
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_an_empty_answer_is_certain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert ModelSubject("base", model, tokenizer).logps(ASKED[:1], [""], batch_size=1) == [0.0]


@pytest.mark.parametrize(("asked", "opening"), [(ASKED, ""), ([RAW] * 2, " ")])
def test_a_letters_token_is_the_one_of_the_rendered_answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[tuple[dict[str, str], ...]],
    opening: str,
) -> None:
    got = ModelSubject("base", model, tokenizer).letter_logps(asked, ["ABCD"] * len(asked), batch_size=3)
    for values, m in zip(got, asked, strict=True):
        ids = [tokenizer.encode(opening + letter, add_special_tokens=False) for letter in "ABCD"]
        assert all(len(row) == 1 for row in ids)
        assert values == pytest.approx([naive_logp(model, render(tokenizer, m), row) for row in ids], abs=1e-3)


def test_a_space_that_all_letters_open_with_is_given(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    got = ModelSubject("base", model, tokenizer).letter_logps([RAW], ["XYZ"], batch_size=1)
    space, *_ = tokenizer.encode(" X", add_special_tokens=False)
    tokens = [tokenizer.encode(f" {letter}", add_special_tokens=False) for letter in "XYZ"]
    assert [row[0] for row in tokens] == [space] * 3
    head = [*render(tokenizer, RAW), space]
    assert got[0] == pytest.approx([naive_logp(model, head, row[1:]) for row in tokens], abs=1e-3)


def test_letters_that_begin_alike_are_an_error(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="does not tell the letters A, A apart"):
        ModelSubject("base", model, tokenizer).letter_logps(ASKED[:1], [("A", "A")], batch_size=1)


def test_measuring_leaves_a_training_model_in_training(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    try:
        subject = ModelSubject("student", model, tokenizer)
        subject.generate(ASKED[:1], max_new_tokens=1, batch_size=1)
        subject.logps(ASKED[:1], ["Tarn"], batch_size=1)
        assert model.training
    finally:
        model.eval()


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 90, 7, 90, 8, 300, 1]
    groups = list(batches(lengths, batch_size=3, token_budget=200))
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert groups == [[5], [1, 3], [4, 2, 0], [6]]
