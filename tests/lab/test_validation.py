"""Settings are chosen on questions that no test asks, about facts that no test set of neighbours has."""

from __future__ import annotations

import pytest

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.job import load_job
from duet_unlearn.lab.benchmark import DEVELOPMENT, TARGETS, forget_queries, retain_queries
from duet_unlearn.lab.neighbours import neighbour_queries
from duet_unlearn.lab.suite import lab_suite
from duet_unlearn.lab.validation import validation_suite
from duet_unlearn.lab.world import BENCHMARK_STORIES


def words(query: Query) -> str:
    return query.text.casefold()


def asked(sets: list[EvalSet]) -> set[str]:
    return {words(query) for one in sets for query in one.queries}


def fact(query: Query) -> tuple[str, str]:
    """The fact, from the question's id: topic, entity and attribute."""
    topic, entity, attribute, *_ = query.id.split("/")
    return f"{topic}/{entity}", attribute


@pytest.mark.parametrize("story", DEVELOPMENT)
@pytest.mark.parametrize("target", TARGETS)
def test_no_question_is_in_validation_and_in_any_test_set(story: str, target: str) -> None:
    assert not asked(validation_suite(story)) & asked(lab_suite(target))


@pytest.mark.parametrize("story", DEVELOPMENT)
def test_what_must_stay_is_measured_on_facts_that_no_test_asks_for(story: str) -> None:
    tested = {fact(query) for target in TARGETS for one in lab_suite(target) for query in one.queries}
    for one in validation_suite(story):
        if one.better == "high":
            assert not {fact(query) for query in one.queries} & tested, one.name
            assert not {query.source for query in one.queries} & set(BENCHMARK_STORIES), one.name


@pytest.mark.parametrize("story", DEVELOPMENT)
def test_nothing_but_the_forget_set_was_trained_on(story: str) -> None:
    queries = (*forget_queries(story, split="train"), *retain_queries(split="train"), *neighbour_queries(story))
    trained = {words(query) for query in queries}
    for one in validation_suite(story):
        shown = [words(query) in trained for query in one.queries]
        assert all(shown) if one.name == "forget" else not any(shown), one.name


@pytest.mark.parametrize("story", DEVELOPMENT)
def test_the_sets_are_large_enough_to_tell_trials_apart(story: str) -> None:
    sizes = {one.name: len(one.queries) for one in validation_suite(story)}
    assert sizes == {"forget": 100, "forget_validation": 40, "near": sizes["near"], "far": 60, "choice": 60}
    assert sizes["near"] >= 80


def test_a_recipe_names_it() -> None:
    settings = ["evaluate.suite=lab-validation", "data.forget=lab:train/forget/amber-well"]
    assert next(one.name for one in load_job(load_recipe("lab/duet", settings)).suite()) == "forget"


@pytest.mark.parametrize("target", [*TARGETS, "amber-wall"])
def test_nothing_is_tuned_on_what_is_reported(target: str) -> None:
    with pytest.raises(UserError) as caught:
        validation_suite(target)
    assert "amber-well" in caught.value.hint
