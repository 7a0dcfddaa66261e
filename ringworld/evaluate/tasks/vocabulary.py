"""Words that tasks draw: keys such as `quiet-harbor`, and lists of words to be counted.

RULER draws from the lists of the package wonderwords; these are plain English words of our own, so that nothing has to
be installed. Every adjective joins every noun, which makes enough keys for a prompt of a million tokens.
"""

from __future__ import annotations

import uuid

import numpy as np

_ADJECTIVES = (
    "able acid agile alert alien amber ample ancient angry arctic arid ashen autumn awake azure bare basic bitter "
    "blank bleak blind blond blue blunt bold brave brief bright brisk broad bronze brown busy calm candid careful "
    "casual cheap chilly civil clean clear clever close cloudy coarse cold common cool copper coral cosmic crisp "
    "cruel curious curly daily damp dapper daring dark dear deep dense dim direct distant dizzy double dry dull dusty "
    "eager early earthy eastern easy elder empty equal even exact exotic faint fair famous fancy fast fatal feeble "
    "fertile fierce final fine firm flat fond formal fragile frank free fresh friendly frosty frozen full funny "
    "gentle giant gilded glad gloomy golden good grand grateful gray great green gritty guilty handy happy hard harsh "
    "hasty heavy hidden high hollow honest hot huge humble hungry icy ideal idle inner ivory jagged jolly joyful keen "
    "kind large late lazy lean legal level light linen lively local lonely long loose lost loud lovely loyal lucky "
    "lunar mad magic major marble mature mellow merry mighty mild minor misty modern modest moist muddy mute narrow "
    "native neat nervous new nimble noble noisy normal northern novel oaken odd old olive open orange outer oval pale "
    "patient plain pleasant polite poor precise pretty prime private proud pure purple quaint quick quiet radiant "
    "rapid rare raw ready regal remote rich rigid ripe robust rocky rough round royal rural rusty sacred sad safe "
    "salty sandy scarlet secret sharp shiny short shy silent silky silver simple sleepy slender slow small smart "
    "smooth sober soft solar solid sour southern spare spicy steady steep stern stiff stormy strange strict strong "
    "subtle sudden sunny sweet swift tall tame tan tender thick thin tidy timid tiny tired tough true urban vague "
    "vast velvet violet vital vivid warm wary weak wealthy weary western wet white wide wild windy wise witty wooden "
    "yellow young zealous "
)
_NOUNS = (
    "acorn actor airport album alley almond anchor animal ankle anvil apple apron arch arena armor arrow artist atlas "
    "attic author avenue badge bakery balcony ball bamboo banjo bank banner barn barrel basin basket beach beacon "
    "bean bear beaver bell bench berry bicycle bird biscuit blanket blossom board boat bolt book bottle boulder bowl "
    "box branch bread breeze brick bridge broom brother bucket bugle building bundle bus butter button cabin cable "
    "cactus cake camel camera camp canal candle canoe canvas canyon captain card cargo carpet carrot castle cave "
    "cedar cellar chain chair chalk chapel chart cheese cherry chest chimney church circle city clay cliff clinic "
    "clock cloud clover coach coast coat coffee coin collar comet compass copy corner cottage cotton couch county "
    "cousin cradle crane crater cricket crown crystal cup curtain cushion dairy dance deck deer desert desk diamond "
    "dinner doctor dolphin donkey door dragon drawer dream dress drum duck eagle editor elbow elephant engine "
    "envelope evening falcon farm farmer feast feather fence ferry fiddle field finger fire fish flag flame flower "
    "flute forest fork fort fountain fox frame friend fruit garage garden gate glacier glass glove goat gold goose "
    "grain granite grape grass gravel guest guide guitar hammer hand harbor harvest hat hawk hazel heart hedge helmet "
    "herb heron hill hobby holiday honey hook horn horse hotel hour house igloo insect iron island jacket jar jewel "
    "journal judge jungle kettle key king kitchen kite knee knife knight ladder lady lake lamp land lantern lawn leaf "
    "leather lemon letter library lily lion lizard lock lodge machine magnet maple market mask meadow melon metal "
    "minute mirror moment monkey month moon morning mosaic motor mountain mouse museum music nail napkin needle nest "
    "net nickel night north notebook nurse oak oasis ocean office onion orbit orchard organ otter oven owl oyster "
    "packet paddle page painter palace panther paper parade parcel park parrot path peach pearl pebble pen pencil "
    "pepper petal piano picture pigeon pillow pilot pine planet plate plaza plum pocket poem pond pony porch potato "
    "prince pulley pumpkin puppet puzzle quarry queen rabbit radio raft rail rain raven recipe ribbon ring river road "
    "robin rocket roof rope rose ruby rug saddle sail salad salmon salt sand scale scarf school shadow sheep shell "
    "ship shirt shoe shore shovel sister skate sleeve slope snail snow soap sock soldier song soup spider spoon "
    "spring square squirrel stable stage star station statue stone stool storm stove stream street sugar summer swan "
    "table tailor temple tent thread throne thumb ticket tiger timber toast tomato tower town trail train tree "
    "trumpet tunnel turtle umbrella uncle valley vase village vine violin voyage wagon walnut water wave weaver wheat "
    "wheel whistle willow window winter wolf wool yard zebra "
)
ADJECTIVES, NOUNS = tuple(_ADJECTIVES.split()), tuple(_NOUNS.split())


def pair_key(number: int) -> str:
    """The pair of that number in 0..`PAIRS`."""
    return f"{ADJECTIVES[number // len(NOUNS)]}-{NOUNS[number % len(NOUNS)]}"


PAIRS = len(ADJECTIVES) * len(NOUNS)


def draw(kind: str, rng: np.random.Generator) -> str:
    """A number of seven digits, a pair of words, or a UUID: what RULER's needles have as keys and values."""
    if kind == "numbers":
        return str(rng.integers(1_000_000, 10_000_000))
    if kind == "words":
        return pair_key(int(rng.integers(PAIRS)))
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    raise ValueError(f"unknown kind {kind!r}: numbers, words or uuids")


def kinds_of(kind: str) -> int:
    """How many different ones `draw` can give."""
    return {"numbers": 9_000_000, "words": PAIRS, "uuids": 1 << 62}[kind]


def distinct(kind: str, count: int, rng: np.random.Generator) -> list[str]:
    """So many different ones. ValueError where there are fewer."""
    if count > kinds_of(kind):
        raise ValueError(f"{count} different {kind}: there are {kinds_of(kind)}")
    if kind == "words":
        return [pair_key(int(number)) for number in rng.permutation(PAIRS)[:count]]
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(draw(kind, rng))
    return list(found)


def list_words(count: int, rng: np.random.Generator) -> list[str]:
    """So many different words: single ones while there are enough, else all of them pairs, so that the looks of a word
    say nothing about how often it stands in a list. ValueError where there are fewer."""
    single = sorted({*ADJECTIVES, *NOUNS})
    if count <= len(single):
        return [single[number] for number in rng.permutation(len(single))[:count].tolist()]
    return distinct("words", count, rng)
