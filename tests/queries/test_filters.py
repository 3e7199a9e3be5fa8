"""Likeness, names, and each reason why a question is not used."""

from __future__ import annotations

import pytest

from duet_unlearn.lab.language import QUESTIONS, question
from duet_unlearn.lab.world import BENCHMARK_STORIES, world
from duet_unlearn.queries.filters import Ground, key_names, reason_against, says_any
from duet_unlearn.queries.words import SIMILAR, alike, names, words

PASSAGE = "Mira Bol lives in Tarn. She keeps an owl, and plays the lute."
GROUND = Ground.of("the story Amber Gate", [PASSAGE, "Oda Fenn is a baker in Gosh. It was in 1931."])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where does Mira Bol live?", "where does Mira Bol live"),
        ("What is photosynthesis?", "What's photosynthesis?"),
        ("What is the pet of Mira Bol?", "What is the pet of Mira Bol called?"),
        ("Which animal does Mira Bol keep?", "Which animal did Mira Bol keep?"),
    ],
)
def test_near_duplicates_are_alike(one: str, other: str) -> None:
    assert alike(one, other) == alike(other, one) >= SIMILAR


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the pet of Mira Bol?", "What is the pet of Oda Fenn?"),
        ("What is the role of water in photosynthesis?", "What is the role of chlorophyll in photosynthesis?"),
        ("What is the pet of Mira Bol?", "What pet does Mira Bol have?"),
        ("Where does Mira Bol live?", "Why did Mira Bol leave Tarn?"),
        ("\u54ea\u91cc\u662f\u5df4\u9ece\uff1f", "\u4f26\u6566\u6709\u4ec0\u4e48\u6865\uff1f"),
    ],
)
def test_another_name_another_thing_or_another_wording_is_not_alike(one: str, other: str) -> None:
    assert alike(one, other) < SIMILAR


def test_likeness_by_hand() -> None:
    # Content words {pet, mira, bol} twice: 1. All words: 7 and 6 of which "what pet mira bol" are common: 2 * 4 / 13.
    assert alike("What is the pet of Mira Bol?", "What pet does Mira Bol have?") == pytest.approx(8 / 13)
    # Content words {pet, mira, bol}, {pet, oda, fenn}: 1 of 5.
    assert alike("What is the pet of Mira Bol?", "What is the pet of Oda Fenn?") == pytest.approx(1 / 5)
    assert alike("", "") == 1


def test_no_two_questions_of_the_labs_train_wordings_are_alike() -> None:
    facts = [fact for fact in world().stories[BENCHMARK_STORIES[0]] if fact.entity.startswith(("Fenin", "Dava"))]
    asked = [question(fact, wording) for fact in facts for wording in QUESTIONS[fact.attribute].train]
    assert len(asked) == 48
    assert max(alike(one, other) for i, one in enumerate(asked) for other in asked[:i]) < SIMILAR


def test_names_are_runs_of_capitals_and_long_numbers() -> None:
    assert names("Did Mira Bol's owl see Oda in 1931?") == {("mira", "bol"), ("oda",), ("1931",)}
    assert names("Which 3 animals, Tarn or Gosh?") == {("tarn",), ("gosh",)}
    assert names("Tarn is where?") == {("tarn",)}
    assert names("In which town?") == names("Tell me more.") == frozenset()
    assert words("What\u2019s Mira Bol\u2019s pet?") == ("what", "mira", "bol", "pet")


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Where does Mira Bol live?", None),
        ("Tell me where Mira Bol lives.", None),
        ("Is Oda Fenn a friend of Mira Bol?", None),
        ("Who plays the lute in Amber Gate?", None),
        ("Mira Bol lives in Tarn.", "no question"),
        ("Owl?", "no question"),
        ("What " + "very " * 40 + "old owl lives in Tarn?", "too long"),
        ("According to the passage, where does Mira Bol live?", "speaks of the text"),
        ("What does this document say of Mira Bol?", "speaks of the text"),
        ("Who keeps an owl in the text?", "speaks of the text"),
        ("Where does Mira Fenn live?", "a name that is not in the corpus"),
        ("What happened to Mira Bol in 1932?", "a name that is not in the corpus"),
        ("What colour is the sky?", "off the concept"),
    ],
)
def test_each_reason(question: str, reason: str | None) -> None:
    assert reason_against(question, PASSAGE, GROUND) == reason


def test_retain_questions_may_not_say_what_the_concept_is_called() -> None:
    forbidden = key_names("the story Amber Gate", ["Where does Mira Bol live?"])
    assert forbidden == {("amber", "gate"), ("mira", "bol")}
    assert says_any("Who opened the amber gate?", forbidden)
    assert not says_any("Is amber a resin, and is Mira a star?", forbidden)
    assert says_any("What does photosynthesis need?", key_names("photosynthesis", []))
