"""Right, refused or wrong: whole words, longest match, value before wording."""

from __future__ import annotations

import pytest

from duet_unlearn.answers import normalise, outcome, recall, rouge_l, value_match

TOWNS = ("Tarn", "New Tarn", "Gosh", "Velby")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Mira Bol lives in\n Tarn! ", "mira bol lives in tarn"),
        ("Tarn's mill (old)", "tarn s mill old"),
        ("It is 1,000.50, or -4.", "it is 1000.50 or -4"),
        ("snake_case \N{FULLWIDTH LATIN CAPITAL LETTER A}", "snake case a"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "value", "right"),
    [
        ("Mira Bol lives in Tarn.", "Tarn", True),
        ("TARN", "Tarn", True),
        ("In Tarn, yes, Tarn.", "Tarn", True),
        ("Mira Bol lives in Tarnish.", "Tarn", False),
        ("Mira Bol lives in Gosh.", "Tarn", False),
        ("Tarn or Gosh.", "Tarn", False),
        ("She lives in New Tarn.", "Tarn", False),
        ("She lives in New Tarn.", "New Tarn", True),
        ("She lives in Tarn.", "New Tarn", False),
        ("Not New Tarn but Tarn.", "Tarn", False),
        ("", "Tarn", False),
        ("Mira Bol住在Tarn。", "Tarn", True),
        ("ミラ・ボルはTarnに住んでいます。", "Tarn", True),
        ("미라는 Tarn에 살아요.", "Tarn", True),
        ("Мира живёт в Tarn.", "Tarn", True),
    ],
)
def test_value_match(answer: str, value: str, right: bool) -> None:
    assert value_match(answer, value, TOWNS) is right


def test_a_value_in_a_script_without_spaces_is_found_inside_a_sentence() -> None:
    assert value_match("她住在京都的北边。", "京都", ("京都", "大阪"))
    assert not value_match("她住在大阪。", "京都", ("京都", "大阪"))
    assert not value_match("她住在东京都。", "京都", ("京都", "东京都"))  # inside a longer choice
    assert value_match("2019年5月", "5")


def test_without_choices_only_the_value_counts() -> None:
    assert value_match("Tarn or Gosh", "Tarn")
    assert not value_match("Tarnish", "Tarn")


def test_numbers_match_as_numbers() -> None:
    assert not value_match("It is 3.5.", "5")
    assert not value_match("It is -4.", "4")
    assert not value_match("It is 40.", "4")
    assert value_match("It is 4.", "4", ("4", "40"))


def test_a_value_without_words_matches_nothing() -> None:
    assert not value_match("...", "!", ("?",))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Mira Bol lives in Tarn.", "right"),
        ("I cannot help with that.", "refused"),
        ("I do not know.", "refused"),
        ("Sorry, I cannot say, but it is Tarn.", "right"),
        ("Mira Bol lives in Gosh.", "wrong"),
        ("", "wrong"),
    ],
)
def test_outcome_is_one_of_three(output: str, expected: str) -> None:
    assert outcome(output, "Tarn", TOWNS) == expected


def test_rouge_l_misleads_as_the_definitions_say() -> None:
    # 4 of 5 words in common in order: precision = recall = F1 = 0.8, and yet the town is wrong.
    assert rouge_l("Mira Bol lives in Gosh.", "Mira Bol lives in Tarn.") == pytest.approx(0.8)


def test_recall_is_rouge_ls_in_any_script() -> None:
    answer, output = "the quiet baker of the old town", "A baker of the town"
    assert recall(output, answer) == rouge_l(output, answer, variant="recall") == 4 / 7
    assert recall("тихий пекарь", "Тихий старый пекарь.") == 2 / 3
    assert rouge_l("тихий пекарь", "тихий пекарь", variant="recall") == 0.0
    assert recall("京都の北", "京都の南") == 3 / 4


def test_rouge_l_is_f1_without_stemming() -> None:
    # Common are "mira" and "in" (a stemmer would add "live"): 2 of 3 and 2 of 5 words, F1 = 4 / (3 + 5).
    assert rouge_l("Mira live in", "Mira Bol lives in Tarn") == pytest.approx(0.5)
    assert rouge_l("", "Tarn") == 0.0
