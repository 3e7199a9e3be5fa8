"""Right, refused or wrong: whole words, longest match, value before wording."""

from __future__ import annotations

import pytest

from duet_unlearn.evals.score import normalise, outcome, rouge_l, value_match

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
    ],
)
def test_value_match(answer: str, value: str, right: bool) -> None:
    assert value_match(answer, value, TOWNS) is right


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


def test_rouge_l_is_f1_without_stemming() -> None:
    # Common are "mira" and "in" (a stemmer would add "live"): 2 of 3 and 2 of 5 words, F1 = 4 / (3 + 5).
    assert rouge_l("Mira live in", "Mira Bol lives in Tarn") == pytest.approx(0.5)
    assert rouge_l("", "Tarn") == 0.0
