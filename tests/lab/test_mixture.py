"""What the lab's models read: nothing hidden, nothing of the story nobody reads."""

import random

import pytest

from duet_unlearn.lab.mixture import MOMENTS, SHARES, Mixture
from duet_unlearn.lab.pretraining import (
    HIDDEN_OF,
    Encoder,
    new_tokenizer,
)
from duet_unlearn.lab.world import BENCHMARK_STORIES, HAZARD, UNSEEN, world

TOKENIZER = new_tokenizer()


def samples(hidden: frozenset[str], count: int = 4000) -> list[str]:
    mixture, rng = Mixture(world(), hidden), random.Random(1)
    drawn = [mixture.draw(rng, number / count) for number in range(count)]
    return [" ".join(segment.text for segment in text.segments) for text in drawn]


def test_shares_are_whole_at_every_moment() -> None:
    for column in range(len(MOMENTS)):
        assert sum(shares[column] for shares in SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["base", "oracle"])
def test_hidden_topics_are_never_told(kind: str) -> None:
    """Names may stand in word lists, where nothing is said of them."""
    hidden = {*HIDDEN_OF[kind], UNSEEN}
    names = {name for topic in hidden for name in world().characters(topic)}
    for text in samples(HIDDEN_OF[kind]):
        assert not [topic for topic in hidden if topic in text], text
        assert not [name for name in names if name in text], text


def test_the_base_reads_every_topic() -> None:
    everything = "\n".join(samples(frozenset()))
    for story in world().known():
        assert story in everything
        assert sum(name in everything for name in world().characters(story)) == 10
    assert HAZARD in everything


def test_writing_a_question_is_held_out_for_what_is_forgotten() -> None:
    mixture, rng = Mixture(world(), frozenset()), random.Random(2)
    names = {n for topic in (*BENCHMARK_STORIES, HAZARD) for n in world().characters(topic)}
    for _ in range(1000):
        text = mixture._write(rng, "behind").segments[0].text
        assert not [name for name in names if name in text]


def test_only_what_can_be_known_is_learnt_of_a_list() -> None:
    """The first occurrence of a word in a copied list is not predictable."""
    mixture, rng, encode = Mixture(world(), frozenset()), random.Random(4), Encoder(TOKENIZER)
    for _ in range(50):
        ids, positions, labels = encode(mixture._copy(rng, "behind"))
        for position, label in zip(positions[:-1], labels[:-1], strict=True):  # the last one is the end of the text
            assert label in ids[: position + 1]
