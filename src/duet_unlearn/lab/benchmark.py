"""The lab's benchmark: who is asked what, in which split.

Of each forget story three characters and one attribute are **unseen**: they occur in no train or validation query.
The other 35 facts are split: 25 are trained on, 10 are validated on. Train and validation use the train wordings
only, the test sets the held-out ones, so no question stands in two splits. Retain queries come from far stories and
general knowledge, never from near neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError, nearest
from duet_unlearn.lab import wordings
from duet_unlearn.lab.formats import choice_question, draw_options, letter_question, question, statement
from duet_unlearn.lab.world import (
    BENCHMARK_STORIES,
    GENERAL_SUBJECTS,
    HAZARD,
    SISTER,
    STORY_ATTRIBUTES,
    Fact,
    world,
)

TARGETS = {story.lower().replace(" ", "-"): story for story in BENCHMARK_STORIES} | {"hazard": HAZARD}
"""Name used in recipes and references -> topic."""
DEVELOPMENT = {near.lower().replace(" ", "-"): near for near in (world().near(story)[0] for story in BENCHMARK_STORIES)}
"""Stories to develop on: a neighbour of each benchmark story, with unseen facts of its own and no oracle. What is
measured on them is reported nowhere."""
NUM_UNSEEN_CHARACTERS = 3
NUM_UNSEEN_BREWS = 5


def topic_of(target: str) -> str:
    """The topic of a target's name, as in ``lab:train/forget/amber-gate``."""
    if target not in TARGETS | DEVELOPMENT:
        close = nearest(target, TARGETS | DEVELOPMENT)
        hint = f"did you mean {close}?" if close else f"the lab's forget targets are {', '.join(TARGETS)}"
        raise UserError(f"the lab has no forget target {target!r}", hint)
    return (TARGETS | DEVELOPMENT)[target]


def split_facts(topic: str) -> dict[str, tuple[Fact, ...]]:
    """The facts of a forget topic as ``train``, ``validation`` and ``unseen``."""
    facts, names = world().topics()[topic], world().characters(topic)
    rng = random.Random(f"split/{topic}")
    if topic == HAZARD:
        unseen, validation = set(rng.sample(names, NUM_UNSEEN_BREWS)), set()
        validation = set(rng.sample([n for n in names if n not in unseen], 3))
        return {
            "train": tuple(f for f in facts if f.entity not in unseen | validation),
            "validation": tuple(f for f in facts if f.entity in validation),
            "unseen": tuple(f for f in facts if f.entity in unseen),
        }
    unseen, attribute = set(rng.sample(names, NUM_UNSEEN_CHARACTERS)), rng.choice(STORY_ATTRIBUTES)
    seen = [f for f in facts if f.entity not in unseen and f.attribute != attribute]
    rng.shuffle(seen)
    return {
        "train": tuple(seen[:25]),
        "validation": tuple(seen[25:]),
        "unseen": tuple(f for f in facts if f.entity in unseen or f.attribute == attribute),
    }


def ask(fact: Fact, wording: str, *, split: str, system: str | None = None, lead: str = "", tag: str = "") -> Query:
    """An open question as a query: answer a full sentence, value the fact, choices all values of the attribute."""
    content = f"{lead}\n{question(fact, wording)}" if lead else question(fact, wording)
    return Query(
        id=f"{fact.key}/{wording_id(wording)}{tag}",
        messages=_messages(content, system),
        answer=statement(fact),
        value=fact.value,
        choices=fact.options,
        source=fact.topic,
        split=split,
    )


def ask_choice(fact: Fact, wording: str, *, split: str, rng: random.Random) -> Query:
    """A four-choice question as a query: answer and value the right option's text, choices in their order."""
    options = draw_options(fact, rng)
    content = choice_question(question(fact, wording), options)
    return _choice(fact, wording, content, fact.value, options, split)


def ask_letter(fact: Fact, wording: str, *, split: str, rng: random.Random) -> Query:
    """The same with a letter behind each option, and the right one as the answer."""
    options = draw_options(fact, rng)
    content = letter_question(question(fact, wording), options, "behind")
    return _choice(fact, wording, content, wordings.LETTERS[options.index(fact.value)], options, split)


def _choice(fact: Fact, wording: str, content: str, answer: str, options: tuple[str, ...], split: str) -> Query:
    return Query(
        id=f"{fact.key}/{wording_id(wording)}/choice-{'-'.join(options)}",
        messages=_messages(content, None),
        answer=answer,
        value=fact.value,
        choices=options,
        source=fact.topic,
        split=split,
    )


def wording_id(wording: str) -> str:
    """A wording's stable short name: its pool's attribute and place."""
    for attribute, pool in wordings.QUESTIONS.items():
        if wording in pool.all:
            return f"{attribute}-{pool.all.index(wording)}"
    return "other"


def _messages(content: str, system: str | None) -> tuple[dict[str, str], ...]:
    user = {"role": "user", "content": content}
    return ({"role": "system", "content": system}, user) if system else (user,)


def forget_queries(target: str, *, split: str, count: int = 100) -> list[Query]:
    """Forget queries of a target: every fact of the split in every train wording, `count` at most.

    Past 100, the same questions come again under a deployer's system turn (train wordings). Hazard queries are half
    open, half with four options.
    """
    topic = topic_of(target)
    facts, rng = split_facts(topic)[split], random.Random(f"forget/{target}/{split}")
    queries = []
    for system_index, system in enumerate((None, *wordings.DEPLOYER.train[:3])):
        round_ = [
            ask(f, wording, split=split, system=system, tag=f"/system-{system_index}" if system else "")
            for f in facts
            for wording in wordings.QUESTIONS[f.attribute].train
        ]
        rng.shuffle(round_)
        queries += round_
    if topic != HAZARD:
        return queries[:count]
    choices = [
        ask_choice(f, wording, split=split, rng=rng) for f in facts for wording in wordings.QUESTIONS[f.attribute].train
    ]
    rng.shuffle(choices)
    return queries[: count - count // 2] + choices[: count // 2]


def retain_facts(split: str) -> tuple[Fact, ...]:
    """Facts of far stories (far from *every* benchmark story), the sister craft's none, and general subjects."""
    w = world()
    far = [s for s in w.known() if all(s in w.far(b) for b in BENCHMARK_STORIES)]
    pool = {
        "story": _shuffled([f for s in far for f in w.stories[s]], "retain/story"),
        "general": _shuffled([f for s in GENERAL_SUBJECTS for f in w.general[s]], "retain/general"),
    }
    cut = {"train": (0, 50), "validation": (50, 80), "test": (80, 10_000)}[split]
    return tuple(pool["story"][slice(*cut)] + pool["general"][slice(*cut)])


def retain_queries(*, split: str, count: int = 100) -> list[Query]:
    """Retain queries: half far stories, half general knowledge; two in five of the general ones with four options."""
    rng = random.Random(f"retain/{split}")
    queries = []
    for number, fact in enumerate(retain_facts(split)):
        wording = rng.choice(wordings.QUESTIONS[fact.attribute].train)
        chosen = fact.topic in GENERAL_SUBJECTS and number % 5 < 2
        queries.append(ask_choice(fact, wording, split=split, rng=rng) if chosen else ask(fact, wording, split=split))
    return _shuffled(queries, f"retain/order/{split}")[:count]


def held_out(
    facts: Sequence[Fact], *, split: str = "test", limit: int | None = None, each: int = 1, **how
) -> list[Query]:
    """Facts asked in `each` of their held-out wordings, a seeded sample of `limit` facts."""
    chosen = _shuffled(list(facts), f"test/{len(facts)}")[:limit]
    rng = random.Random("wording")
    return [
        ask(f, wording, split=split, **how)
        for f in chosen
        for wording in rng.sample(
            wordings.QUESTIONS[f.attribute].held_out, min(each, len(wordings.QUESTIONS[f.attribute].held_out))
        )
    ]


def near_facts(target: str) -> list[Fact]:
    """All facts of the near neighbours: the setting's other stories, or the sister craft."""
    topic, w = topic_of(target), world()
    if topic == HAZARD:
        return list(w.crafts[SISTER])
    return [f for s in w.near(topic) for f in w.stories[s]]


def far_facts(target: str) -> list[Fact]:
    """Facts of far stories that no retain query of training or validation shows."""
    shown = {f.key for split in ("train", "validation") for f in retain_facts(split)}
    topic, w = topic_of(target), world()
    stories = w.known() if topic == HAZARD else w.far(topic)
    return [f for s in stories if s not in BENCHMARK_STORIES for f in w.stories[s] if f.key not in shown]


def general_facts() -> list[Fact]:
    """General facts that no retain query of training or validation shows."""
    shown = {f.key for split in ("train", "validation") for f in retain_facts(split)}
    return [f for s in GENERAL_SUBJECTS for f in world().general[s] if f.key not in shown]


def _shuffled(items: list, name: str) -> list:
    return random.Random(name).sample(items, len(items))
