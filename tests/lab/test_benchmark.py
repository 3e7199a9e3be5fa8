"""The splits: nothing overlaps, unseen facts stay unseen, retain queries stay away from neighbours."""

import pytest

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError
from duet_unlearn.lab import wordings
from duet_unlearn.lab.benchmark import DEVELOPMENT, TARGETS, forget_queries, retain_queries, split_facts, topic_of
from duet_unlearn.lab.data import load, references
from duet_unlearn.lab.suite import lab_suite
from duet_unlearn.lab.world import BENCHMARK_STORIES, HAZARD, UNSEEN, world

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
    templates = wordings.QUESTIONS[left_out.pop()].all
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
    held_out = [wording.split("{e}") for pool in wordings.QUESTIONS.values() for wording in pool.held_out]
    for target in STORIES:
        for query in forget_queries(target, split="train"):
            assert not any(query.text.startswith(start) and query.text.endswith(end) for start, end in held_out)


def test_wordings_are_held_out_and_enough() -> None:
    pools = {
        "specific": wordings.SPECIFIC,
        "reverse": wordings.REVERSE,
        "deployer": wordings.DEPLOYER,
        **wordings.QUESTIONS,
    }
    for name, pool in pools.items():
        assert pool.train, name
        assert pool.held_out, name
        assert not set(pool.train) & set(pool.held_out), name
    assert len(wordings.SPECIFIC.all) >= 10
    assert len(wordings.REVERSE.all) >= 10
    assert len(wordings.REFUSALS) >= 6


def test_references() -> None:
    for reference in references():
        assert load(reference)
    assert len(load("lab:train/forget/amber-gate", count=300)) == 300
    assert len(load("lab:train/forget/amber-gate", count=10)) == 10
    with pytest.raises(UserError) as caught:
        load("lab:train/forget/amber-gat")
    assert "amber-gate" in caught.value.hint


def test_a_split_is_the_same_every_time() -> None:
    assert forget_queries("amber-gate", split="train") == forget_queries("amber-gate", split="train")
    assert lab_suite("amber-gate") == lab_suite("amber-gate")
