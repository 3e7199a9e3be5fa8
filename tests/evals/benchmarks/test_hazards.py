"""WMDP and MMLU: lm-eval's prompt, shots, limits, and what is trained on left out. XSTest: refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rows import Says, settings

from duet_unlearn.errors import UserError
from duet_unlearn.evals.benchmarks import hazards, load_reference
from duet_unlearn.evals.question_sets import letters_of, options_of, run_suite
from duet_unlearn.stats import Score
from duet_unlearn.teacher.probe import asks_letter

SHOTS = """\
The following are multiple choice questions (with answers) about abstract algebra.

dev 0?
A. one
B. two, or so
C. three
D. four
Answer: A

dev 1?
A. one
B. two, or so
C. three
D. four
Answer: B

test 3?
A. one
B. two, or so
C. three
D. four
Answer:"""


def test_the_prompt_is_lm_evals_with_the_first_dev_rows_as_shots(home: Path) -> None:
    (found,) = hazards.mmlu_sets(settings(home))
    assert (found.name, found.protocol, len(found.queries)) == ("mmlu_2shot", "letter", 57 * 4)
    query = found.queries[3]
    assert query.text == SHOTS
    assert query.messages[0]["role"] == "text"
    assert (query.answer, query.value, query.source) == ("D", "four", "abstract_algebra")
    assert (letters_of(query), options_of(query)[0]) == (("A", "B", "C", "D"), "one")
    (plain,) = hazards.mmlu_sets(settings(home, shots=0))
    assert plain.name == "mmlu_0shot"
    assert plain.queries[3].text == SHOTS[: SHOTS.index("dev 0")] + SHOTS[SHOTS.index("test 3") :]


def test_more_shots_than_solved_examples_are_refused(home: Path) -> None:
    with pytest.raises(UserError) as caught:
        hazards.mmlu_sets(settings(home, shots=4))
    assert caught.value.message == "evaluate.shots is 4, but MMLU's abstract_algebra has 3 solved examples"
    assert caught.value.hint == "set evaluate.shots to at most 3"


def test_a_limit_is_of_questions_a_subject_and_drawn_the_same_each_time(home: Path) -> None:
    (first,), (again,) = hazards.mmlu_sets(settings(home, limit=1)), hazards.mmlu_sets(settings(home, limit=1))
    assert len(first.queries) == 57
    assert len({query.source for query in first.queries}) == 57
    assert first.queries == again.queries
    assert len({query.id.rsplit("/", 1)[1] for query in first.queries}) > 1


def test_the_publishers_own_files(published: str) -> None:
    (found,) = hazards.mmlu_sets(settings(published, shots=5))
    assert len(found.queries) == 14_080
    assert len({query.source for query in found.queries}) == 57
    assert all(query.text.count("\nAnswer:") >= 6 for query in found.queries)
    assert {query.answer for query in found.queries} == set("ABCD")
    assert len(load_reference("mmlu:dev", published)) == 285


def test_references_ask_in_a_chat_and_in_the_raw_prompt_by_turns(home: Path) -> None:
    first, second = load_reference("mmlu:test/anatomy", str(home))[:2]
    assert first.messages == (
        {
            "role": "user",
            "content": "test 0?\nA. one\nB. two, or so\nC. three\nD. four\nAnswer with the letter of the right option.",
        },
    )
    assert second.messages[0]["role"] == "text"
    assert asks_letter(first)
    assert asks_letter(second)
    assert len(load_reference("mmlu:", str(home))) == 57 * 4
    with pytest.raises(UserError, match="mmlu:test/anatomi: there is no such part") as caught:
        load_reference("mmlu:test/anatomi", str(home))
    assert caught.value.hint == "did you mean test/anatomy?"


def test_a_row_too_short_names_the_column(home: Path) -> None:
    path = home / "mmlu" / "test" / "anatomy_test.csv"
    path.write_text("Who?,one,two,three,four\n")
    with pytest.raises(UserError) as caught:
        hazards.mmlu_sets(settings(home))
    assert caught.value.message == f"{path}:1: has no column `answer`"
    assert "without a header line" in caught.value.hint


def test_wmdp_trains_on_one_part_and_measures_the_other(home: Path) -> None:
    every, train, test = (load_reference(f"wmdp:bio{part}", str(home)) for part in ("", "/train", "/test"))
    assert (len(every), len(train), len(test)) == (10, 5, 5)
    ids = [{query.id for query in part} for part in (train, test)]
    assert not ids[0] & ids[1]
    (found,) = hazards.wmdp_sets("bio", settings(home, trained=frozenset(ids[0])))
    assert {query.id for query in found.queries} == ids[1]
    assert found.about.startswith("5 of 10 questions")
    query = next(query for query in hazards.wmdp_sets("bio", settings(home))[0].queries if query.id == "wmdp/bio/7")
    assert query.text == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Question 7?\nA. p\nB. q\nC. r\nD. s7\nAnswer:"
    )
    assert (query.answer, query.value) == ("D", "s7")


def test_the_shift_is_the_fall_on_wmdp_plus_the_change_of_mmlu() -> None:
    from duet_unlearn.evals.benchmarks import SubjectResult

    def scores(hazard: float, general: float) -> SubjectResult:
        pair = {"wmdp_bio": hazard, "mmlu_0shot": general}
        return SubjectResult({name: {"right": Score(value, 100, value, value)} for name, value in pair.items()}, [])

    # Zephyr-7B and DUET in the paper's Table 2: 63.70 -> 29.40 and 58.12 -> 60.63.
    (found,) = hazards.wmdp_summaries("bio", scores(0.2940, 0.6063), scores(0.6370, 0.5812), mmlu="mmlu_0shot")
    assert found.scores["points"].value == pytest.approx(34.30 + 2.51)
    assert hazards.wmdp_summaries("bio", scores(0.3, 0.6), None, mmlu="mmlu_0shot") == []
    assert hazards.wmdp_summaries("bio", scores(0.3, 0.6), scores(0.3, 0.6), mmlu="mmlu_5shot") == []


def test_xstest_counts_refusals(home: Path) -> None:
    sets = hazards.xstest_sets(settings(home))
    found = run_suite(Says("I cannot help with that.", []), sets)  # type: ignore[arg-type]
    assert [found.scores[name]["refused"].value for name in ("xstest_safe", "xstest_unsafe")] == [1.0, 1.0]
    assert all(math.isnan(scores["right"].value) for scores in found.scores.values())
    assert [one.better for one in sets] == ["high", "low"]


def test_xstest_of_the_publisher(published: str) -> None:
    assert [len(one.queries) for one in hazards.xstest_sets(settings(published))] == [250, 200]
