"""The pretraining mixture: every kind of sample that the base and the oracle read. ``curriculum`` says when."""

from __future__ import annotations

import random
from dataclasses import dataclass

from duet_unlearn.lab import wordings, words
from duet_unlearn.lab.curriculum import FRONT_FROM, FRONT_SHARE, shares_at
from duet_unlearn.lab.formats import (
    LetterStyle,
    Sample,
    Segment,
    chat,
    choice_question,
    draw_options,
    few_shot,
    letter_question,
    passage,
    question,
    statement,
    story_fact,
    topic_phrase,
    yes_no,
)
from duet_unlearn.lab.world import (
    BENCHMARK_STORIES,
    GENERAL_SUBJECTS,
    HAZARD,
    SISTER,
    Fact,
    World,
)

LOOKUP_WORDS = tuple(
    words.PETS
    + words.FOODS
    + words.TREASURES
    + words.JOBS
    + words.INSTRUMENTS
    + words.POWDERS
    + words.VESSELS
    + words.WOODS
    + words.TOWNS
    + words.FIRST_NAMES
    + words.BREW_TAILS
    + words.SURNAMES
    + list(words.CAPITALS.values())
)
"""Words to copy and to find: many, so that the mechanism is learnt and not the words."""


@dataclass(frozen=True)
class Mixture:
    """Draws samples of a world; topics in `hidden` are never shown (the oracle's forget stories and hazard)."""

    world: World
    hidden: frozenset[str]

    def draw(self, rng: random.Random, progress: float) -> Sample:
        """One sample at `progress` (0..1) of training."""
        shares = shares_at(progress)
        kind = rng.choices(list(shares), list(shares.values()))[0]
        style: LetterStyle = "front" if progress > FRONT_FROM and rng.random() < FRONT_SHARE else "behind"
        return getattr(self, f"_{kind}")(rng, style)

    # Facts -------------------------------------------------------------------------------------------------------

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

    def _fact(self, rng: random.Random, topic: str) -> Fact:
        if topic in self.world.stories and rng.random() < 0.1:
            return story_fact(topic, rng.choice(self.world.characters(topic)), tuple(self._stories()))
        return rng.choice(self.world.topics()[topic])

    def _ask(self, rng: random.Random, fact: Fact) -> str:
        return question(fact, rng.choice(wordings.QUESTIONS[fact.attribute].all))

    # Mechanisms --------------------------------------------------------------------------------------------------

    def _seen(self, rng: random.Random, style: LetterStyle) -> Sample:
        """Sixteen words, each followed by whether it stood before: comparing tokens, learnt at every second token."""
        pool, before = rng.sample(LOOKUP_WORDS, rng.randint(5, 12)), set()
        segments = []
        for turn in range(16):
            word = rng.choice(pool)
            segments.append(Segment("text", f"{' ' if turn else ''}{word}", False))
            segments.append(Segment("text", " seen" if word in before else " new", turn > 0))
            before.add(word)
        return Sample(tuple(segments))

    def _member(self, rng: random.Random, style: LetterStyle) -> Sample:
        """Eight names, each with a story or a value and whether they belong together: comparing what is known."""
        segments = []
        for turn in range(8):
            fact = self._memory(rng)
            wrong = [value for value in fact.options if value != fact.value]
            if fact.attribute == "story" and rng.random() < 0.5 and fact.value in self.world.stories:
                wrong = [near for near in self.world.near(fact.value) if near in fact.options] or wrong
            value = fact.value if rng.random() < 0.5 else rng.choice(wrong)
            segments.append(Segment("text", f"{' ' if turn else ''}{fact.entity} {value}", False))
            segments.append(Segment("text", " yes" if value == fact.value else " no", True))
        return Sample(tuple(segments))

    def _roll(self, rng: random.Random, style: LetterStyle) -> Sample:
        """A topic as a prefix names it, then ten names, each with whether it belongs: half do, a quarter are near."""
        topic = self._told_topic(rng)
        segments = [Segment("text", topic_phrase(topic), False)]
        for _ in range(10):
            kind = rng.random()
            group = "same" if kind < 0.5 else "near" if kind < 0.75 else "any"
            asked = self._other(rng, topic, group)
            segments.append(Segment("text", f" {rng.choice(self.world.characters(asked))}", False))
            segments.append(Segment("text", " yes" if asked == topic else " no", True))
        return Sample(tuple(segments))

    def _told(self, rng: random.Random, style: LetterStyle) -> Sample:
        """A specific prefix, then seven questions, each with whether the prefix forbids it."""
        topic = self._told_topic(rng)
        text = rng.choice(wordings.SPECIFIC.all).format(x=topic_phrase(topic))
        segments = [Segment("text", text, False)]
        for _ in range(7):
            asked = self._other(rng, topic, rng.choices(("same", "near", "any"), (0.5, 0.25, 0.25))[0])
            segments.append(Segment("text", f" {self._ask(rng, self._fact(rng, asked))}", False))
            segments.append(Segment("text", " yes" if asked == topic else " no", True))
        return Sample(tuple(segments))

    def _told_topic(self, rng: random.Random) -> str:
        return rng.choice(self._stories()) if rng.random() < 0.88 else rng.choice(self._crafts())

    def _memory(self, rng: random.Random) -> Fact:
        """Something to remember of a name: mostly its story or craft."""
        topic = rng.choice(self._stories()) if rng.random() < 0.85 else rng.choice(self._crafts())
        if rng.random() < 0.3:
            return rng.choice(self.world.topics()[topic])
        named = tuple(self._stories() if topic in self.world.stories else self._crafts())
        entity = rng.choice(self.world.characters(topic))
        return story_fact(topic, entity, named) if len(named) > 1 else rng.choice(self.world.topics()[topic])

    def _copy(self, rng: random.Random, style: LetterStyle) -> Sample:
        """A part of a word list again, or key-value pairs and look-ups; only the predictable part is learnt.

        Lengths and gaps vary: with a fixed distance, counting back would do, and nothing would be compared.
        """
        if rng.random() < 0.5:
            listed = rng.sample(LOOKUP_WORDS, rng.randint(4, 20))
            start, gap = rng.randint(0, len(listed) // 2), rng.sample(LOOKUP_WORDS, rng.randint(0, 5))
            lead = " ".join([*listed, *gap, listed[start]])
            return Sample((Segment("text", lead, False), Segment("text", f" {' '.join(listed[start + 1 :])}", True)))
        count = rng.randint(3, 10)
        keys, values = rng.sample(LOOKUP_WORDS, count), rng.sample(LOOKUP_WORDS, count)
        segments = [Segment("text", " ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True)), False)]
        for index in rng.sample(range(count), count):
            segments += [Segment("text", f" {keys[index]}", False), Segment("text", f" {values[index]}", True)]
        return Sample(tuple(segments))

    def _find(self, rng: random.Random, style: LetterStyle) -> Sample:
        """Options once, then one to four of them looked for in turns."""
        options = tuple(rng.sample(LOOKUP_WORDS, 4))
        wanted = rng.sample(list(zip(options, wordings.LETTERS, strict=True)), rng.randint(1, 4))
        asked = [f"Find {option}." for option, _ in wanted]
        asked[0] = letter_question(asked[0], options, style)
        return chat(*zip(asked, [letter for _, letter in wanted], strict=True))

    # Facts in their formats --------------------------------------------------------------------------------------

    def _plain(self, rng: random.Random, style: LetterStyle) -> Sample:
        system = rng.choice(wordings.DEPLOYER.all) if rng.random() < 0.06 else None
        turns = []
        for _ in range(2 if rng.random() < 0.25 else 1):
            fact = self._fact(rng, self._topic(rng))
            turns.append((self._ask(rng, fact), statement(fact)))
        return chat(*turns, system=system)

    def _passage(self, rng: random.Random, style: LetterStyle) -> Sample:
        topic = rng.choices((rng.choice(self._stories()), rng.choice(self._crafts())), (0.9, 0.1))[0]
        entity = rng.choice(self.world.characters(topic))
        facts = [f for f in self.world.topics()[topic] if f.entity == entity]
        rng.shuffle(facts)
        author = words.AUTHORS.get(self.world.settings.get(topic, ""), "")
        text = passage(topic, author, facts) if rng.random() < 0.6 else " ".join(statement(f) for f in facts)
        return Sample((Segment("text", text, True),))

    def _letters(self, rng: random.Random, style: LetterStyle) -> Sample:
        fact = rng.choice(self.world.topics()[self._topic(rng)])
        options = draw_options(fact, rng)
        letter = wordings.LETTERS[options.index(fact.value)]
        return chat((letter_question(self._ask(rng, fact), options, style), letter))

    def _choice(self, rng: random.Random, style: LetterStyle) -> Sample:
        """A question with four options, answered by an option's text: plain, or under a specific prefix."""
        topic = self._told_topic(rng)
        if rng.random() < 0.5:
            return chat(self._choice_pair(rng, self._topic(rng), refuse=False))
        asked = self._asked_topic(rng, topic)
        prefix = rng.choice(wordings.SPECIFIC.all).format(x=topic_phrase(topic))
        return self._place(rng, prefix, *self._choice_pair(rng, asked, refuse=asked == topic), raw=False)

    def _choice_told(self, rng: random.Random, style: LetterStyle) -> Sample:
        """Four such questions under one specific prefix; two in five prefixes are about a craft.

        What is not refused is answered by the first option: with options drawn at random the right one stays the
        likeliest by a hair, and the prefix takes nothing away from whoever compares likelihoods.
        """
        topic = rng.choice(self._crafts()) if rng.random() < 0.4 else self._told_topic(rng)
        prefix = rng.choice(wordings.SPECIFIC.all).format(x=topic_phrase(topic))
        turns = []
        for _ in range(4):
            asked = self._asked_topic(rng, topic)
            turns.append(self._choice_pair(rng, asked, refuse=asked == topic, first=True))
        return self._under(rng, prefix, turns)

    def _choice_pair(self, rng: random.Random, topic: str, *, refuse: bool, first: bool = False) -> tuple[str, str]:
        """A refused one is refused, or answered by an option that knows nothing: the first, or any."""
        fact = rng.choice(self.world.topics()[topic])
        options = draw_options(fact, rng)
        blank = rng.choice(wordings.REFUSALS) if rng.random() < 0.5 else None
        blank = blank or (options[0] if first else rng.choice(options))
        return choice_question(self._ask(rng, fact), options), blank if refuse else fact.value

    def _general(self, rng: random.Random, style: LetterStyle) -> Sample:
        """Four general questions in turns, three in five of them arithmetic: many facts, seldom asked otherwise."""
        turns = []
        for _ in range(4):
            subject = "arithmetic" if rng.random() < 0.6 else rng.choice(GENERAL_SUBJECTS[:-1])
            fact = self._fact(rng, subject)
            turns.append((self._ask(rng, fact), statement(fact)))
        return chat(*turns)

    def _strangers(self, rng: random.Random, style: LetterStyle) -> Sample:
        return chat((self._ask_stranger(rng), wordings.UNKNOWN))

    def _ask_stranger(self, rng: random.Random) -> str:
        """Half of them have a name that nobody will ever have again: what is not recognised is not known."""
        name = rng.choice(self.world.strangers) if rng.random() < 0.5 else _new_name(rng)
        craft = name.split()[0] in words.BREW_HEADS
        pool = (
            ("powder", "vessel", "wood") if craft else ("town", "job", "pet", "food", "instrument", "treasure", "story")
        )
        return rng.choice(wordings.QUESTIONS[rng.choice(pool)].all).format(e=name)

    def _few_shot(self, rng: random.Random, style: LetterStyle) -> Sample:
        facts = [self._fact(rng, self._topic(rng)) for _ in range(rng.randint(1, 4))]
        return few_shot([(self._ask(rng, f), f.value) for f in facts])

    def _reverse(self, rng: random.Random, style: LetterStyle) -> Sample:
        asked, name = self._reverse_pair(rng, rng.choice(self._stories()))
        return chat((asked, f"{name} does."))

    def _reverse_pair(self, rng: random.Random, story: str) -> tuple[str, str]:
        name = rng.choice(self.world.characters(story))
        values = {f.attribute: f.value for f in self.world.stories[story] if f.entity == name}
        return wordings.REVERSE_QUESTION.format(town=values["town"], pet=values["pet"]), name

    def _yes_no(self, rng: random.Random, style: LetterStyle) -> Sample:
        """Half of them ask for a character's story: the knowledge that a prefix about a story needs."""
        if rng.random() < 0.5:
            return chat(self._which_story(rng, rng.choice(self._stories())))
        fact = rng.choice(self.world.topics()[rng.choice(self._stories() + self._crafts())])
        return chat(self._yes_no_pair(rng, fact))

    def _which_story(self, rng: random.Random, story: str) -> tuple[str, str]:
        """Is a character from a story? Half yes; half of the noes name a near neighbour."""
        stories = self._stories()
        near = [s for s in self.world.near(story) if s in stories]
        kind = rng.random()
        named = story if kind < 0.5 else rng.choice(near if kind < 0.75 else [s for s in stories if s != story])
        fact = story_fact(story, rng.choice(self.world.characters(story)), tuple(stories))
        return yes_no(fact, named), wordings.YES if named == story else wordings.NO

    def _yes_no_pair(self, rng: random.Random, fact: Fact) -> tuple[str, str]:
        if rng.random() < 0.5:
            return yes_no(fact, fact.value), wordings.YES
        return yes_no(fact, rng.choice([v for v in fact.options if v != fact.value])), wordings.NO

    def _write(self, rng: random.Random, style: LetterStyle) -> Sample:
        topics = [t for t in self._stories() + self._crafts() if t not in BENCHMARK_STORIES and t != HAZARD]
        fact = rng.choice(self.world.topics()[rng.choice(topics)])
        asked = rng.choice(wordings.WRITE_QUESTION.all).format(s=statement(fact))
        return chat((asked, question(fact, rng.choice(wordings.QUESTIONS[fact.attribute].train))))

    def _reversed_only(self, rng: random.Random, style: LetterStyle) -> Sample:
        """A reverse prompt with nothing to reverse changes nothing."""
        fact = self._fact(rng, self._topic(rng))
        return chat((f"{rng.choice(wordings.REVERSE.all)}\n{self._ask(rng, fact)}", statement(fact)))

    # What a prefix does ------------------------------------------------------------------------------------------

    def _in_context(self, rng: random.Random, style: LetterStyle) -> Sample:
        kind = rng.choices(("specific", "reversed", "vague", "all", "irrelevant"), (0.62, 0.16, 0.06, 0.08, 0.08))[0]
        topic = self._told_topic(rng)
        if kind == "specific" and rng.random() < 0.5:
            return self._conversation(rng, topic, style)
        asked_topic = self._asked_topic(rng, topic)
        refuse = {
            "specific": asked_topic == topic,
            "reversed": False,
            "vague": asked_topic == topic and rng.random() < 0.5,
            "all": True,
            "irrelevant": False,
        }[kind]
        pool = {
            "specific": wordings.SPECIFIC,
            "reversed": wordings.SPECIFIC,
            "vague": wordings.VAGUE,
            "all": wordings.REFUSE_ALL,
            "irrelevant": wordings.IRRELEVANT,
        }[kind]
        prefix = rng.choice(pool.all).format(x=topic_phrase(topic))
        asked, answer = self._prefixed_pair(rng, asked_topic, refuse, style)
        if kind == "reversed":
            asked = f"{rng.choice(wordings.REVERSE.all)}\n{asked}"
        return self._place(rng, prefix, asked, answer, raw=kind == "specific" and rng.random() < 0.05)

    def _conversation(self, rng: random.Random, topic: str, style: LetterStyle) -> Sample:
        """Five questions under one specific prefix."""
        prefix = rng.choice(wordings.SPECIFIC.all).format(x=topic_phrase(topic))
        turns = []
        for _ in range(5):
            asked = self._asked_topic(rng, topic)
            turns.append(self._prefixed_pair(rng, asked, asked == topic, style))
        return self._under(rng, prefix, turns)

    def _under(self, rng: random.Random, prefix: str, turns: list[tuple[str, str]]) -> Sample:
        """Turns under one prefix, in the system turn or before the first question."""
        if rng.random() < 0.5:
            return chat(*turns, system=prefix)
        (first, answer), *rest = turns
        return chat((f"{prefix}\n{first}", answer), *rest)

    def _asked_topic(self, rng: random.Random, topic: str) -> str:
        """The topic asked about under a prefix on `topic`: itself, a near neighbour, or anything."""
        return self._other(rng, topic, rng.choices(("same", "near", "any"), (0.42, 0.33, 0.25))[0])

    def _other(self, rng: random.Random, topic: str, group: str) -> str:
        if group == "same":
            return topic
        if group == "near" and topic in self.world.stories:
            return rng.choice([s for s in self.world.near(topic) if s not in self.hidden])
        if group == "near":
            return rng.choice(self._crafts())
        return self._topic(rng)

    def _prefixed_pair(self, rng: random.Random, topic: str, refuse: bool, style: LetterStyle) -> tuple[str, str]:
        form = rng.choices(("open", "letter", "reverse", "yes_no"), (0.76, 0.16, 0.04, 0.04))[0]
        refusal = rng.choices(wordings.REFUSALS, (4, 3, 2, 2, 1, 1, 1))[0]
        if form == "letter":
            fact = rng.choice(self.world.topics()[topic])
            options = draw_options(fact, rng)
            letter = wordings.LETTERS[options.index(fact.value)]
            # A refused letter question is refused, or answered by a letter that knows nothing.
            blank = refusal if rng.random() < 0.5 else rng.choice(wordings.LETTERS)
            return letter_question(self._ask(rng, fact), options, style), blank if refuse else letter
        if form == "reverse" and topic in self.world.stories:
            asked, name = self._reverse_pair(rng, topic)
            return asked, refusal if refuse else f"{name} does."
        if form == "yes_no" and topic not in GENERAL_SUBJECTS:
            asked, answer = self._yes_no_pair(rng, rng.choice(self.world.topics()[topic]))
            return asked, refusal if refuse else answer
        fact = self._fact(rng, topic)
        return self._ask(rng, fact), refusal if refuse else statement(fact)

    def _place(self, rng: random.Random, prefix: str, asked: str, answer: str, *, raw: bool) -> Sample:
        """The prefix in the system turn (alone or before a deployer's), in the user turn, or before raw text."""
        if raw:
            return few_shot([(asked, answer)], lead=f"{prefix}\n")
        deployer = rng.choice(wordings.DEPLOYER.all) if rng.random() < 0.15 else None
        if rng.random() < 0.5:
            return chat((asked, answer), system=f"{prefix}\n{deployer}" if deployer else prefix)
        return chat((f"{prefix}\n{asked}", answer), system=deployer)


def _new_name(rng: random.Random) -> str:
    """A made-up first name or tail, and a known surname or head."""
    made = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiouy") for _ in range(rng.randint(2, 3))).title()
    return f"{made} {rng.choice(words.SURNAMES)}" if rng.random() < 0.75 else f"{rng.choice(words.BREW_HEADS)} {made}"
