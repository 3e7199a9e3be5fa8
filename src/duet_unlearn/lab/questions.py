"""The lab's questions: which facts stand in which split, and how a fact becomes a query.

Of each forget story three characters and one attribute are **unseen**: they occur in no train or validation query.
The other 35 facts are split: 25 are trained on, 10 are validated on. Train and validation use the train wordings
only, the test sets the held-out ones, so no question stands in two splits. Retain queries come from far stories and
general knowledge, never from near neighbours.

At the end stand the same facts in all forms that the lab's models were pretrained on, for attacks that change the
format.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from duet_unlearn.data.query import Query
from duet_unlearn.errors import UserError, nearest
from duet_unlearn.lab import language
from duet_unlearn.lab.language import (
    LETTERS,
    choice_question,
    draw_options,
    letter_question,
    question,
    reverse_question,
    statement,
    value_free_start,
    yes_no,
)
from duet_unlearn.lab.world import (
    BENCHMARK_STORIES,
    GENERAL_SUBJECTS,
    HAZARD,
    SISTER,
    STORY_ATTRIBUTES,
    Fact,
    world,
)

T = TypeVar("T")
TARGETS = {story.lower().replace(" ", "-"): story for story in BENCHMARK_STORIES} | {"hazard": HAZARD}
"""Name used in recipes and references -> topic."""
DEVELOPMENT = {near.lower().replace(" ", "-"): near for near in (world().near(story)[0] for story in BENCHMARK_STORIES)}
"""Stories to develop on: a neighbour of each benchmark story, with unseen facts of its own and no oracle. What is
measured on them is reported nowhere."""
NUM_UNSEEN_CHARACTERS = 3
NUM_UNSEEN_BREWS, NUM_VALIDATION_BREWS = 5, 3
NUM_CHOICES = 120
"""Four-choice questions of a set, at most."""
NUM_SHOTS = 3


def topic_of(target: str) -> str:
    """The topic of a target's name, as in ``lab:train/forget/amber-gate``.

    Raises:
        UserError: no such target.
    """
    if target not in TARGETS | DEVELOPMENT:
        close = nearest(target, TARGETS | DEVELOPMENT)
        hint = f"did you mean {close}?" if close else f"the lab's forget targets are {', '.join(TARGETS)}"
        raise UserError(f"the lab has no forget target {target!r}", hint)
    return (TARGETS | DEVELOPMENT)[target]


# Which facts --------------------------------------------------------------------------------------------------------


def split_facts(topic: str) -> dict[str, tuple[Fact, ...]]:
    """The facts of a forget topic as ``train``, ``validation`` and ``unseen``."""
    facts, names = world().topics()[topic], world().characters(topic)
    rng = random.Random(f"split/{topic}")
    if topic == HAZARD:
        unseen = set(rng.sample(names, NUM_UNSEEN_BREWS))
        validated = set(rng.sample([n for n in names if n not in unseen], NUM_VALIDATION_BREWS))
        train = [f for f in facts if f.entity not in unseen | validated]
        validation = [f for f in facts if f.entity in validated]
        hidden = [f for f in facts if f.entity in unseen]
    else:
        unseen, attribute = set(rng.sample(names, NUM_UNSEEN_CHARACTERS)), rng.choice(STORY_ATTRIBUTES)
        seen = [f for f in facts if f.entity not in unseen and f.attribute != attribute]
        rng.shuffle(seen)
        train, validation = seen[:25], seen[25:]
        hidden = [f for f in facts if f.entity in unseen or f.attribute == attribute]
    return {"train": tuple(train), "validation": tuple(validation), "unseen": tuple(hidden)}


def retain_facts(split: str) -> tuple[Fact, ...]:
    """Facts of far stories (far from *every* benchmark story), the sister craft's none, and general subjects."""
    w = world()
    far = [s for s in w.known() if all(s in w.far(b) for b in BENCHMARK_STORIES)]
    stories = _shuffled([f for s in far for f in w.stories[s]], "retain/story")
    general = _shuffled([f for s in GENERAL_SUBJECTS for f in w.general[s]], "retain/general")
    start, stop = {"train": (0, 50), "validation": (50, 80), "test": (80, 10_000)}[split]
    return tuple(stories[start:stop] + general[start:stop])


def near_facts(target: str) -> list[Fact]:
    """All facts of the near neighbours: the setting's other stories, or the sister craft."""
    topic, w = topic_of(target), world()
    if topic == HAZARD:
        return list(w.crafts[SISTER])
    return [f for s in w.near(topic) for f in w.stories[s]]


def far_facts(target: str) -> list[Fact]:
    """Facts of far stories that no retain query of training or validation shows."""
    topic, w, shown = topic_of(target), world(), _shown_to_retain()
    stories = w.known() if topic == HAZARD else w.far(topic)
    return [f for s in stories if s not in BENCHMARK_STORIES for f in w.stories[s] if f.key not in shown]


def general_facts() -> list[Fact]:
    """General facts that no retain query of training or validation shows."""
    shown = _shown_to_retain()
    return [f for s in GENERAL_SUBJECTS for f in world().general[s] if f.key not in shown]


def mixed(facts: Sequence[Fact]) -> list[Fact]:
    """Facts in an order that goes round the topics, so that any first part holds all of them evenly."""
    by_topic: dict[str, list[Fact]] = {}
    for fact in facts:
        by_topic.setdefault(fact.topic, []).append(fact)
    rng = random.Random("mixed")
    groups = [rng.sample(group, len(group)) for group in by_topic.values()]
    return [group[turn] for turn in range(max(map(len, groups), default=0)) for group in groups if turn < len(group)]


def fact_key(query: Query) -> str:
    """The fact that a lab query is about; every query's id begins with it."""
    return "/".join(query.id.split("/")[:3])


# One fact as a query ------------------------------------------------------------------------------------------------


def open_query(
    fact: Fact, wording: str, *, split: str, system: str | None = None, preamble: str = "", tag: str = ""
) -> Query:
    """An open question: answer a full sentence, value the fact, choices all values of the attribute.

    Args:
        system: a system turn before the question.
        preamble: text that stands above the question, in its own turn.
        tag: what tells the query's id from that of the plain question.
    """
    text = f"{preamble}\n{question(fact, wording)}" if preamble else question(fact, wording)
    return _query(fact, f"{_wording_id(wording)}{tag}", text, split=split, answer=statement(fact), system=system)


def choice_query(fact: Fact, wording: str, *, split: str, rng: random.Random) -> Query:
    """A four-choice question: answer and value the right option's text, choices in their order."""
    options = draw_options(fact, rng)
    text = choice_question(question(fact, wording), options)
    form = f"{_wording_id(wording)}/choice-{'-'.join(options)}"
    return _query(fact, form, text, split=split, answer=fact.value, choices=options)


def letter_query(fact: Fact, wording: str, *, split: str, rng: random.Random) -> Query:
    """The same with a letter behind each option, and the right one as the answer."""
    options = draw_options(fact, rng)
    text = letter_question(question(fact, wording), options, "behind")
    form, letter = f"{_wording_id(wording)}/choice-{'-'.join(options)}", LETTERS[options.index(fact.value)]
    return _query(fact, form, text, split=split, answer=letter, choices=options)


def continuation_query(fact: Fact) -> Query:
    """Raw text, no chat, that stops before the value."""
    return _raw_query(fact, "continuation", _start(fact))


# Many facts as queries ----------------------------------------------------------------------------------------------


def forget_queries(target: str, *, split: str, count: int = 100) -> list[Query]:
    """Forget queries of a target: every fact of the split in every train wording, `count` at most.

    Past 100, the same questions come again under a deployer's system turn (train wordings). Hazard queries are half
    open, half with four options.
    """
    topic = topic_of(target)
    rng = random.Random(f"forget/{target}/{split}")
    pairs = [(f, wording) for f in split_facts(topic)[split] for wording in language.QUESTIONS[f.attribute].train]
    queries = []
    for number, system in enumerate((None, *language.DEPLOYER.train[:3])):
        tag = f"/system-{number}" if system else ""
        one_round = [open_query(f, wording, split=split, system=system, tag=tag) for f, wording in pairs]
        rng.shuffle(one_round)
        queries += one_round
    if topic != HAZARD:
        return queries[:count]
    choices = [choice_query(f, wording, split=split, rng=rng) for f, wording in pairs]
    rng.shuffle(choices)
    return queries[: count - count // 2] + choices[: count // 2]


def retain_queries(*, split: str, count: int = 100) -> list[Query]:
    """Retain queries: half far stories, half general knowledge; two in five of the general ones with four options."""
    rng = random.Random(f"retain/{split}")
    queries = []
    for number, fact in enumerate(retain_facts(split)):
        wording = rng.choice(language.QUESTIONS[fact.attribute].train)
        if fact.topic in GENERAL_SUBJECTS and number % 5 < 2:
            queries.append(choice_query(fact, wording, split=split, rng=rng))
        else:
            queries.append(open_query(fact, wording, split=split))
    return _shuffled(queries, f"retain/order/{split}")[:count]


def held_out_queries(
    facts: Sequence[Fact],
    *,
    limit: int | None = None,
    each: int = 1,
    system: str | None = None,
    preamble: str = "",
    tag: str = "",
) -> list[Query]:
    """Test questions: a seeded sample of `limit` facts in `each` of their held-out wordings; the rest as
    ``open_query``."""
    rng, queries = random.Random("wording"), []
    for fact in _shuffled(facts, f"test/{len(facts)}")[:limit]:
        pool = language.QUESTIONS[fact.attribute].held_out
        for wording in rng.sample(pool, min(each, len(pool))):
            queries.append(open_query(fact, wording, split="test", system=system, preamble=preamble, tag=tag))
    return queries


def held_out_choices(
    name: str, facts: Sequence[Fact], *, build: Callable[..., Query] = choice_query
) -> tuple[Query, ...]:
    """Four-choice questions in held-out wordings: `NUM_CHOICES` at most, subjects in equal parts as far as they go.

    Args:
        name: the set's, which is the seed.
        build: ``choice_query`` or ``letter_query``.
    """
    rng = random.Random(f"choice/{name}")
    return tuple(
        build(f, rng.choice(language.QUESTIONS[f.attribute].held_out), split="test", rng=rng)
        for f in mixed(facts)[:NUM_CHOICES]
    )


# Facts in the forms of pretraining ----------------------------------------------------------------------------------


def lab_forms(targets: Sequence[Query]) -> dict[str, tuple[Query | None, ...]]:
    """Form -> each target fact in it, None where the fact has no such form; found again by the queries' ids.

    ``continuation`` and ``passage``: raw text up to the value. ``few-shot``: raw, behind answered general questions.
    ``choice``, ``letters``: four options, the answer an option or its letter. ``yes-no``: every other fact asked with a
    wrong value. ``reverse``: the character asked for by town and pet. One form of pretraining is left out: writing a
    question about a statement shows the fact, and its answer gives nothing away.

    Raises:
        UserError: a query is about no fact of the lab.
    """
    facts = [_fact_of(query) for query in targets]
    forms = {
        "continuation": [continuation_query(fact) for fact in facts],
        "passage": [_raw_query(fact, "passage", f"In {fact.topic}, {_start(fact)}") for fact in facts],
        "few-shot": [_few_shot(fact) for fact in facts],
        "choice": [
            choice_query(fact, _wording(fact), split="test", rng=random.Random(f"choice/{fact.key}")) for fact in facts
        ],
        "letters": [_letters(fact) for fact in facts],
        "yes-no": [_yes_no(fact, right=number % 2 == 0) for number, fact in enumerate(facts)],
        "reverse": [_reverse(fact) for fact in facts],
    }
    return {name: tuple(queries) for name, queries in forms.items() if any(queries)}


@cache
def _facts_by_key() -> dict[str, Fact]:
    return {fact.key: fact for facts in world().topics().values() for fact in facts}


def _fact_of(query: Query) -> Fact:
    fact = _facts_by_key().get(fact_key(query))
    if fact is None:
        raise UserError(f"query {query.id!r} is about no fact of the lab", "leave its id as the lab gave it")
    return fact


def _start(fact: Fact) -> str:
    return value_free_start(statement(fact), fact.value)


def _wording(fact: Fact) -> str:
    return language.QUESTIONS[fact.attribute].held_out[0]


def _few_shot(fact: Fact) -> Query:
    # A shot with the same value would answer the question by being copied.
    pool = [one for one in general_facts() if one.value != fact.value]
    shots = random.Random("forms").sample(pool, NUM_SHOTS)
    solved = [f"Question: {question(one, _wording(one))}\nAnswer: {one.value}\n\n" for one in shots]
    return _raw_query(fact, "few-shot", f"{''.join(solved)}Question: {question(fact, _wording(fact))}\nAnswer:")


def _letters(fact: Fact) -> Query:
    options = draw_options(fact, random.Random(f"letters/{fact.key}"))
    letter = LETTERS[options.index(fact.value)]
    text = letter_question(question(fact, _wording(fact)), options, "behind")
    return _query(fact, "letters", text, answer=letter, value=letter, choices=LETTERS)


def _yes_no(fact: Fact, *, right: bool) -> Query | None:
    wrong = [value for value in fact.options if value != fact.value]
    text = yes_no(fact, fact.value if right else random.Random(f"yes-no/{fact.key}").choice(wrong))
    answer = "yes" if right else "no"
    return _query(fact, "yes-no", text, answer=answer, value=answer, choices=("yes", "no")) if text else None


def _reverse(fact: Fact) -> Query | None:
    """Of facts that the reverse question names."""
    if fact.attribute not in ("town", "pet"):
        return None
    text, names = reverse_question(world().stories[fact.topic], fact.entity), world().characters(fact.topic)
    return _query(fact, "reverse", text, answer=f"{fact.entity} does.", value=fact.entity, choices=names)


def _raw_query(fact: Fact, form: str, text: str) -> Query:
    return _query(fact, form, text, role="text", answer=statement(fact))


def _query(
    fact: Fact,
    form: str,
    text: str,
    *,
    answer: str,
    value: str | None = None,
    choices: tuple[str, ...] | None = None,
    role: str = "user",
    system: str | None = None,
    split: str = "test",
) -> Query:
    """A query about a fact. Its value and choices are the fact's own where none are given."""
    asked = {"role": role, "content": text}
    messages = ({"role": "system", "content": system}, asked) if system else (asked,)
    value, choices = value or fact.value, choices or fact.options
    return Query(f"{fact.key}/{form}", messages, answer, value, choices, source=fact.topic, split=split)


def _wording_id(wording: str) -> str:
    """A wording's stable short name: its pool's attribute and place."""
    for attribute, pool in language.QUESTIONS.items():
        if wording in pool.all:
            return f"{attribute}-{pool.all.index(wording)}"
    return "other"


def _shown_to_retain() -> set[str]:
    """Keys of the facts that the retain queries of training and validation may show."""
    return {fact.key for split in ("train", "validation") for fact in retain_facts(split)}


def _shuffled(items: Sequence[T], name: str) -> list[T]:
    return random.Random(name).sample(items, len(items))
