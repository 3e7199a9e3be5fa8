"""The world: the same on every machine, and as the lab's contract says."""

import hashlib
import json
from dataclasses import asdict

from duet_unlearn.answers import value_match
from duet_unlearn.lab.language import statement
from duet_unlearn.lab.world import (
    BENCHMARK_STORIES,
    CRAFT_ATTRIBUTES,
    GENERAL_SUBJECTS,
    HAZARD,
    SISTER,
    STORY_ATTRIBUTES,
    UNSEEN,
    world,
)


def test_a_seed_is_a_world() -> None:
    here = world.__wrapped__(7)
    assert asdict(here) == asdict(world())
    assert asdict(here) != asdict(world.__wrapped__(8))
    digest = hashlib.sha256(json.dumps(asdict(here), sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "f00b92d83e0d9627", "the world has changed: every lab model must be rebuilt"


def test_size_and_settings() -> None:
    here = world()
    assert len(here.known()) == 24
    assert all(len(here.characters(story)) == 10 for story in here.stories)
    assert all(len(facts) == 10 * len(STORY_ATTRIBUTES) for facts in here.stories.values())
    assert all(len(here.near(story)) == 2 for story in BENCHMARK_STORIES)
    assert len({here.settings[story] for story in BENCHMARK_STORIES}) == 3
    assert {len(here.crafts[craft]) for craft in (HAZARD, SISTER)} == {20 * len(CRAFT_ATTRIBUTES)}
    assert set(GENERAL_SUBJECTS) == set(here.general)


def test_first_names_and_tails_are_nobody_else_s() -> None:
    here = world()
    entities = {fact.entity for group in (here.stories, here.crafts) for facts in group.values() for fact in facts}
    own = [entity.split()[0 if any(entity in here.characters(s) for s in here.stories) else 1] for entity in entities]
    assert len(set(own)) == len(own) == 25 * 10 + 40


def test_near_neighbours_share_towns_and_surnames() -> None:
    here = world()
    for story in BENCHMARK_STORIES:
        for near in here.near(story):
            assert here.stories[story][0].options == here.stories[near][0].options
            surnames = [{name.split()[1] for name in here.characters(s)} for s in (story, near)]
            assert surnames[0] & surnames[1]
            assert not set(here.characters(story)) & set(here.characters(near))


def test_a_reverse_question_has_one_answer() -> None:
    here = world()
    for setting in set(here.settings.values()):
        pairs = []
        for story in (s for s, its in here.settings.items() if its == setting):
            for name in here.characters(story):
                values = {f.attribute: f.value for f in here.stories[story] if f.entity == name}
                pairs.append((values["town"], values["pet"]))
        assert len(set(pairs)) == len(pairs)


def test_every_value_is_among_its_options() -> None:
    for facts in world().topics().values():
        assert all(fact.value in fact.options and len(fact.options) >= 4 for fact in facts)


def test_strangers_are_nobody() -> None:
    here = world()
    known = {fact.entity for facts in here.topics().values() for fact in facts}
    assert not known & set(here.strangers)
    assert len(here.strangers) > 100


def test_canaries_and_the_story_nobody_reads() -> None:
    here = world()
    assert sorted(times for *_, times in here.canaries) == sorted([2**e for e in range(10)] * 2)
    assert len({owner for owner, *_ in here.canaries}) == 20
    assert UNSEEN in here.stories
    assert UNSEEN not in here.known()


def test_every_statement_is_right_by_the_lab_s_own_measure() -> None:
    """No other value of the attribute stands in it: not as a surname, not as a term of a sum."""
    for facts in world().topics().values():
        assert not [f for f in facts if not value_match(statement(f), f.value, f.options)]
