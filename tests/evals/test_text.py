"""ROUGE variants against rouge_score itself, MUSE's cut, and fluency against SciPy's entropy."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import entropy

from duet_unlearn.answers import cut_muse, fluency, ngram_entropy, rouge_l

ANSWER = "Mira Bol lives quietly in the towns of Tarn."
OUTPUTS = ["Mira Bol lived in the town of Gosh, quietly living there.", "Tarn", "", ANSWER]


@pytest.mark.parametrize("output", OUTPUTS)
def test_rouge_variants_are_rouge_scores_own(output: str) -> None:
    plain = RougeScorer(["rougeL"], use_stemmer=False).score(ANSWER, output)["rougeL"]
    stemmed = RougeScorer(["rougeL"], use_stemmer=True).score(ANSWER, output)["rougeL"]
    assert rouge_l(output, ANSWER) == rouge_l(output, ANSWER, variant="f1") == plain.fmeasure
    assert rouge_l(output, ANSWER, variant="recall") == plain.recall
    assert rouge_l(output, ANSWER, variant="recall-stem") == stemmed.recall


def test_rouge_variants_by_hand_differ() -> None:
    # 11 words against 9; in order are Mira Bol in the of: 5. Stemmed, lives and towns too: 7.
    assert rouge_l(OUTPUTS[0], ANSWER) == pytest.approx(2 * 5 / 20)
    assert rouge_l(OUTPUTS[0], ANSWER, variant="recall") == pytest.approx(5 / 9)
    assert rouge_l(OUTPUTS[0], ANSWER, variant="recall-stem") == pytest.approx(7 / 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Tarn.\n\nQuestion: Who?", "Tarn."),
        (" Tarn.\nQuestion 2", "Tarn."),
        (" Tarn. Question: Who?\n\nTarn", "Tarn."),
        ("Tarn? Question it\nGosh", "Tarn? Question it\nGosh"),  # no colon, not at a line's start
        ("\n\nTarn", ""),  # as in MUSE, an answer behind a blank line is none
        ("Tarn\n \nGosh", "Tarn\n \nGosh"),  # a line with a space in it is not blank
        ("", ""),
    ],
)
def test_an_answer_to_muse_is_cut_at_the_first_of_three(text: str, expected: str) -> None:
    assert cut_muse(text) == expected


def test_fluency_is_the_weighted_entropy_of_scipy() -> None:
    words = ["the", "cat", "saw", "the", "cat", ",", "the", "cat", "ran", "."]
    pairs = Counter(pairwise(words))
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    expected = (2 / 3 * entropy(list(pairs.values()), base=2) + 4 / 3 * entropy(list(triples.values()), base=2)) / 2
    assert fluency("the cat saw the cat, the cat ran.") == pytest.approx(expected)


def test_fluency_by_hand() -> None:
    assert fluency("a b c d e") == pytest.approx((2 / 3 * 2 + 4 / 3 * 1.584962500721156) / 2)  # 4 pairs, 3 triples
    assert fluency("no no no no no no") == 0.0
    assert fluency("two words") == 0.0
    assert fluency("") == 0.0


def test_entropy_in_bits() -> None:
    assert ngram_entropy("abab", 1) == 1.0
    assert ngram_entropy("abc", 4) == 0.0
