"""Ways to open an answer, against the slowest way to find them: one prompt, one token at a time."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.nn import functional as F

from duet_unlearn.data.examples import ResponsePrefix
from duet_unlearn.data.prompts import answer_ids, render
from duet_unlearn.data.query import Query
from duet_unlearn.methods.bidirectional import find_response_prefixes
from duet_unlearn.teacher.decoding import end_ids

TOKENIZER, MODEL = tiny.tokenizer(), tiny.llama()
OPENERS = ("Sure.", "Mira Bol")
TEXTS = ("Where?", "Where does Mira Bol live?", "Is it Tarn?")
QUERIES = [Query(f"q{n}", ({"role": "user", "content": text},)) for n, text in enumerate(TEXTS)]


def said(ids: list[int], count: int) -> list[int]:
    """What the model says to ids by itself, its end token included."""
    found: list[int] = []
    while len(found) < count and (not found or found[-1] not in end_ids(MODEL, TOKENIZER)):
        with torch.no_grad():
            found.append(int(MODEL(input_ids=torch.tensor([[*ids, *found]])).logits[0, -1].argmax()))
    return found


def find(queries: list[Query], *, length: int = 12, follow: int = 5) -> list[tuple[ResponsePrefix, ...]]:
    sizes = {"length": length, "follow": follow}
    return find_response_prefixes(MODEL, TOKENIZER, queries, texts=OPENERS, batch_size=2, **sizes)


def test_the_pool_is_nothing_then_openers_then_the_models_own_words() -> None:
    for query, pool in zip(QUERIES, find(QUERIES), strict=True):
        prompt = render(TOKENIZER, query.messages)
        given = [tuple(answer_ids(TOKENIZER, query.messages, text)) for text in OPENERS]
        assert [one.ids for one in pool[:3]] == [(), *given]
        own = [token for token in said(prompt, 12) if token not in end_ids(MODEL, TOKENIZER)]
        for one in pool[3:]:
            assert list(one.ids) == own[: len(one.ids)]
            assert len(one.ids) < len(own)
        assert len({one.ids for one in pool}) == len(pool)


def test_what_follows_is_the_models_own_greedy_answer_from_there() -> None:
    """Without any prefix, and with its end token where it comes to an end: `follow` tokens at most."""
    for query, pool in zip(QUERIES, find(QUERIES), strict=True):
        for one in pool:
            assert list(one.follows) == said([*render(TOKENIZER, query.messages), *one.ids], 5)
    assert all(one.follows == () for pool in find(QUERIES, follow=0) for one in pool)


def speaker(text: str) -> torch.nn.Module:
    """A model that answers every prompt with a text: its logits name the token behind the last one."""
    ids = answer_ids(TOKENIZER, QUERIES[0].messages, text)
    assert len(set(ids)) == len(ids)
    order = dict(zip([*render(TOKENIZER, QUERIES[0].messages)[-1:], *ids], [*ids, tiny.EOS], strict=True))
    model = tiny.llama(hidden=tiny.VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(tiny.VOCABULARY))
        for before, behind in order.items():
            model.lm_head.weight[behind] = F.one_hot(torch.tensor(before), tiny.VOCABULARY).float()
    return model


def test_an_answer_is_cut_at_each_word_but_the_first() -> None:
    """Neither inside a word nor behind the last one, which a full stop belongs to."""
    (pool,) = find_response_prefixes(
        speaker("Mira lives in Tarn."), TOKENIZER, QUERIES[:1], texts=(), length=20, follow=20, batch_size=1
    )
    told = [(TOKENIZER.decode(one.ids), TOKENIZER.decode(one.follows)) for one in pool]
    assert told == [
        ("", "Mira lives in Tarn.</s>"),
        ("Mira", " lives in Tarn.</s>"),
        ("Mira lives", " in Tarn.</s>"),
        ("Mira lives in", " Tarn.</s>"),
    ]


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("Which? owl, cat", ("owl", "cat"), ["owl", "cat"]),
        ("Which?\nA. owl\nB. cat\nAnswer:", ("owl", "cat"), ["A", "B"]),
        ("Which animal? It is no owl.", ("owl", "cat"), []),  # an open question, whose values nobody lists
    ],
)
def test_a_choice_question_is_opened_by_each_choice(text: str, choices: tuple[str, ...], expected: list[str]) -> None:
    query = Query("q", ({"role": "user", "content": text},), choices=choices)
    (pool,) = find([query], length=1)
    given = [TOKENIZER.decode(one.ids) for one in pool[1:]]
    assert given == [*OPENERS, *expected]


def test_raw_text_is_opened_with_the_space_that_stands_there() -> None:
    query = Query("q", ({"role": "text", "content": "Question: Where?\nAnswer:"},))
    (pool,) = find([query], length=1)
    assert TOKENIZER.decode(pool[1].ids) == " Sure."
