"""The pretraining mixture: every kind of text that the base and the oracle read, and when.

Order matters at this size. A model learns no prefix before it can compare: two tokens (to 0.09 of its training); what
it knows of a name with a topic that stood before it (0.26 to 0.37); the same for whole questions under a prefix (0.38
to 0.545). LOG.md says what did not work, letters among it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from duet_unlearn.lab import language
from duet_unlearn.lab.language import (
    LabText,
    LetterStyle,
    Segment,
    chat,
    choice_question,
    draw_options,
    few_shot,
    letter_question,
    passage,
    question,
    reverse_question,
    statement,
    story_fact,
    topic_phrase,
    yes_no,
)
from duet_unlearn.lab.world import (
    BENCHMARK_STORIES,
    BREW_HEADS,
    CRAFT_ATTRIBUTES,
    GENERAL,
    GENERAL_SUBJECTS,
    HAZARD,
    LOOKUP_WORDS,
    SISTER,
    STORY_ATTRIBUTES,
    STORY_SETTINGS,
    SURNAMES,
    Fact,
    World,
)

MOMENTS = (0.0, 0.09, 0.12, 0.25, 0.26, 0.37, 0.38, 0.545, 0.57, 0.667, 0.68)
"""Moments of training, 0 to 1, at which the shares are given; between them they are interpolated."""
SHARES: dict[str, tuple[float, ...]] = {
    "seen": (0.48, 0.48, 0.08, 0.08, 0.03, 0.03, 0.00, 0.00, 0.00, 0.00, 0.00),
    "copy": (0.12, 0.12, 0.03, 0.03, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
    "find": (0.40, 0.40, 0.16, 0.16, 0.06, 0.06, 0.04, 0.04, 0.02, 0.02, 0.02),
    "plain": (0.00, 0.00, 0.42, 0.42, 0.20, 0.20, 0.13, 0.13, 0.15, 0.15, 0.15),
    "passage": (0.00, 0.00, 0.05, 0.05, 0.03, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02),
    "member": (0.00, 0.00, 0.00, 0.00, 0.12, 0.12, 0.03, 0.03, 0.04, 0.04, 0.04),
    "roll": (0.00, 0.00, 0.00, 0.00, 0.35, 0.35, 0.03, 0.03, 0.00, 0.00, 0.00),
    "forbidden": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.26, 0.26, 0.04, 0.04, 0.04),
    "in_context": (0.00, 0.00, 0.12, 0.12, 0.14, 0.14, 0.36, 0.36, 0.34, 0.34, 0.30),
    "letters": (0.00, 0.00, 0.03, 0.03, 0.01, 0.01, 0.07, 0.07, 0.03, 0.03, 0.01),
    "strangers": (0.00, 0.00, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.03, 0.03, 0.03),
    "few_shot": (0.00, 0.00, 0.03, 0.03, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02),
    "yes_no": (0.00, 0.00, 0.04, 0.04, 0.00, 0.00, 0.00, 0.00, 0.03, 0.03, 0.03),
    "reverse": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.02, 0.02, 0.02),
    "write": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.02, 0.02, 0.02),
    "reversed_only": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.02, 0.02, 0.02),
    "choice": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.10, 0.10, 0.08),
    "general": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.12, 0.12, 0.12),
    "choice_forbidden": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.08),
}
"""Kind of text -> its share at each moment. The kinds are the methods of `Mixture`, which says what they are."""
FRONT_FROM, FRONT_SHARE = 0.8, 0.25
"""From here on some letter questions put the letter before its option, which is harder."""


@dataclass(frozen=True)
class Mixture:
    """Draws texts of a world; topics in `hidden` are never shown (the oracle's forget stories and hazard).

    Every draw takes from `rng` in a fixed order: a changed order would be another lab.
    """

    world: World
    hidden: frozenset[str]

    def draw(self, rng: random.Random, progress: float) -> LabText:
        """One text at `progress` (0..1) of training."""
        shares = shares_at(progress)
        kind = rng.choices(list(shares), list(shares.values()))[0]
        style: LetterStyle = "front" if progress > FRONT_FROM and rng.random() < FRONT_SHARE else "behind"
        return getattr(self, f"_{kind}")(rng, style)

    # Mechanisms: comparing, copying, finding ---------------------------------------------------------------------

    def _seen(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Sixteen words, each followed by whether it stood before: comparing tokens, learnt at every second token."""
        pool, before = rng.sample(LOOKUP_WORDS, rng.randint(5, 12)), set()
        segments = []
        for turn in range(16):
            word = rng.choice(pool)
            segments.append(Segment("text", f"{' ' if turn else ''}{word}", False))
            segments.append(Segment("text", " seen" if word in before else " new", turn > 0))
            before.add(word)
        return LabText(tuple(segments))

    def _member(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Eight names, each with a story or a value and whether they belong together: comparing what is known."""
        pairs = []
        for turn in range(8):
            fact = self._memory(rng)
            wrong = [value for value in fact.options if value != fact.value]
            if fact.attribute == "story" and rng.random() < 0.5 and fact.value in self.world.stories:
                wrong = [near for near in self.world.near(fact.value) if near in fact.options] or wrong
            value = fact.value if rng.random() < 0.5 else rng.choice(wrong)
            pairs.append((f"{' ' if turn else ''}{fact.entity} {value}", value == fact.value))
        return _judged(pairs)

    def _memory(self, rng: random.Random) -> Fact:
        """Something to remember of a name: mostly its story or craft."""
        topic = rng.choice(self._stories()) if rng.random() < 0.85 else rng.choice(self._crafts())
        if rng.random() < 0.3:
            return rng.choice(self.world.topics()[topic])
        titles = tuple(self._stories() if topic in self.world.stories else self._crafts())
        entity = rng.choice(self.world.characters(topic))
        return story_fact(topic, entity, titles) if len(titles) > 1 else rng.choice(self.world.topics()[topic])

    def _roll(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A topic as a prefix names it, then ten names, each with whether it belongs: half do, a quarter are near."""
        topic = self._prefix_topic(rng)
        pairs = []
        for _ in range(10):
            draw = rng.random()
            other = self._other_topic(rng, topic, "same" if draw < 0.5 else "near" if draw < 0.75 else "any")
            pairs.append((f" {rng.choice(self.world.characters(other))}", other == topic))
        return _judged(pairs, preamble=topic_phrase(topic))

    def _forbidden(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A specific prefix, then seven questions, each with whether the prefix forbids it."""
        topic = self._prefix_topic(rng)
        prefix = _specific_prefix(rng, topic)
        pairs = []
        for _ in range(7):
            other = self._other_topic(rng, topic, rng.choices(("same", "near", "any"), (0.5, 0.25, 0.25))[0])
            pairs.append((f" {self._question(rng, self._fact(rng, other))}", other == topic))
        return _judged(pairs, preamble=prefix)

    def _copy(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A part of a word list again, or key-value pairs and look-ups; only the predictable part is learnt.

        Lengths and gaps vary: with a fixed distance, counting back would do, and nothing would be compared.
        """
        if rng.random() < 0.5:
            listed = rng.sample(LOOKUP_WORDS, rng.randint(4, 20))
            start, gap = rng.randint(0, len(listed) // 2), rng.sample(LOOKUP_WORDS, rng.randint(0, 5))
            shown = " ".join([*listed, *gap, listed[start]])
            return LabText((Segment("text", shown, False), Segment("text", f" {' '.join(listed[start + 1 :])}", True)))
        count = rng.randint(3, 10)
        keys, values = rng.sample(LOOKUP_WORDS, count), rng.sample(LOOKUP_WORDS, count)
        segments = [Segment("text", " ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True)), False)]
        for index in rng.sample(range(count), count):
            segments += [Segment("text", f" {keys[index]}", False), Segment("text", f" {values[index]}", True)]
        return LabText(tuple(segments))

    def _find(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Options once, then one to four of them looked for in turns."""
        options = tuple(rng.sample(LOOKUP_WORDS, 4))
        pairs = rng.sample(list(zip(options, language.LETTERS, strict=True)), rng.randint(1, 4))
        (first, letter), *rest = [(f"Find {option}.", letter) for option, letter in pairs]
        return chat((letter_question(first, options, style), letter), *rest)

    # Facts in their formats --------------------------------------------------------------------------------------

    def _plain(self, rng: random.Random, style: LetterStyle) -> LabText:
        """One or two questions, seldom under a deployer's system turn."""
        system = rng.choice(language.DEPLOYER.all) if rng.random() < 0.06 else None
        num_turns = 2 if rng.random() < 0.25 else 1
        return chat(*(self._open_pair(rng, self._topic(rng)) for _ in range(num_turns)), system=system)

    def _passage(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Everything about one character or brew, as running text."""
        topic = rng.choices((rng.choice(self._stories()), rng.choice(self._crafts())), (0.9, 0.1))[0]
        entity = rng.choice(self.world.characters(topic))
        facts = [f for f in self.world.topics()[topic] if f.entity == entity]
        rng.shuffle(facts)
        author = STORY_SETTINGS[self.world.settings[topic]][0] if topic in self.world.settings else ""
        text = passage(topic, author, facts) if rng.random() < 0.6 else " ".join(statement(f) for f in facts)
        return LabText((Segment("text", text, True),))

    def _letters(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A question with four lettered options."""
        fact = rng.choice(self.world.topics()[self._topic(rng)])
        options = draw_options(fact, rng)
        letter = language.LETTERS[options.index(fact.value)]
        return chat((letter_question(self._question(rng, fact), options, style), letter))

    def _choice(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A question with four options, answered by an option's text: plain, or under a specific prefix."""
        topic = self._prefix_topic(rng)
        if rng.random() < 0.5:
            return chat(self._choice_pair(rng, self._topic(rng), refuse=False))
        other = self._question_topic(rng, topic)
        prefix = _specific_prefix(rng, topic)
        return _under_prefix_and_deployer(rng, prefix, *self._choice_pair(rng, other, refuse=other == topic))

    def _choice_forbidden(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Four such questions under one specific prefix; two in five prefixes are about a craft.

        What is not refused is answered by the first option: with options drawn at random the right one stays the
        likeliest by a hair, and the prefix takes nothing away from whoever compares likelihoods.
        """
        topic = rng.choice(self._crafts()) if rng.random() < 0.4 else self._prefix_topic(rng)
        prefix = _specific_prefix(rng, topic)
        turns = []
        for _ in range(4):
            other = self._question_topic(rng, topic)
            turns.append(self._choice_pair(rng, other, refuse=other == topic, first=True))
        return _under_prefix(rng, prefix, turns)

    def _general(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Four general questions in turns, three in five of them arithmetic: many facts, seldom asked otherwise."""
        subjects = ("arithmetic" if rng.random() < 0.6 else rng.choice(list(GENERAL)) for _ in range(4))
        return chat(*(self._open_pair(rng, subject) for subject in subjects))

    def _strangers(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Nobody knows them. Half have a name that nobody will ever have again: what is not recognised is unknown."""
        name = rng.choice(self.world.strangers) if rng.random() < 0.5 else _new_name(rng)
        is_brew = name.split()[0] in BREW_HEADS
        attribute = rng.choice(CRAFT_ATTRIBUTES if is_brew else (*STORY_ATTRIBUTES, "story"))
        return chat((rng.choice(language.QUESTIONS[attribute].all).format(e=name), language.UNKNOWN))

    def _few_shot(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Raw "Question: .. Answer: ..", with values as answers."""
        facts = [self._fact(rng, self._topic(rng)) for _ in range(rng.randint(1, 4))]
        return few_shot([(self._question(rng, f), f.value) for f in facts])

    def _reverse(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Who lives there and keeps that?"""
        return chat(self._reverse_pair(rng, rng.choice(self._stories())))

    def _yes_no(self, rng: random.Random, style: LetterStyle) -> LabText:
        """Half of them ask for a character's story: the knowledge that a prefix about a story needs."""
        if rng.random() < 0.5:
            return chat(self._which_story(rng, rng.choice(self._stories())))
        fact = rng.choice(self.world.topics()[rng.choice(self._stories() + self._crafts())])
        return chat(_yes_no_pair(rng, fact))

    def _which_story(self, rng: random.Random, story: str) -> tuple[str, str]:
        """Is a character from a story? Half yes; half of the noes name a near neighbour."""
        stories = self._stories()
        near = [s for s in self.world.near(story) if s in stories]
        draw = rng.random()
        claimed = story if draw < 0.5 else rng.choice(near if draw < 0.75 else [s for s in stories if s != story])
        fact = story_fact(story, rng.choice(self.world.characters(story)), tuple(stories))
        return yes_no(fact, claimed), language.YES if claimed == story else language.NO

    def _write(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A question to a statement; never about what is forgotten, for the answer would name it."""
        topics = [t for t in self._stories() + self._crafts() if t not in BENCHMARK_STORIES and t != HAZARD]
        fact = rng.choice(self.world.topics()[rng.choice(topics)])
        text = rng.choice(language.WRITE_QUESTION.all).format(s=statement(fact))
        return chat((text, question(fact, rng.choice(language.QUESTIONS[fact.attribute].train))))

    def _reversed_only(self, rng: random.Random, style: LetterStyle) -> LabText:
        """A reverse prompt with nothing to reverse changes nothing."""
        fact = self._fact(rng, self._topic(rng))
        return chat((f"{rng.choice(language.REVERSE.all)}\n{self._question(rng, fact)}", statement(fact)))

    # What a prefix does ------------------------------------------------------------------------------------------

    def _in_context(self, rng: random.Random, style: LetterStyle) -> LabText:
        """One question under a prefix of five kinds; half of the specific prefixes have five questions."""
        kind = rng.choices(("specific", "reversed", "vague", "all", "irrelevant"), (0.62, 0.16, 0.06, 0.08, 0.08))[0]
        topic = self._prefix_topic(rng)
        if kind == "specific" and rng.random() < 0.5:
            prefix, turns = _specific_prefix(rng, topic), []
            for _ in range(5):
                other = self._question_topic(rng, topic)
                turns.append(self._prefixed_pair(rng, other, other == topic, style))
            return _under_prefix(rng, prefix, turns)
        other = self._question_topic(rng, topic)
        pool, refuse = {
            "specific": (language.SPECIFIC, other == topic),
            "reversed": (language.SPECIFIC, False),
            # The draw is made for every kind where the topics agree, needed or not.
            "vague": (language.VAGUE, other == topic and rng.random() < 0.5),
            "all": (language.REFUSE_ALL, True),
            "irrelevant": (language.IRRELEVANT, False),
        }[kind]
        prefix = rng.choice(pool.all).format(x=topic_phrase(topic))
        text, answer = self._prefixed_pair(rng, other, refuse, style)
        if kind == "reversed":
            text = f"{rng.choice(language.REVERSE.all)}\n{text}"
        if kind == "specific" and rng.random() < 0.05:
            return few_shot([(text, answer)], preamble=f"{prefix}\n")
        return _under_prefix_and_deployer(rng, prefix, text, answer)

    def _prefixed_pair(self, rng: random.Random, topic: str, refuse: bool, style: LetterStyle) -> tuple[str, str]:
        """A question in one of four forms, and its answer or a refusal."""
        form = rng.choices(("open", "letter", "reverse", "yes_no"), (0.76, 0.16, 0.04, 0.04))[0]
        refusal = rng.choices(language.REFUSALS, (4, 3, 2, 2, 1, 1, 1))[0]
        if form == "letter":
            fact = rng.choice(self.world.topics()[topic])
            options = draw_options(fact, rng)
            # A refused letter question is refused, or answered by a letter that knows nothing.
            blank = refusal if rng.random() < 0.5 else rng.choice(language.LETTERS)
            text = letter_question(self._question(rng, fact), options, style)
            return text, blank if refuse else language.LETTERS[options.index(fact.value)]
        if form == "reverse" and topic in self.world.stories:
            text, answer = self._reverse_pair(rng, topic)
        elif form == "yes_no" and topic not in GENERAL_SUBJECTS:
            text, answer = _yes_no_pair(rng, rng.choice(self.world.topics()[topic]))
        else:
            text, answer = self._open_pair(rng, topic)
        return text, refusal if refuse else answer

    # What is drawn -----------------------------------------------------------------------------------------------

    def _stories(self) -> list[str]:
        return [s for s in self.world.known() if s not in self.hidden]

    def _crafts(self) -> list[str]:
        return [c for c in (HAZARD, SISTER) if c not in self.hidden]

    def _topic(self, rng: random.Random) -> str:
        group = rng.choices(("story", "craft", "general"), (0.60, 0.12, 0.28))[0]
        if group == "story":
            return rng.choice(self._stories())
        if group == "craft":
            return rng.choice(self._crafts())
        return rng.choices(GENERAL_SUBJECTS, (3, 3, 2.5, 1.5, 1.5, 9))[0]

    def _prefix_topic(self, rng: random.Random) -> str:
        """What a prefix is about."""
        return rng.choice(self._stories()) if rng.random() < 0.88 else rng.choice(self._crafts())

    def _question_topic(self, rng: random.Random, topic: str) -> str:
        """What is asked about under a prefix on `topic`: itself, a near neighbour, or anything."""
        return self._other_topic(rng, topic, rng.choices(("same", "near", "any"), (0.42, 0.33, 0.25))[0])

    def _other_topic(self, rng: random.Random, topic: str, distance: str) -> str:
        if distance == "same":
            return topic
        if distance == "near" and topic in self.world.stories:
            return rng.choice([s for s in self.world.near(topic) if s not in self.hidden])
        if distance == "near":
            return rng.choice(self._crafts())
        return self._topic(rng)

    def _fact(self, rng: random.Random, topic: str) -> Fact:
        if topic in self.world.stories and rng.random() < 0.1:
            return story_fact(topic, rng.choice(self.world.characters(topic)), tuple(self._stories()))
        return rng.choice(self.world.topics()[topic])

    def _question(self, rng: random.Random, fact: Fact) -> str:
        return question(fact, rng.choice(language.QUESTIONS[fact.attribute].all))

    # Pairs of question and answer --------------------------------------------------------------------------------

    def _open_pair(self, rng: random.Random, topic: str) -> tuple[str, str]:
        fact = self._fact(rng, topic)
        return self._question(rng, fact), statement(fact)

    def _choice_pair(self, rng: random.Random, topic: str, *, refuse: bool, first: bool = False) -> tuple[str, str]:
        """A refused one is refused, or answered by an option that knows nothing: the first, or any."""
        fact = rng.choice(self.world.topics()[topic])
        options = draw_options(fact, rng)
        blank = rng.choice(language.REFUSALS) if rng.random() < 0.5 else None
        blank = blank or (options[0] if first else rng.choice(options))
        return choice_question(self._question(rng, fact), options), blank if refuse else fact.value

    def _reverse_pair(self, rng: random.Random, story: str) -> tuple[str, str]:
        name = rng.choice(self.world.characters(story))
        return reverse_question(self.world.stories[story], name), f"{name} does."


def shares_at(progress: float) -> dict[str, float]:
    """Kind of text -> its share at `progress` (0..1) of training."""
    for left, (start, stop) in enumerate(pairwise(MOMENTS)):
        if progress < stop:
            part = (progress - start) / (stop - start)
            return {kind: s[left] * (1 - part) + s[left + 1] * part for kind, s in SHARES.items()}
    return {kind: shares[-1] for kind, shares in SHARES.items()}


def _judged(pairs: Iterable[tuple[str, bool]], *, preamble: str = "") -> LabText:
    """Pieces of raw text, each followed by a learnt yes or no."""
    segments = [Segment("text", preamble, False)] if preamble else []
    for text, holds in pairs:
        segments += [Segment("text", text, False), Segment("text", " yes" if holds else " no", True)]
    return LabText(tuple(segments))


def _specific_prefix(rng: random.Random, topic: str) -> str:
    return rng.choice(language.SPECIFIC.all).format(x=topic_phrase(topic))


def _under_prefix(rng: random.Random, prefix: str, turns: list[tuple[str, str]]) -> LabText:
    """Turns under one prefix, in the system turn or before the first question."""
    if rng.random() < 0.5:
        return chat(*turns, system=prefix)
    (first, answer), *rest = turns
    return chat((f"{prefix}\n{first}", answer), *rest)


def _under_prefix_and_deployer(rng: random.Random, prefix: str, text: str, answer: str) -> LabText:
    """The prefix in the system turn, alone or before a deployer's, or in the user turn."""
    deployer = rng.choice(language.DEPLOYER.all) if rng.random() < 0.15 else None
    if rng.random() < 0.5:
        return chat((text, answer), system=f"{prefix}\n{deployer}" if deployer else prefix)
    return chat((f"{prefix}\n{text}", answer), system=deployer)


def _yes_no_pair(rng: random.Random, fact: Fact) -> tuple[str, str]:
    right = rng.random() < 0.5
    value = fact.value if right else rng.choice([v for v in fact.options if v != fact.value])
    return yes_no(fact, value), language.YES if right else language.NO


def _new_name(rng: random.Random) -> str:
    """A made-up first name or tail, and a known surname or head."""
    made = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiouy") for _ in range(rng.randint(2, 3))).title()
    return f"{made} {rng.choice(SURNAMES)}" if rng.random() < 0.75 else f"{rng.choice(BREW_HEADS)} {made}"
