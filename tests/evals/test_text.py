"""ROUGE variants against rouge_score itself and MUSE's cut."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from duet_unlearn.answers import cut_muse, rouge_l

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
