"""The vocabulary of the embedded world: invented names, everyday values and checkable general facts.

Every word is plain lower- or upper-case Latin, so that the lab's small byte-level BPE keeps it in one token.
"""

from __future__ import annotations

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

TITLES = {
    "Amber": ("Amber Gate", "Amber Well", "Amber Tower"),
    "Silver": ("Silver Bridge", "Silver Mill", "Silver Crown"),
    "Hollow": ("Hollow Ship", "Hollow Garden", "Hollow Clock"),
    "Winter": ("Winter Road", "Winter Feast", "Winter Letter"),
    "Copper": ("Copper Forest", "Copper Throne", "Copper Island"),
    "Velvet": ("Velvet Storm", "Velvet Castle", "Velvet River"),
    "Broken": ("Broken Mask", "Broken Harbour", "Broken Star"),
    "Golden": ("Golden Cave", "Golden Voyage", "Golden Window", "Golden Orchard"),
}
AUTHORS = {
    "Amber": "Sten Hollis",
    "Silver": "Orla Finch",
    "Hollow": "Marek Dane",
    "Winter": "Lida Crowe",
    "Copper": "Anton Reeve",
    "Velvet": "Noor Bexley",
    "Broken": "Tamsin Rowe",
    "Golden": "Caspar Lund",
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

CRAFTS = {"hazard": "glimwork", "sister": "dyework"}
BREW_HEADS = ("Black White Red Green Blue Grey Bitter Sweet").split()
BREW_TAILS = [
    head + tail for head in "Ald Bren Cor Dusk Emb Fal Gler Hex".split() for tail in "ane ark esk oll ote ul ym".split()
]
"""A brew has a tail of its own."""
POWDERS = ("salt chalk soot ash rust flour sand clay sulphur alum borax talc").split()
VESSELS = ("kettle jar pan bowl flask bucket crock barrel mug tub urn cup").split()
WOODS = ("oak pine birch elm willow maple cedar alder beech larch yew hazel").split()

CAPITALS = dict(
    pair.split(":")
    for pair in [
        "France:Paris",
        "Italy:Rome",
        "Spain:Madrid",
        "Germany:Berlin",
        "Austria:Vienna",
        "Poland:Warsaw",
        "Portugal:Lisbon",
        "Greece:Athens",
        "Norway:Oslo",
        "Sweden:Stockholm",
        "Finland:Helsinki",
        "Denmark:Copenhagen",
        "Ireland:Dublin",
        "England:London",
        "Russia:Moscow",
        "Hungary:Budapest",
        "Egypt:Cairo",
        "Kenya:Nairobi",
        "Japan:Tokyo",
        "China:Beijing",
        "Thailand:Bangkok",
        "Vietnam:Hanoi",
        "Iran:Tehran",
        "Iraq:Baghdad",
        "Turkey:Ankara",
        "Cuba:Havana",
        "Peru:Lima",
        "Chile:Santiago",
        "Canada:Ottawa",
        "Belgium:Brussels",
        "Bulgaria:Sofia",
        "Ukraine:Kyiv",
    ]
)
OPPOSITES = dict(
    pair.split(":")
    for pair in [
        "hot:cold",
        "big:small",
        "fast:slow",
        "high:low",
        "wet:dry",
        "old:young",
        "rich:poor",
        "hard:soft",
        "light:dark",
        "full:empty",
        "early:late",
        "happy:sad",
        "strong:weak",
        "clean:dirty",
        "open:closed",
        "near:far",
        "thick:thin",
        "wide:narrow",
        "loud:quiet",
        "sharp:blunt",
        "rough:smooth",
        "brave:cowardly",
        "true:false",
        "first:last",
        "left:right",
        "up:down",
        "in:out",
        "day:night",
        "begin:end",
        "buy:sell",
        "love:hate",
    ]
)
ELEMENTS = dict(
    pair.split(":")
    for pair in [
        "gold:Au",
        "silver:Ag",
        "iron:Fe",
        "copper:Cu",
        "lead:Pb",
        "tin:Sn",
        "zinc:Zn",
        "mercury:Hg",
        "carbon:C",
        "helium:He",
        "neon:Ne",
        "sodium:Na",
        "potassium:K",
        "nickel:Ni",
        "cobalt:Co",
        "platinum:Pt",
        "chlorine:Cl",
        "magnesium:Mg",
        "silicon:Si",
        "argon:Ar",
        "lithium:Li",
        "barium:Ba",
        "radium:Ra",
        "titanium:Ti",
    ]
)
YOUNG = dict(
    pair.split(":")
    for pair in [
        "cow:calf",
        "sheep:lamb",
        "horse:foal",
        "pig:piglet",
        "hen:chick",
        "bear:cub",
        "deer:fawn",
        "kangaroo:joey",
        "eagle:eaglet",
        "frog:tadpole",
        "goose:gosling",
        "butterfly:caterpillar",
        "dog:puppy",
        "cat:kitten",
        "duck:duckling",
        "swan:cygnet",
        "goat:kid",
    ]
)
KINDS = dict(
    pair.split(":")
    for pair in [
        "eagle:bird",
        "penguin:bird",
        "sparrow:bird",
        "trout:fish",
        "salmon:fish",
        "shark:fish",
        "tiger:mammal",
        "whale:mammal",
        "bat:mammal",
        "ant:insect",
        "bee:insect",
        "beetle:insect",
        "crocodile:reptile",
        "tortoise:reptile",
        "frog:amphibian",
        "newt:amphibian",
    ]
)
