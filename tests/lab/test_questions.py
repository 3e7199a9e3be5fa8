"""The splits: nothing overlaps, unseen facts stay unseen, retain queries stay away from neighbours.

Facts in the forms of pretraining: they are what the base read, and the value never stands where it is asked for.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from duet_unlearn.answers import value_match
from duet_unlearn.attacks.attack_base import AttackGoal
from duet_unlearn.attacks.contexts import FormatShift
from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.evals.subject import ModelSubject
from duet_unlearn.lab import language
from duet_unlearn.lab.evaluation import lab_suite
from duet_unlearn.lab.questions import (
    DEVELOPMENT,
    TARGETS,
    forget_queries,
    held_out_queries,
    lab_forms,
    open_query,
    retain_queries,
    split_facts,
    topic_of,
)
from duet_unlearn.lab.references import model_path
from duet_unlearn.lab.world import BENCHMARK_STORIES, HAZARD, UNSEEN, world
from duet_unlearn.models.load import load_model

STORIES = [target for target in TARGETS if target != "hazard"]


def texts(queries: list[Query] | tuple[Query, ...]) -> set[str]:
    return {"\n".join(f"{m['role']}: {m['content']}" for m in query.messages) for query in queries}


@pytest.mark.parametrize("target", TARGETS)
def test_train_and_validation_are_100_and_share_no_question_with_each_other_or_any_test(target: str) -> None:
    train = forget_queries(target, split="train") + retain_queries(split="train")
    validation = forget_queries(target, split="validation") + retain_queries(split="validation")
    assert len(forget_queries(target, split="train")) == len(retain_queries(split="train")) == 100
    assert len(texts(train)) == 200
    assert not texts(train) & texts(validation)
    for one in lab_suite(target):
        if one.name != "forget":  # the training questions themselves, and says so
            assert one.queries
            assert not texts(one.queries) & texts(train + validation), one.name


def test_settings_are_chosen_on_other_stories_than_numbers_are_reported_for() -> None:
    shown = {query.source for split in ("train", "validation") for query in retain_queries(split=split)}
    for target, story in DEVELOPMENT.items():
        assert story not in BENCHMARK_STORIES
        assert story not in shown
        assert lab_suite(target)


@pytest.mark.parametrize("target", STORIES)
def test_unseen_characters_and_attribute_are_in_no_query(target: str) -> None:
    topic = topic_of(target)
    facts = split_facts(topic)
    assert {name: len(found) for name, found in facts.items()} == {"train": 25, "validation": 10, "unseen": 25}
    seen = {f.entity for name in ("train", "validation") for f in facts[name]}
    unseen = set(world().characters(topic)) - seen
    assert len(unseen) == 3
    asked = [q for split in ("train", "validation") for q in forget_queries(target, split=split, count=10_000)]
    asked += [q for split in ("train", "validation") for q in retain_queries(split=split)]
    assert not [q for q in asked if any(name in q.text for name in unseen)]
    left_out = {f.attribute for f in facts["unseen"] if f.entity in seen}
    assert len(left_out) == 1
    templates = language.QUESTIONS[left_out.pop()].all
    about_story = [q.text for q in asked if q.source == topic]
    assert not [t for t in about_story for w in templates for name in seen if t == w.format(e=name)]


def test_brews_that_are_unseen_are_in_no_query() -> None:
    facts = split_facts(HAZARD)
    unseen = {f.entity for f in facts["unseen"]}
    assert len(unseen) == 5
    asked = [q for split in ("train", "validation") for q in forget_queries("hazard", split=split, count=10_000)]
    assert not [q for q in asked if any(name in q.text for name in unseen)]
    assert {f.entity for f in facts["train"]}.isdisjoint(f.entity for f in facts["validation"])


def test_hazard_queries_are_half_with_four_options() -> None:
    chosen = [q for q in forget_queries("hazard", split="train") if q.answer == q.value]
    assert len(chosen) == 50
    assert all(q.text.endswith(", ".join(q.choices or ())) and len(q.choices or ()) == 4 for q in chosen)


def test_retain_is_far_from_every_benchmark_story() -> None:
    near = {s for story in BENCHMARK_STORIES for s in (story, *world().near(story))}
    for split in ("train", "validation"):
        sources = {query.source for query in retain_queries(split=split)}
        assert not sources & {*near, *world().crafts, UNSEEN}
        assert len(sources) > 8


def test_queries_for_training_use_train_wordings_alone() -> None:
    held_out = [wording.split("{e}") for pool in language.QUESTIONS.values() for wording in pool.held_out]
    for target in STORIES:
        for query in forget_queries(target, split="train"):
            assert not any(query.text.startswith(start) and query.text.endswith(end) for start, end in held_out)


def test_wordings_are_held_out_and_enough() -> None:
    pools = {
        "specific": language.SPECIFIC,
        "reverse": language.REVERSE,
        "deployer": language.DEPLOYER,
        **language.QUESTIONS,
    }
    for name, pool in pools.items():
        assert pool.train, name
        assert pool.held_out, name
        assert not set(pool.train) & set(pool.held_out), name
    assert len(language.SPECIFIC.all) >= 10
    assert len(language.REVERSE.all) >= 10
    assert len(language.REFUSALS) >= 6


def test_a_split_is_the_same_every_time() -> None:
    assert forget_queries("amber-gate", split="train") == forget_queries("amber-gate", split="train")
    assert lab_suite("amber-gate") == lab_suite("amber-gate")


WANTED = held_out_queries(world().stories["Amber Gate"])
FORMS = lab_forms(WANTED)
RAW = ("continuation", "passage", "few-shot")


def test_every_form_has_a_place_for_every_fact() -> None:
    assert list(FORMS) == ["continuation", "passage", "few-shot", "choice", "letters", "yes-no", "reverse"]
    for name, asked in FORMS.items():
        assert len(asked) == len(WANTED)
        missing = [query.id for query, one in zip(WANTED, asked, strict=True) if one is None]
        assert all(name == "reverse" and "/town/" not in one and "/pet/" not in one for one in missing)
    assert sum(one is not None for one in FORMS["reverse"]) == 20


@pytest.mark.parametrize("name", [*RAW, "reverse"])
def test_the_value_does_not_stand_in_the_prompt(name: str) -> None:
    for one in FORMS[name]:
        if one is not None:
            assert not value_match(one.text, str(one.value))
            assert (one.messages[0]["role"] == "text") == (name in RAW)


def test_choices_stand_in_the_question() -> None:
    for one in FORMS["choice"]:
        assert one is not None
        assert one.choices is not None
        assert one.value in one.choices
        assert one.text.endswith(", ".join(one.choices))
    for query, one in zip(WANTED, FORMS["letters"], strict=True):
        assert one is not None
        assert f"{query.value} {one.value}" in one.text
    assert {one.value for one in FORMS["letters"] if one} == set("ABCD")  # each as often, so that guessing gets 1/4


def test_every_other_yes_no_question_is_wrong() -> None:
    for number, (query, one) in enumerate(zip(WANTED, FORMS["yes-no"], strict=True)):
        assert one is not None
        assert one.value == ("yes", "no")[number % 2]
        assert value_match(one.text, str(query.value)) == (number % 2 == 0)


def test_a_fact_is_found_in_any_wording_and_nothing_else_is() -> None:
    fact = world().stories["Amber Gate"][0]
    forms = [
        lab_forms([open_query(fact, "Say it of {e}!", split="test", tag=tag)]) for tag in ("", "/reverse", "/context")
    ]
    assert forms[0] == forms[1] == forms[2]
    assert all("reverse" not in lab_forms([query]) for query in held_out_queries(world().crafts[HAZARD], limit=3))
    assert lab_forms(forget_queries("hazard", split="train")[-1:])["continuation"][0] is not None
    with pytest.raises(UserError, match="no fact of the lab"):
        lab_forms([Query("mine/1", ({"role": "user", "content": "?"},))])


def test_the_base_answers_in_these_forms() -> None:
    base = ModelSubject("base", *load_model(str(model_path("lab:base"))))
    goal = AttackGoal("the story Amber Gate", tuple(WANTED), max_new_tokens=16)
    attack = FormatShift(forms=tuple(FORMS))
    found = {one.name: one for one in attack.run(base, replace(goal, forms=FORMS))}
    for name in (*RAW, "choice"):
        assert found[name].score.value > 0.9
    assert found["reverse"].score.value > 0.5
    assert found["yes-no"].score.value > 0.5
    assert {name: found[name].numbers.get("chance") for name in ("choice", "letters", "yes-no", "passage")} == {
        "choice": 0.25,
        "letters": 0.25,
        "yes-no": 0.5,
        "passage": None,
    }
