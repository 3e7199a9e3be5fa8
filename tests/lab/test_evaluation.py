"""Settings are chosen on what no test asks, and training near a target sees nothing that is tested: by fact, by wording
or by response prefix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.examples import packaged_texts
from duet_unlearn.errors import UserError
from duet_unlearn.evals.question_sets import EvalSet
from duet_unlearn.events import ignore
from duet_unlearn.job import load_job
from duet_unlearn.lab import language
from duet_unlearn.lab.evaluation import (
    NUM_NEIGHBOURS,
    lab_suite,
    neighbour_facts,
    neighbour_queries,
    validation_suite,
)
from duet_unlearn.lab.questions import (
    DEVELOPMENT,
    TARGETS,
    fact_key,
    forget_queries,
    near_facts,
    retain_queries,
    topic_of,
)
from duet_unlearn.lab.world import BENCHMARK_STORIES, world
from duet_unlearn.pipeline import context_of
from duet_unlearn.runs import Run

STORIES = [target for target in (*TARGETS, *DEVELOPMENT) if target != "hazard"]


@pytest.mark.parametrize("target", STORIES)
def test_no_fact_of_theirs_is_tested(target: str) -> None:
    shown = {fact_key(query) for query in neighbour_queries(target)}
    assert shown == {f.key for f in neighbour_facts(target)}
    assert shown <= {f.key for f in near_facts(target)}
    for one in lab_suite(target):
        assert not shown & {fact_key(query) for query in one.queries}, one.name


@pytest.mark.parametrize("target", STORIES)
def test_half_of_the_near_characters_are_met_and_half_are_not(target: str) -> None:
    met = {f.entity for f in neighbour_facts(target)}
    names = {name for story in world().near(topic_of(target)) for name in world().characters(story)}
    assert 2 * len(met) == len(names)
    (near,) = [one for one in lab_suite(target) if one.name == "near"]
    tested = [next(name for name in names if name in query.text) for query in near.queries]
    assert 20 <= sum(name in met for name in tested) <= 40 <= len(tested)  # both kinds are in the test


@pytest.mark.parametrize("target", DEVELOPMENT)
def test_validation_asks_nothing_of_theirs_either(target: str) -> None:
    shown = {fact_key(query) for query in neighbour_queries(target)}
    assert not shown & {fact_key(query) for one in validation_suite(target) for query in one.queries}


@pytest.mark.parametrize("target", STORIES)
def test_they_are_asked_in_train_wordings_and_are_others_than_the_rest(target: str) -> None:
    queries = neighbour_queries(target)
    assert len({query.id for query in queries}) == len(queries) == NUM_NEIGHBOURS
    asked = {
        wording.format(e=f.entity) for f in neighbour_facts(target) for wording in language.QUESTIONS[f.attribute].train
    }
    assert {query.text for query in queries} <= asked
    others = {query.id for query in (*forget_queries(target, split="train"), *retain_queries(split="train"))}
    assert not others & {query.id for query in queries}


def test_every_other_method_takes_them_as_retain_queries() -> None:
    plain, near = (load_job(load_recipe(name)) for name in ("lab/duet", "lab/methods/duet-neighbours"))
    assert near.training_data("train").retain == (
        *plain.training_data("train").retain,
        *neighbour_queries("amber-gate"),
    )
    assert not near.training_data("train").neighbours
    assert near.training_data("validation") == plain.training_data("validation")
    ours = load_job(load_recipe("lab/methods/bidirectional")).training_data("train")
    assert ours.retain == plain.training_data("train").retain
    assert list(ours.neighbours) == neighbour_queries("amber-gate")


def test_response_prefixes_and_reversals_of_training_are_no_tests() -> None:
    for kind, pool in (("response_prefixes", language.OPENERS), ("reversals", language.REVERSE)):
        own = packaged_texts(kind)  # type: ignore[arg-type]
        assert len(set(own)) == len(own) >= 10
        assert not {text.lower() for text in own} & {text.lower() for text in pool.held_out}
        assert not set(pool.train) & set(pool.held_out)


def test_nothing_held_out_is_in_what_a_run_trains_on(tmp_path: Path) -> None:
    """Every row of the recipe, in words: questions, leads, openings."""
    settings = ["data.num_forget=20", "method.attacks=[prefill, reverse]", "model.oracle=null"]
    job = load_job(load_recipe("lab/methods/bidirectional", settings))
    model, tokenizer = job.load()
    method, context = job.recipe.method, context_of(Run(tmp_path), job, ignore)
    rows = method.build_examples(method.prepare_data(context.data, model, tokenizer, context, "train"))
    texts = [f"{one.query.text} {tokenizer.decode(one.response_prefix)}" for one in rows]
    assert {one.role for one in rows} == {"forget", "retain", "neighbour", "attack"}
    assert any(language.REVERSE.train[0] in text for text in texts)
    assert any(language.OPENERS.train[0] in text for text in texts)
    for words in (*language.REVERSE.held_out, *language.OPENERS.held_out):
        assert not [text for text in texts if words in text], words
    for wording in (wording for pool in language.QUESTIONS.values() for wording in pool.held_out):
        pattern = re.compile(re.escape(wording).replace(re.escape("{e}"), ".+"))
        assert not [one.query.text for one in rows if pattern.fullmatch(one.query.text.splitlines()[-1])], wording


def asked(sets: list[EvalSet]) -> set[str]:
    return {query.text.casefold() for one in sets for query in one.queries}


@pytest.mark.parametrize("story", DEVELOPMENT)
@pytest.mark.parametrize("target", TARGETS)
def test_no_question_is_in_validation_and_in_any_test_set(story: str, target: str) -> None:
    assert not asked(validation_suite(story)) & asked(lab_suite(target))


@pytest.mark.parametrize("story", DEVELOPMENT)
def test_what_must_stay_is_measured_on_facts_that_no_test_asks_for(story: str) -> None:
    tested = {fact_key(query) for target in TARGETS for one in lab_suite(target) for query in one.queries}
    for one in validation_suite(story):
        if one.better == "high":
            assert not {fact_key(query) for query in one.queries} & tested, one.name
            assert not {query.source for query in one.queries} & set(BENCHMARK_STORIES), one.name


@pytest.mark.parametrize("story", DEVELOPMENT)
def test_nothing_but_the_forget_set_was_trained_on(story: str) -> None:
    queries = (*forget_queries(story, split="train"), *retain_queries(split="train"), *neighbour_queries(story))
    trained = {query.text.casefold() for query in queries}
    for one in validation_suite(story):
        shown = [query.text.casefold() in trained for query in one.queries]
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
