"""What the lab's models read: nothing hidden, nothing of the story nobody reads, canaries as often as promised."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from duet_unlearn.data.prompts import render, render_answer
from duet_unlearn.lab import words
from duet_unlearn.lab.curriculum import MOMENTS, SHARES
from duet_unlearn.lab.mixture import Mixture
from duet_unlearn.lab.pretrain import HIDDEN_OF, Pretraining, canary, canary_steps, new_model, reading
from duet_unlearn.lab.tokenizer import Encoder, new_tokenizer, train_vocabulary
from duet_unlearn.lab.world import BENCHMARK_STORIES, HAZARD, UNSEEN, world

TOKENIZER = new_tokenizer()


def samples(hidden: frozenset[str], count: int = 4000) -> list[str]:
    mixture, rng = Mixture(world(), hidden), random.Random(1)
    drawn = [mixture.draw(rng, number / count) for number in range(count)]
    return [" ".join(segment.text for segment in sample.segments) for sample in drawn]


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


def test_the_encoder_gives_the_ids_of_the_rendered_prompt() -> None:
    """What the model is trained on is what it is asked with."""
    mixture, rng, encode = Mixture(world(), frozenset()), random.Random(3), Encoder(TOKENIZER)
    for number in range(600):
        sample = mixture.draw(rng, number / 600)
        *asked, answer = sample.segments
        if answer.role == "text" or any(segment.role == "assistant" for segment in asked):
            continue
        messages = [{"role": segment.role, "content": segment.text} for segment in asked]
        ids, start = render_answer(TOKENIZER, messages, answer.text)
        got, positions, labels = encode(sample)
        assert got == ids
        assert positions == list(range(start - 1, len(ids) - 1))
        assert labels == ids[start:]
        assert got[:start] == render(TOKENIZER, messages)


def test_only_what_can_be_known_is_learnt_of_a_list() -> None:
    """The first occurrence of a word in a copied list is not predictable."""
    mixture, rng, encode = Mixture(world(), frozenset()), random.Random(4), Encoder(TOKENIZER)
    for _ in range(50):
        ids, positions, labels = encode(mixture._copy(rng, "behind"))
        for position, label in zip(positions[:-1], labels[:-1], strict=True):  # the last one is the end of the text
            assert label in ids[: position + 1]


def test_canaries_are_read_as_often_as_the_world_says() -> None:
    steps = canary_steps(world(), 2000)
    read = Counter(sample for group in steps.values() for sample in group)
    assert read == {canary(owner, code): times for owner, code, times in world().canaries}
    assert min(steps) >= 500


def test_a_step_is_a_function_of_its_number() -> None:
    settings = replace(Pretraining(), num_steps=10, batch_size=4)
    mixture = Mixture(world(), frozenset())
    one, two = (reading(mixture, Encoder(TOKENIZER), settings) for _ in range(2))
    assert one(7) == two(7)
    assert one(7) != one(6)


def test_every_word_is_one_token() -> None:
    listed = [word for value in vars(words).values() if isinstance(value, list) for word in value]
    assert not [word for word in listed if len(TOKENIZER.encode(word, add_special_tokens=False)) > 1]


def test_a_vocabulary_can_be_trained_anew() -> None:
    mixture, rng = Mixture(world(), frozenset()), random.Random(5)
    trained = train_vocabulary([mixture.draw(rng, 0.5) for _ in range(200)])
    assert 2000 < trained.get_vocab_size() <= len(TOKENIZER)
    assert trained.decode(trained.encode("Where does it live?").ids).strip() == "Where does it live?"


def test_the_lab_s_models_are_small() -> None:
    model = new_model(TOKENIZER, Pretraining())
    assert 1e6 < sum(weight.numel() for weight in model.parameters()) < 4e6
