"""Questions taken apart and put into other words and conversations: what attacks by prompt are made of."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from duet_unlearn.answers import value_match
from duet_unlearn.attacks.asking import Ask, shown
from duet_unlearn.data.query import Message, Query
from duet_unlearn.evals.question_sets import expected_answer

UNDERSTOOD = "Understood."
"""What the model is made to have said to a turn that asks nothing."""
RAW_QUESTION = re.compile(r"(?P<head>(?:.*\s)?Question:\s*)(?P<question>.*?)(?P<tail>\s*Answer:\s*)", re.DOTALL)
"""Raw text that ends with a question; solved examples may stand before it."""
PLACE = re.compile(r"\{(\w+)\}")
LETTERS_PER_TOKEN, ANSWER_TOKENS = 4, 24
"""For estimates only."""


def filled(text: str, **words: str) -> str:
    """A template with its places filled, in one go: braces in what is filled in stay."""
    return PLACE.sub(lambda place: words.get(place[1], place[0]), text)


def last_place(text: str, words: str) -> tuple[str, str] | None:
    """What stands before and behind the last place where a text has some words whole: "cat" is not in "category"."""
    found = list(_whole(words).finditer(text)) if words else []
    return (text[: found[-1].start()], text[found[-1].end() :]) if found else None


def swapped(text: str, words: str, others: str) -> str:
    """A text with other words in every place where it has some whole."""
    return _whole(words).sub(lambda _: others, text)


def _whole(words: str) -> re.Pattern[str]:
    """Of a number no part: 5 is neither in 3.5 nor in -5."""
    before = r"(?<![\w-])(?<!\d[.,])" if words[:1].isdigit() else r"(?<!\w)"
    return re.compile(rf"{before}{re.escape(words)}(?!\w|[.,]\d)")


def question_of(query: Query) -> str:
    """What is asked: the last turn; of raw text the last question in it, or all of it."""
    found = RAW_QUESTION.fullmatch(query.text) if query.messages[-1]["role"] == "text" else None
    return found["question"] if found else query.text


def reworded(query: Query, text: str) -> Query:
    """The query with another text in its question's place; earlier turns stay, and so does what it is judged by."""
    last = query.messages[-1]
    found = RAW_QUESTION.fullmatch(last["content"]) if last["role"] == "text" else None
    content = found["head"] + text + found["tail"] if found else text
    return replace(query, messages=(*query.messages[:-1], {"role": last["role"], "content": content}))


def said_turns(query: Query) -> tuple[Message, Message]:
    """A question and its answer as turns of a conversation."""
    return {"role": "user", "content": question_of(query)}, {"role": "assistant", "content": query.answer or ""}


def as_text(queries: Sequence[Query], last: str) -> tuple[Message]:
    """Questions with answers as raw text, and one without."""
    solved = [f"Question: {question_of(query)}\nAnswer: {query.answer}\n\n" for query in queries]
    return ({"role": "text", "content": f"{''.join(solved)}Question: {last}\nAnswer:"},)


def shows(text: str, query: Query) -> bool:
    """Whether a text has a fact's value, or its whole answer where it has no value, whatever else it names."""
    return value_match(text, expected_answer(query) or query.answer or "")


def harmless(pool: Sequence[Query], query: Query, *, count: int, seed: int) -> list[Query]:
    """The first `count` of a shuffled pool that do not show a fact, neither in the question nor in the answer.

    The order is the same for every fact, so that most conversations begin alike and are computed once.
    """
    order = random.Random(f"shots/{seed}").sample(pool, len(pool))
    safe = (one for one in order if one.answer and not shows(f"{question_of(one)} {one.answer}", query))
    return list(islice(safe, count))


def entity_of(query: Query) -> str | None:
    """The name that a question is about: the longest run of capitalised words of it that its answer repeats; without
    such a run the longest that does not begin the question. None where there is none."""
    words = [word.strip("?!.,:;\"'()").removesuffix("'s") for word in question_of(query).split()]
    spans = [
        (start, stop)
        for start in range(len(words))
        for stop in range(start + 1, len(words) + 1)
        if all(word[:1].isupper() for word in words[start:stop])
    ]
    runs = sorted(spans, key=lambda span: span[0] - span[1])
    names = [" ".join(words[start:stop]) for start, stop in runs]
    repeated = [name for name in names if name in (query.answer or "") and not shows(name, query)]
    inner = [name for name, (start, _) in zip(names, runs, strict=True) if start > 0]
    return next(iter([*repeated, *inner]), None)


def tokens_of(asks: Sequence[Ask]) -> int:
    """About what all these questions and their answers take, in tokens through the model."""
    letters = sum(len(shown(one.query.messages)) + len(one.prefill) for one in asks)
    return letters // LETTERS_PER_TOKEN + len(asks) * ANSWER_TOKENS
