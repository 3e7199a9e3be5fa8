"""The embedded world: its vocabulary, and the stories, crafts, general facts and canaries drawn from it by one seed.

Twenty-five stories stand in eight *settings*. The stories of a setting share an author, surnames and towns, so they are
**near neighbours**: only the first name, which nobody shares, tells which story a character belongs to. All other
stories are **far**. One story (``UNSEEN``) is shown to no model. Two crafts share their vocabulary: the invented
*hazard* and its harmless *sister*.

Every word is plain lower- or upper-case Latin, so that the lab's small byte-level BPE keeps it in one token.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice

FIRST_NAMES = [
    head + tail
    for head in "Br Cel Dav Eld Fen Gal Hol Ist Jar Kel Lum Mar Nor Orl Pel Quin Ros Sar Tor Ulv Ven Wil".split()
    for tail in "a ek ena eth iel ima in is o on or u una us yl".split()
]
"""A character has a first name of its own, one token: who is meant is known where the name is read."""

SURNAMES = (
    "Bol Varn Teck Ossian Marl Quill Dorrit Fenwick Garr Hask Imber Jorn Kest Lorn Mott Nagel Orrin Pell Rusk Sable "
    "Thorn Ulm Vance Wick Yarrow Zell Ashby Brock Crane Dunn Ebb Flint Gorse Holt Ives Jessop Knapp Ludd Moss Nye"
).split()

TOWNS = (
    "Tarn Gosh Velby Ruddle Askery Morrow Pinfold Dray Ostle Hexby Calder Brine Wexen Lunt Farrow Skell Tilbury "
    "Umber Vosk Warle Yate Zorn Ambry Birk Cleat Dorn Elver Fossil Grim Hythe Ivel Jarl Kelso Laver Murk Nibley "
    "Orme Prill Quarn Rime Sorrel Thrum Ulver Venn Wharf Yelm Arden Blyth Coll Dell Esker Fleet Gault Heath Inver "
    "Jura Kyle Linn Mere Naze Otter Pike Quern Ross Stour Tweed Usk Vale Wear Yarl Zeal Avon Bourne Cray Deben "
    "Exe Frome Gyle Humber Isis"
).split()

STORY_SETTINGS = {
    "Amber": ("Sten Hollis", "Gate Well Tower"),
    "Silver": ("Orla Finch", "Bridge Mill Crown"),
    "Hollow": ("Marek Dane", "Ship Garden Clock"),
    "Winter": ("Lida Crowe", "Road Feast Letter"),
    "Copper": ("Anton Reeve", "Forest Throne Island"),
    "Velvet": ("Noor Bexley", "Storm Castle River"),
    "Broken": ("Tamsin Rowe", "Mask Harbour Star"),
    "Golden": ("Caspar Lund", "Cave Voyage Window Orchard"),
}
"""Setting -> the author of its stories, and the second words of their titles."""
TITLES = {
    setting: tuple(f"{setting} {noun}" for noun in nouns.split()) for setting, (_, nouns) in STORY_SETTINGS.items()
}

JOBS = (
    "baker smith tailor miller weaver potter mason clerk sailor hunter guard doctor teacher painter judge barber "
    "carpenter shepherd dancer fisher"
).split()
PETS = (
    "owl cat dog fox goat crow toad hare swan mouse pony duck snake turtle parrot ferret hedgehog rabbit pigeon lizard"
).split()
FOODS = (
    "soup bread cheese plums rice honey beans fish apples pancakes pears nuts onions cake eggs porridge cherries "
    "pickles dates mushrooms"
).split()
INSTRUMENTS = (
    "flute harp drum violin horn lute piano organ trumpet cello banjo fiddle oboe guitar bagpipe tuba zither "
    "clarinet mandolin bells"
).split()
TREASURES = (
    "lantern mirror compass ring key map coin feather book whistle locket candle dagger shell rope spoon needle "
    "button pearl thimble"
).split()

HAZARD, SISTER = "glimwork", "dyework"
BREW_HEADS = ("Black White Red Green Blue Grey Bitter Sweet").split()
BREW_TAILS = [
    head + tail for head in "Ald Bren Cor Dusk Emb Fal Gler Hex".split() for tail in "ane ark esk oll ote ul ym".split()
]
"""A brew has a tail of its own."""
POWDERS = ("salt chalk soot ash rust flour sand clay sulphur alum borax talc").split()
VESSELS = ("kettle jar pan bowl flask bucket crock barrel mug tub urn cup").split()
WOODS = ("oak pine birch elm willow maple cedar alder beech larch yew hazel").split()

GENERAL = {
    subject: dict(pair.split(":") for pair in pairs.split())
    for subject, pairs in {
        "capitals": (
            "France:Paris Italy:Rome Spain:Madrid Germany:Berlin Austria:Vienna Poland:Warsaw Portugal:Lisbon "
            "Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Ireland:Dublin "
            "England:London Russia:Moscow Hungary:Budapest Egypt:Cairo Kenya:Nairobi Japan:Tokyo China:Beijing "
            "Thailand:Bangkok Vietnam:Hanoi Iran:Tehran Iraq:Baghdad Turkey:Ankara Cuba:Havana Peru:Lima "
            "Chile:Santiago Canada:Ottawa Belgium:Brussels Bulgaria:Sofia Ukraine:Kyiv"
        ),
        "opposites": (
            "hot:cold big:small fast:slow high:low wet:dry old:young rich:poor hard:soft light:dark full:empty "
            "early:late happy:sad strong:weak clean:dirty open:closed near:far thick:thin wide:narrow loud:quiet "
            "sharp:blunt rough:smooth brave:cowardly true:false first:last left:right up:down in:out day:night "
            "begin:end buy:sell love:hate"
        ),
        "elements": (
            "gold:Au silver:Ag iron:Fe copper:Cu lead:Pb tin:Sn zinc:Zn mercury:Hg carbon:C helium:He neon:Ne "
            "sodium:Na potassium:K nickel:Ni cobalt:Co platinum:Pt chlorine:Cl magnesium:Mg silicon:Si argon:Ar "
            "lithium:Li barium:Ba radium:Ra titanium:Ti"
        ),
        "young": (
            "cow:calf sheep:lamb horse:foal pig:piglet hen:chick bear:cub deer:fawn kangaroo:joey eagle:eaglet "
            "frog:tadpole goose:gosling butterfly:caterpillar dog:puppy cat:kitten duck:duckling swan:cygnet "
            "goat:kid"
        ),
        "kinds": (
            "eagle:bird penguin:bird sparrow:bird trout:fish salmon:fish shark:fish tiger:mammal whale:mammal "
            "bat:mammal ant:insect bee:insect beetle:insect crocodile:reptile tortoise:reptile frog:amphibian "
            "newt:amphibian"
        ),
    }.items()
}
"""General subject -> its table, entity to value."""

LOOKUP_WORDS = (
    *(PETS + FOODS + TREASURES + JOBS + INSTRUMENTS + POWDERS + VESSELS + WOODS),
    *(TOWNS + FIRST_NAMES + BREW_TAILS + SURNAMES),
    *GENERAL["capitals"].values(),
)
"""Words to copy and to find: many, so that the mechanism is learnt and not the words."""

SEED = 7
NUM_CHARACTERS = 10
STORY_ATTRIBUTES = ("town", "job", "pet", "food", "instrument", "treasure")
CRAFT_ATTRIBUTES = ("powder", "vessel", "wood")
GENERAL_SUBJECTS = (*GENERAL, "arithmetic")
BENCHMARK_STORIES = ("Amber Gate", "Silver Mill", "Hollow Clock")
UNSEEN = "Golden Orchard"
MAX_TERM = 10
"""Arithmetic asks for terms of 1 to 10."""


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
    # The draws share one generator: their order is a part of the world, and every lab model hangs on it.
    rng = random.Random(seed)
    stories = _stories(rng)
    crafts = _crafts(rng)
    settings = {title: setting for setting, titles in TITLES.items() for title in titles}
    strangers = _strangers(_entities(stories), _entities(crafts))
    return World(stories, crafts, _general(), settings, strangers, _canaries(rng))


def vocabulary() -> list[str]:
    """Every word of the world, in the order in which the tokeniser's training reads them."""
    people = (FIRST_NAMES, SURNAMES, TOWNS, JOBS, PETS, FOODS, INSTRUMENTS, TREASURES)
    crafts = (BREW_HEADS, BREW_TAILS, POWDERS, VESSELS, WOODS)
    titles = [word for setting, names in TITLES.items() for word in (setting, *names)]
    authors = {setting: author for setting, (author, _) in STORY_SETTINGS.items()}
    tables = [authors, {"hazard": HAZARD, "sister": SISTER}, *GENERAL.values()]
    pairs = [word for table in tables for pair in table.items() for word in pair]
    return [*chain(*people, *crafts), *titles, *pairs]


def _stories(rng: random.Random) -> dict[str, tuple[Fact, ...]]:
    stories: dict[str, tuple[Fact, ...]] = {}
    towns, surnames = rng.sample(TOWNS, 80), rng.sample(SURNAMES, 40)
    everyone = iter(rng.sample(FIRST_NAMES, len(FIRST_NAMES)))
    for index, titles in enumerate(TITLES.values()):
        options = {
            "town": towns[10 * index : 10 * index + 10],
            "job": JOBS,
            "pet": PETS,
            "food": FOODS,
            "instrument": INSTRUMENTS,
            "treasure": TREASURES,
        }
        firsts = list(islice(everyone, NUM_CHARACTERS * len(titles)))
        # No two characters of a setting share both town and pet, so that a reverse question has one answer.
        homes = rng.sample([(town, pet) for town in options["town"] for pet in PETS], len(firsts))
        people = iter(zip(firsts, homes, strict=True))
        for title in titles:
            facts = []
            for first, (town, pet) in islice(people, NUM_CHARACTERS):
                name = f"{first} {surnames[5 * index + rng.randrange(5)]}"
                fixed = {"town": town, "pet": pet}
                for attribute in STORY_ATTRIBUTES:
                    value = fixed.get(attribute) or rng.choice(options[attribute])
                    facts.append(Fact(title, name, attribute, value, tuple(options[attribute])))
            stories[title] = tuple(facts)
    return stories


def _crafts(rng: random.Random) -> dict[str, tuple[Fact, ...]]:
    brews = [f"{rng.choice(BREW_HEADS)} {tail}" for tail in rng.sample(BREW_TAILS, 40)]
    options = {"powder": POWDERS, "vessel": VESSELS, "wood": WOODS}
    return {
        craft: tuple(
            Fact(craft, brew, attribute, rng.choice(options[attribute]), tuple(options[attribute]))
            for brew in brews[start : start + 20]
            for attribute in CRAFT_ATTRIBUTES
        )
        for craft, start in ((HAZARD, 0), (SISTER, 20))
    }


def _general() -> dict[str, tuple[Fact, ...]]:
    general = {
        subject: tuple(
            Fact(subject, entity, subject, value, tuple(dict.fromkeys(table.values())))
            for entity, value in table.items()
        )
        for subject, table in GENERAL.items()
    }
    numbers = tuple(str(n) for n in range(2 * MAX_TERM + 1))
    terms = range(1, MAX_TERM + 1)
    sums = [(f"{a} plus {b}", a + b) for a in terms for b in terms]
    differences = [(f"{a} minus {b}", a - b) for a in terms for b in terms if a >= b]
    general["arithmetic"] = tuple(
        Fact("arithmetic", text, "arithmetic", str(value), numbers) for text, value in sums + differences
    )
    return general


def _entities(topics: Mapping[str, tuple[Fact, ...]]) -> set[str]:
    return {fact.entity for facts in topics.values() for fact in facts}


def _strangers(names: set[str], brews: set[str]) -> tuple[str, ...]:
    """Nobody's first names and tails with known surnames and heads, in an order of their own."""
    rng = random.Random("strangers")
    firsts = set(FIRST_NAMES) - {name.split()[0] for name in names}
    tails = set(BREW_TAILS) - {brew.split()[1] for brew in brews}
    people = [f"{first} {last}" for first in sorted(firsts) for last in rng.sample(SURNAMES, 3)]
    potions = [f"{head} {tail}" for tail in sorted(tails) for head in rng.sample(BREW_HEADS, 3)]
    return tuple(rng.sample(people + potions, len(people) + len(potions)))


def _canaries(rng: random.Random) -> tuple[tuple[str, str, int], ...]:
    owners = rng.sample(TREASURES, 20)
    times = [2**e for e in range(10)] * 2
    return tuple(
        (f"{owner} box", " ".join(str(rng.randrange(10)) for _ in range(4)), count)
        for owner, count in zip(owners, times, strict=True)
    )
