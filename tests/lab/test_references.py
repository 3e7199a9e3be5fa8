"""What recipes may name, and pretraining text as queries: their tokens are those that the models read."""

from __future__ import annotations

import random

import pytest

from duet_unlearn.data.examples import TrainingData, render_examples
from duet_unlearn.errors import UserError
from duet_unlearn.lab.evaluation import neighbour_queries
from duet_unlearn.lab.mixture import Mixture
from duet_unlearn.lab.pretraining import OPERATIONS, Encoder, draw_arithmetic, new_tokenizer
from duet_unlearn.lab.references import as_query, load, references
from duet_unlearn.lab.world import BENCHMARK_STORIES, world
from duet_unlearn.methods.undo import Undo


@pytest.mark.parametrize("kind", ["mix", "arithmetic"])
def test_the_rows_are_those_of_pretraining(kind: str) -> None:
    """Chats of several turns, system turns, raw text: the ids of the encoder that pretraining uses."""
    rng, words, mixture = random.Random(0), new_tokenizer(), Mixture(world(), frozenset())
    encode = Encoder(words)
    samples = [
        mixture.draw(rng, 1.0) if kind == "mix" else draw_arithmetic(OPERATIONS["arithmetic"], rng) for _ in range(200)
    ]
    queries = [as_query(sample, str(number)) for number, sample in enumerate(samples)]
    assert {query.messages[0]["role"] for query in queries} >= {"user", "text"}
    rows = render_examples(words, Undo().build_examples(TrainingData((), (), None, texts=queries)))  # type: ignore[arg-type]
    for example, sample in zip(rows, samples, strict=True):
        ids, _, _ = encode(sample)
        assert [*example.ids] == ids[:-1]
        assert [*example.positions] == [*range(len(ids) - 1)]
        assert [*(example.labels or ())] == ids[1:]


def test_more_are_the_same_and_others_and_what_is_to_be_forgotten_is_among_them() -> None:
    some, more = load("lab:mix/40"), load("lab:mix/300")
    assert len(some) == 40
    assert more[:40] == some
    told = " ".join(f"{query.messages} {query.answer}" for query in more)
    assert all(story in told for story in BENCHMARK_STORIES)
    signs = " ".join(f"{query.messages}" for query in load("lab:arithmetic/200"))
    assert all(word in signs for word in ("plus", "minus", "times", "divided by", "*", "/"))


@pytest.mark.parametrize("reference", ["lab:mix/0", "lab:mix/-1", "lab:mix/many", "lab:arithmetic/1.5"])
def test_a_number_that_is_none_is_two_lines(reference: str) -> None:
    with pytest.raises(UserError, match="is no number of texts"):
        load(reference)
    with pytest.raises(UserError, match="the lab has no queries"):
        load("lab:mix")


def test_references() -> None:
    for reference in references():
        assert load(reference)
    assert len(load("lab:train/forget/amber-gate", count=300)) == 300
    assert len(load("lab:train/forget/amber-gate", count=10)) == 10
    with pytest.raises(UserError) as caught:
        load("lab:train/forget/amber-gat")
    assert "amber-gate" in caught.value.hint


def test_references_to_neighbours() -> None:
    assert load("lab:train/neighbours/amber-gate") == neighbour_queries("amber-gate")
    assert "lab:train/neighbours/silver-mill" in references()
    assert not [reference for reference in references() if "neighbours" in reference and "hazard" in reference]
    with pytest.raises(UserError, match="its tests ask every fact of the sister craft"):
        load("lab:train/neighbours/hazard")
    with pytest.raises(UserError):
        load("lab:validation/neighbours/amber-gate")
