"""Questions read out of answers, likeness, names, each reason why a question is not used, and an even choice."""

from __future__ import annotations

from collections import Counter

import pytest

from duet_unlearn.lab.language import QUESTIONS, question
from duet_unlearn.lab.world import BENCHMARK_STORIES, world
from duet_unlearn.queries.selection import (
    SIMILAR,
    alike,
    choose,
    key_names,
    names_in,
    normal_words,
    parse_questions,
    reason_against,
    says_any,
    spaced,
    spread,
)

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


PASSAGE = "Mira Bol lives in Tarn. She keeps an owl, and plays the lute."
CONCEPT = "the story Amber Gate"
CORPUS = spaced(normal_words(f"{PASSAGE} Oda Fenn is a baker in Gosh. It was in 1931."))


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
    assert names_in("Did Mira Bol's owl see Oda in 1931?") == {("mira", "bol"), ("oda",), ("1931",)}
    assert names_in("Which 3 animals, Tarn or Gosh?") == {("tarn",), ("gosh",)}
    assert names_in("Tarn is where?") == {("tarn",)}
    assert names_in("In which town?") == names_in("Tell me more.") == frozenset()
    assert normal_words("What\u2019s Mira Bol\u2019s pet?") == ("what", "mira", "bol", "pet")


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
    assert reason_against(question, PASSAGE, concept=CONCEPT, corpus=CORPUS) == reason


def test_retain_questions_may_not_say_what_the_concept_is_called() -> None:
    forbidden = key_names("the story Amber Gate", ["Where does Mira Bol live?"])
    assert forbidden == {("amber", "gate"), ("mira", "bol")}
    assert says_any("Who opened the amber gate?", forbidden)
    assert not says_any("Is amber a resin, and is Mira a star?", forbidden)
    assert says_any("What does photosynthesis need?", key_names("photosynthesis", []))


ROWS = ("Where does {x} live?", "What does {x} keep as a pet?", "Who is the oldest friend of {x}?")


def questions_about(name: str) -> list[str]:
    return [row.format(x=name) for row in ROWS]


def test_chunks_take_turns_and_a_poor_chunk_is_made_up_for() -> None:
    written = {0: questions_about("Mira"), 1: questions_about("Oda")[:1], 2: questions_about("Ulm")}
    kept, _ = choose(written, [[0, 1, 2]], count=6)
    assert Counter(chunk for chunk, _ in kept) == {0: 3, 1: 1, 2: 2}
    assert choose(written, [[0, 1, 2]], count=99)[0][:6] == kept
    assert len(choose(written, [[0, 1, 2]], count=99)[0]) == 7


def test_requests_share_evenly_whatever_their_length() -> None:
    written = {number: questions_about(f"Mira{number}") for number in range(20)} | {20: questions_about("Oda")}
    kept, _ = choose(written, [list(range(20)), [20]], count=6)
    assert Counter(chunk == 20 for chunk, _ in kept) == {True: 3, False: 3}
    assert len({chunk for chunk, _ in kept}) == 4


def test_a_near_duplicate_costs_its_chunk_no_turn() -> None:
    written = {0: questions_about("Mira"), 1: ["Where did Mira live?", "Which lute does Mira play?"]}
    kept, duplicates = choose(written, [[0, 1]], count=2)
    assert kept == [(0, "Where does Mira live?"), (1, "Which lute does Mira play?")]
    assert duplicates == [(1, "Where did Mira live?")]


def test_every_beginning_of_a_spread_is_even() -> None:
    order = spread([range(1000)])
    assert sorted(order) == list(range(1000))
    for size in (10, 50, 200):
        first = sorted(order[:size])
        gaps = [after - before for before, after in zip([0, *first], [*first, 999], strict=True)]
        assert max(gaps) <= 3 * 1000 / size
    assert Counter(item < 100 for item in spread([range(100), range(100, 104)])[:8]) == {True: 4, False: 4}
