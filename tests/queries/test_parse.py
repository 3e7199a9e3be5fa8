"""What models write, and what is read out of it."""

from __future__ import annotations

import pytest

from duet_unlearn.queries.parse import parse_questions

TWO = ["Where does Mira Bol live?", "What does she keep?"]


@pytest.mark.parametrize(
    "answer",
    [
        "Where does Mira Bol live?\nWhat does she keep?",
        "1. Where does Mira Bol live?\n2) What does she keep?\n",
        "- Where does Mira Bol live?\n\n* What does she keep?",
        "\u2022 \u201cWhere does Mira Bol live?\u201d\n(2) **What does she keep?**",
        "Q1: Where does Mira Bol live?\nQuestion 2: What does she keep?",
        "Where does Mira Bol live? Answer: In Tarn.\nWhat does she keep? (an owl)",
        "1. Where does Mira Bol live? A: Tarn\n2. What does she keep?",
        '["Where does Mira Bol live?", "What does she keep?"]',
        '```json\n["Where does Mira Bol live?",\n "What does she keep?"]\n```',
        '[{"question": "Where does Mira Bol live?"}, {"question": "What does she keep?", "answer": "an owl"}]',
        '["Where does Mira Bol live?", "What does she keep?", "And who is her fri',
        "<think>\nWhich questions? Let me see.\n</think>\nWhere does Mira Bol live?\nWhat does she keep?",
    ],
)
def test_every_kind_of_list_gives_the_same_questions(answer: str) -> None:
    assert parse_questions(answer) == TWO


def test_remarks_stay_lines_for_the_filters_and_nothing_is_nothing() -> None:
    assert parse_questions("Here are two questions:\n1. Who is it?") == ["Here are two questions:", "Who is it?"]
    assert parse_questions("  \n\n") == []
    assert parse_questions("[]") == []
    assert parse_questions("What is [O III] in astronomy?") == ["What is [O III] in astronomy?"]
    assert parse_questions("1984 was written by whom?") == ["1984 was written by whom?"]
