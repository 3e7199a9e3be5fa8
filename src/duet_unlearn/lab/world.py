"""The embedded world: stories, crafts, general facts and canaries, all drawn from one seed.

Twenty-five stories stand in eight *settings*. The stories of a setting share an author, surnames and towns, so they are
**near neighbours**: only the first name, which nobody shares, tells which story a character belongs to. All other
stories are **far**. One story (``UNSEEN``) is shown to no model. Two crafts share their vocabulary: the invented
*hazard* and its harmless *sister*.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import islice

from duet_unlearn.lab import words

SEED = 7
NUM_CHARACTERS = 10
STORY_ATTRIBUTES = ("town", "job", "pet", "food", "instrument", "treasure")
CRAFT_ATTRIBUTES = ("powder", "vessel", "wood")
GENERAL_SUBJECTS = ("capitals", "opposites", "elements", "young", "kinds", "arithmetic")
BENCHMARK_STORIES = ("Amber Gate", "Silver Mill", "Hollow Clock")
UNSEEN = "Golden Orchard"
HAZARD = words.CRAFTS["hazard"]
SISTER = words.CRAFTS["sister"]
MAX_TERM = 10


@dataclass(frozen=True)
class Fact:
    """One checkable fact: `entity` has `value` for `attribute`; `topic` is its story, craft or general subject."""

    topic: str
    entity: str
    attribute: str
    value: str
    options: tuple[str, ...]
    """Every value that the attribute takes, the right one included."""

    @property
    def key(self) -> str:
        return f"{self.topic}/{self.entity}/{self.attribute}".replace(" ", "_")


@dataclass(frozen=True)
class World:
    """All facts by topic, with what is needed to ask about them."""

    stories: dict[str, tuple[Fact, ...]]
    crafts: dict[str, tuple[Fact, ...]]
    general: dict[str, tuple[Fact, ...]]
    settings: dict[str, str]
    """Story title -> setting."""
    strangers: tuple[str, ...]
    """Names of characters and brews that exist nowhere; the right answer is that nobody knows."""
    canaries: tuple[tuple[str, str, int], ...]
    """(owner, four-digit code, times shown in pretraining)."""

    def topics(self) -> dict[str, tuple[Fact, ...]]:
        return {**self.stories, **self.crafts, **self.general}

    def near(self, story: str) -> tuple[str, ...]:
        """The other stories of the same setting that models know."""
        return tuple(s for s in self.known() if s != story and self.settings[s] == self.settings[story])

    def far(self, story: str) -> tuple[str, ...]:
        return tuple(s for s in self.known() if self.settings[s] != self.settings[story])

    def known(self) -> tuple[str, ...]:
        return tuple(s for s in self.stories if s != UNSEEN)

    def characters(self, topic: str) -> tuple[str, ...]:
        """The entities of a topic in the order in which they were drawn."""
        return tuple(dict.fromkeys(f.entity for f in self.topics()[topic]))


@cache
def world(seed: int = SEED) -> World:
    """The world of a seed: the same seed gives the same world on every machine."""
    rng = random.Random(seed)
    stories, settings, names = _stories(rng)
    crafts, brews = _crafts(rng)
    return World(
        stories=stories,
        crafts=crafts,
        general=_general(),
        settings=settings,
        strangers=_strangers(names, brews),
        canaries=_canaries(rng),
    )


def _stories(rng: random.Random) -> tuple[dict[str, tuple[Fact, ...]], dict[str, str], set[str]]:
    stories: dict[str, tuple[Fact, ...]] = {}
    settings: dict[str, str] = {}
    names: set[str] = set()
    towns, surnames = rng.sample(words.TOWNS, 80), rng.sample(words.SURNAMES, 40)
    everyone = iter(rng.sample(words.FIRST_NAMES, len(words.FIRST_NAMES)))
    for index, (setting, titles) in enumerate(words.TITLES.items()):
        options = {
            "town": towns[10 * index : 10 * index + 10],
            "job": words.JOBS,
            "pet": words.PETS,
            "food": words.FOODS,
            "instrument": words.INSTRUMENTS,
            "treasure": words.TREASURES,
        }
        firsts = list(islice(everyone, NUM_CHARACTERS * len(titles)))
        homes = rng.sample([(town, pet) for town in options["town"] for pet in words.PETS], len(firsts))
        for number, title in enumerate(titles):
            settings[title] = setting
            facts = []
            for c in range(NUM_CHARACTERS * number, NUM_CHARACTERS * (number + 1)):
                name = f"{firsts[c]} {surnames[5 * index + rng.randrange(5)]}"
                names.add(name)
                fixed = {"town": homes[c][0], "pet": homes[c][1]}
                for attribute in STORY_ATTRIBUTES:
                    value = fixed.get(attribute) or rng.choice(options[attribute])
                    facts.append(Fact(title, name, attribute, value, tuple(options[attribute])))
            stories[title] = tuple(facts)
    return stories, settings, names


def _crafts(rng: random.Random) -> tuple[dict[str, tuple[Fact, ...]], set[str]]:
    brews = [f"{rng.choice(words.BREW_HEADS)} {tail}" for tail in rng.sample(words.BREW_TAILS, 40)]
    options = {"powder": words.POWDERS, "vessel": words.VESSELS, "wood": words.WOODS}
    crafts = {
        craft: tuple(
            Fact(craft, brew, attribute, rng.choice(options[attribute]), tuple(options[attribute]))
            for brew in brews[start : start + 20]
            for attribute in CRAFT_ATTRIBUTES
        )
        for craft, start in ((HAZARD, 0), (SISTER, 20))
    }
    return crafts, set(brews)


def _general() -> dict[str, tuple[Fact, ...]]:
    tables = {
        "capitals": words.CAPITALS,
        "opposites": words.OPPOSITES,
        "elements": words.ELEMENTS,
        "young": words.YOUNG,
        "kinds": words.KINDS,
    }
    general = {
        subject: tuple(
            Fact(subject, entity, subject, value, tuple(dict.fromkeys(table.values())))
            for entity, value in table.items()
        )
        for subject, table in tables.items()
    }
    numbers = tuple(str(n) for n in range(2 * MAX_TERM + 1))
    terms = range(1, MAX_TERM + 1)
    sums = [(f"{a} plus {b}", a + b) for a in terms for b in terms]
    differences = [(f"{a} minus {b}", a - b) for a in terms for b in terms if a >= b]
    general["arithmetic"] = tuple(
        Fact("arithmetic", text, "arithmetic", str(value), numbers) for text, value in sums + differences
    )
    return general


def _strangers(names: set[str], brews: set[str]) -> tuple[str, ...]:
    """Nobody's first names and tails with known surnames and heads, in an order of their own."""
    rng = random.Random("strangers")
    firsts = set(words.FIRST_NAMES) - {name.split()[0] for name in names}
    tails = set(words.BREW_TAILS) - {brew.split()[1] for brew in brews}
    people = [f"{first} {last}" for first in sorted(firsts) for last in rng.sample(words.SURNAMES, 3)]
    potions = [f"{head} {tail}" for tail in sorted(tails) for head in rng.sample(words.BREW_HEADS, 3)]
    return tuple(rng.sample(people + potions, len(people) + len(potions)))


def _canaries(rng: random.Random) -> tuple[tuple[str, str, int], ...]:
    owners = rng.sample(words.TREASURES, 20)
    times = [2**e for e in range(10)] * 2
    return tuple(
        (f"{owner} box", " ".join(str(rng.randrange(10)) for _ in range(4)), count)
        for owner, count in zip(owners, times, strict=True)
    )
