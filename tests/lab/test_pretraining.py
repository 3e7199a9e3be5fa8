"""What is read at each step, and as which tokens."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from duet_unlearn.data.prompts import render, render_answer
from duet_unlearn.lab.mixture import Mixture
from duet_unlearn.lab.pretraining import (
    Encoder,
    Pretraining,
    canary,
    canary_steps,
    new_model,
    new_tokenizer,
    reading,
    train_vocabulary,
)
from duet_unlearn.lab.world import vocabulary, world

TOKENIZER = new_tokenizer()


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
    listed = [word for name in vocabulary() for word in name.split()]
    assert not [word for word in listed if len(TOKENIZER.encode(word, add_special_tokens=False)) > 1]


def test_a_vocabulary_can_be_trained_anew() -> None:
    mixture, rng = Mixture(world(), frozenset()), random.Random(5)
    trained = train_vocabulary([mixture.draw(rng, 0.5) for _ in range(200)])
    assert 2000 < trained.get_vocab_size() <= len(TOKENIZER)
    assert trained.decode(trained.encode("Where does it live?").ids).strip() == "Where does it live?"


def test_the_lab_s_models_are_small() -> None:
    model = new_model(TOKENIZER, Pretraining())
    assert 1e6 < sum(weight.numel() for weight in model.parameters()) < 4e6
