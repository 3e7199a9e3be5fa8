"""What training may see near a target: nothing that is tested, by fact, by wording or by opener."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from duet_unlearn.config.reading import load_recipe
from duet_unlearn.data.examples import packaged_texts
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.events import ignore
from duet_unlearn.job import load_job
from duet_unlearn.lab import wordings
from duet_unlearn.lab.benchmark import DEVELOPMENT, TARGETS, forget_queries, near_facts, retain_queries, topic_of
from duet_unlearn.lab.data import load, references
from duet_unlearn.lab.neighbours import COUNT, neighbour_facts, neighbour_queries, shown_characters
from duet_unlearn.lab.suite import lab_suite
from duet_unlearn.lab.validation import validation_suite
from duet_unlearn.lab.world import world
from duet_unlearn.pipeline import context_of
from duet_unlearn.runs import Run

STORIES = [target for target in (*TARGETS, *DEVELOPMENT) if target != "hazard"]


def fact(query: Query) -> str:
    """The fact that a query asks for."""
    return "/".join(query.id.split("/")[:3])


@pytest.mark.parametrize("target", STORIES)
def test_no_fact_of_theirs_is_tested(target: str) -> None:
    shown = {fact(query) for query in neighbour_queries(target)}
    assert shown == {f.key for f in neighbour_facts(target)}
    assert shown <= {f.key for f in near_facts(target)}
    for one in lab_suite(target):
        assert not shown & {fact(query) for query in one.queries}, one.name


@pytest.mark.parametrize("target", STORIES)
def test_half_of_the_near_characters_are_met_and_half_are_not(target: str) -> None:
    met = {f.entity for f in neighbour_facts(target)}
    names = {name for story in world().near(topic_of(target)) for name in world().characters(story)}
    assert met == shown_characters(target)
    assert 2 * len(met) == len(names)
    (near,) = [one for one in lab_suite(target) if one.name == "near"]
    tested = [next(name for name in names if name in query.text) for query in near.queries]
    assert 20 <= sum(name in met for name in tested) <= 40 <= len(tested)  # both kinds are in the test


@pytest.mark.parametrize("target", DEVELOPMENT)
def test_validation_asks_nothing_of_theirs_either(target: str) -> None:
    shown = {fact(query) for query in neighbour_queries(target)}
    assert not shown & {fact(query) for one in validation_suite(target) for query in one.queries}


@pytest.mark.parametrize("target", STORIES)
def test_they_are_asked_in_train_wordings_and_are_others_than_the_rest(target: str) -> None:
    queries = neighbour_queries(target)
    assert len({query.id for query in queries}) == len(queries) == COUNT
    asked = {wording.format(e=f.entity) for f in neighbour_facts(target) for wording in train_wordings(f.attribute)}
    assert {query.text for query in queries} <= asked
    others = {query.id for query in (*forget_queries(target, split="train"), *retain_queries(split="train"))}
    assert not others & {query.id for query in queries}


def train_wordings(attribute: str) -> tuple[str, ...]:
    return wordings.QUESTIONS[attribute].train


def test_references() -> None:
    assert load("lab:train/neighbours/amber-gate") == neighbour_queries("amber-gate")
    assert "lab:train/neighbours/silver-mill" in references()
    assert not [reference for reference in references() if "neighbours" in reference and "hazard" in reference]
    with pytest.raises(UserError, match="its tests ask every fact of the sister craft"):
        load("lab:train/neighbours/hazard")
    with pytest.raises(UserError):
        load("lab:validation/neighbours/amber-gate")


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


def test_openers_and_reversals_of_training_are_no_tests() -> None:
    for kind, pool in (("response_prefixes", wordings.OPENERS), ("reversals", wordings.REVERSE)):
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
    assert any(wordings.REVERSE.train[0] in text for text in texts)
    assert any(wordings.OPENERS.train[0] in text for text in texts)
    for words in (*wordings.REVERSE.held_out, *wordings.OPENERS.held_out):
        assert not [text for text in texts if words in text], words
    for wording in (wording for pool in wordings.QUESTIONS.values() for wording in pool.held_out):
        pattern = re.compile(re.escape(wording).replace(re.escape("{e}"), ".+"))
        assert not [one.query.text for one in rows if pattern.fullmatch(one.query.text.splitlines()[-1])], wording
