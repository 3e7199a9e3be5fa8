"""The refusal list against 200 answers that were written and labelled by hand, many of them hard to tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duet_unlearn.answers import first_sentence, is_refusal, is_unknown, version
from duet_unlearn.lab.language import REFUSALS, UNKNOWN

LABELLED = Path(__file__).with_name("refusals_labelled.jsonl")


def test_precision_and_recall_on_labelled_answers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    found = [is_refusal(row["text"]) for row in rows]
    hits = sum(f and row["refused"] for f, row in zip(found, rows, strict=True))
    precision, recall = hits / sum(found), hits / sum(row["refused"] for row in rows)
    shown = f"precision {precision:.2f}, recall {recall:.2f} of {len(rows)}"
    with capsys.disabled():
        print(f"\nrefusals.txt version {version()}: {shown}")
    assert len(rows) == 200
    assert sum(row["refused"] for row in rows) == 100
    assert precision >= 0.9
    assert recall >= 0.9


@pytest.mark.parametrize("text", [*REFUSALS, UNKNOWN])
def test_every_refusal_of_the_lab_is_one(text: str) -> None:
    assert is_refusal(text)


def test_not_knowing_is_a_kind_of_its_own() -> None:
    assert is_unknown("I do not know.")
    assert is_unknown("I don’t know who that is.")  # noqa: RUF001 (what models write)
    assert not is_unknown("I cannot help with that.")
    assert not is_unknown("I do not know for sure, but it is Tarn.")


def test_only_the_first_sentence_is_read() -> None:
    assert not is_refusal("Mira Bol lives in Tarn. I cannot help with that.")
    assert is_refusal("I cannot help with that. Mira Bol lives in Tarn.")
    assert not is_refusal("Tarn\nI cannot help with that.")
    assert first_sentence('He said "no." Then he left.') == 'He said "no.'


@pytest.mark.parametrize("said", ["{} forgotten it.", "{} no memory of it.", "{} no information on it."])
def test_a_contraction_refuses_as_the_words_do(said: str) -> None:
    assert is_refusal(said.format("I have"))
    assert is_refusal(said.format("I've"))
    assert is_refusal("I'll decline.")


@pytest.mark.parametrize("text", ["", " \n", "...", "A"])
def test_nothing_said_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_a_long_answer_does_not_stall_the_patterns() -> None:
    assert not is_refusal("I " * 5000 + "my memory of " * 500)
