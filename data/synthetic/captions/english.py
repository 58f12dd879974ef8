"""English captions: a terse annotator who lists, and a flowing one who tells.

In the templates ``@`` stands for the indefinite article; the terse annotator drops it.
"""

import random
import re
from typing import Final

from data.synthetic.captions.content import Said, Scene
from data.synthetic.captions.phrases import Lexicon, Phrases, Words, listed, sentence

LEXICON: Final = Lexicon(
    colors={
        "black": ("black",),
        "white": ("white",),
        "grey": ("grey", "gray"),
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "pink": ("pink",),
        "brown": ("brown",),
        "dark": ("dark", "dark-colored"),
        "light": ("light", "light-colored"),
    },
    hair_colors={
        "black": ("black",),
        "brown": ("brown",),
        "blond": ("blond", "fair"),
        "grey": ("grey", "gray", "silver"),
        "red": ("red", "ginger"),
    },
    color_forms=("{}",),
    things={
        "short": ("short {c} hair", "{c} hair cut short"),
        "long": ("long {c} hair", "{c} hair worn long"),
        "bob": ("shoulder-length {c} hair", "{c} hair in a bob"),
        "ponytail": ("{c} hair in a ponytail", "{c} hair tied in a ponytail", "@{c} ponytail"),
        "bun": ("{c} hair in a bun", "{c} hair tied up in a bun"),
        "shaved": ("@shaved head", "@bald head"),
        "t-shirt": ("t-shirt", "tee"),
        "shirt": ("shirt", "button-up shirt"),
        "sweater": ("sweater", "jumper", "pullover"),
        "hoodie": ("hoodie", "hooded sweatshirt"),
        "jacket": ("jacket",),
        "coat": ("coat", "long coat", "overcoat"),
        "tank top": ("tank top", "sleeveless top"),
        "dress": ("dress", "one-piece dress"),
        "trousers": ("{c} trousers", "{c} pants", "{c} long trousers"),
        "jeans": ("{c} jeans", "{c} denim jeans"),
        "shorts": ("{c} shorts", "@pair of {c} shorts"),
        "skirt": ("@{c} skirt", "@short {c} skirt"),
        "long skirt": ("@long {c} skirt", "@{c} ankle-length skirt"),
        "trainers": ("{c} sneakers", "{c} trainers", "{c} sports shoes"),
        "boots": ("{c} boots", "high {c} boots", "@pair of {c} boots"),
        "sandals": ("{c} sandals", "@pair of {c} sandals"),
        "cap": ("@{c} cap", "@{c} baseball cap"),
        "beanie": ("@{c} beanie", "@{c} knitted hat", "@{c} woolly hat"),
        "wide hat": ("@{c} wide-brimmed hat", "@wide {c} sun hat"),
        "helmet": ("@{c} helmet", "@{c} motorbike helmet"),
        "conical hat": ("@conical hat", "@conical straw hat"),
        "backpack": ("@{c} backpack", "@{c} rucksack"),
        "shoulder bag": ("@{c} shoulder bag", "@{c} crossbody bag"),
        "handbag": ("@{c} handbag", "@small {c} handbag"),
        "suitcase": ("@{c} suitcase", "@{c} rolling suitcase"),
        "sunglasses": ("sunglasses", "dark glasses"),
        "mask": ("@{c} face mask", "@{c} mask"),
        "scarf": ("@{c} scarf", "@{c} neck scarf"),
        "phone": ("@phone", "@mobile phone"),
        "umbrella": ("@{c} umbrella", "@open {c} umbrella"),
    },
    patterns={
        "plain": ("@{c} {n}",),
        "striped": (
            "@{c} {n} with {p} stripes",
            "@{c} and {p} striped {n}",
            "@{c} {n} with horizontal {p} stripes",
        ),
        "pinstriped": ("@{c} {n} with vertical {p} stripes", "@{c} and {p} vertically striped {n}"),
        "checked": ("@{c} and {p} checked {n}", "@{c} and {p} plaid {n}", "@{c} {n} with @{p} check"),
        "dotted": ("@{c} {n} with {p} dots", "@{c} {n} with {p} polka dots", "@{c} {n} dotted in {p}"),
        "print": ("@{c} {n} with @{p} print on the chest", "@{c} {n} with @round {p} logo on the front"),
    },
    layers=("{x} over @{c} top", "{x} with @{c} shirt underneath", "{x} open over @{c} shirt"),
    places={
        "shoulder bag": "at {{his}} {s} hip",
        "handbag": "in {{his}} {s} hand",
        "suitcase": "at {{his}} {s} side",
        "phone": "at {{his}} {s} ear",
        "umbrella": "in {{his}} {s} hand",
    },
    sides={"left": "left", "right": "right"},
)
CARRYING: Final[Words] = {
    "backpack": ("carries {x} on {{his}} back", "has {x} on {{his}} back", "carries {x}"),
    "shoulder bag": ("wears {x}", "carries {x}"),
    "handbag": ("holds {x}", "carries {x}"),
    "suitcase": ("pulls {x}", "pulls along {x}"),
    "phone": ("holds {x}", "talks into {x}"),
    "umbrella": ("holds {x}", "carries {x}"),
}
SUBJECTS: Final[Words] = {
    "man": ("man", "man", "male pedestrian"),
    "woman": ("woman", "woman", "female pedestrian"),
    "": ("person", "pedestrian"),
}
PRONOUNS: Final = {"man": ("he", "his"), "woman": ("she", "her"), "": ("the person", "the")}
VIEWS: Final[Words] = {
    "front": ("seen from the front", "facing the camera"),
    "back": ("seen from behind", "with the back to the camera"),
    "left": ("seen from the side", "in profile"),
    "right": ("seen from the side", "in profile"),
}


def write_terse(said: Said, scene: Scene, rng: random.Random) -> str:
    """Returns fragments: ``Man in red t-shirt, blue jeans, white sneakers, black backpack at left hip.``"""
    phrases = Phrases(said, LEXICON, rng)
    who = rng.choice(SUBJECTS[said.get("gender", "")])
    if scene.view:
        who += f" {rng.choice(VIEWS[scene.view])}"
    clothes = phrases.upper() + phrases.thing("lower") + phrases.thing("shoes")
    head = phrases.hair() + _accessories(phrases)
    carried = [f"{thing} {phrases.place(part)}".strip() for part in ("bag", "held") for thing in phrases.thing(part)]
    if rng.random() < 0.65:
        items = [f"{who} in {clothes[0]}", *clothes[1:], *head, *carried]
    else:
        items = [who, *head, *clothes, *carried]
    return sentence(_with_articles(", ".join(items).format(his=""), drop=True))


def write_flowing(said: Said, scene: Scene, rng: random.Random) -> str:
    """Returns one to four sentences."""
    phrases = Phrases(said, LEXICON, rng)
    gender = said.get("gender", "")
    he, his = PRONOUNS[gender]
    hair, worn = phrases.hair(), [*phrases.thing("shoes"), *_accessories(phrases)]
    if rng.random() < 0.3:
        worn.reverse()
    who = f"@{rng.choice(SUBJECTS[gender])}"
    if hair and rng.random() < 0.4:
        who += f" with {hair.pop()}"
    clothes = listed(phrases.upper() + phrases.thing("lower"), "and")
    sentences = [_opening(who, clothes, scene, rng)]
    sentences += [f"{he} has {look}" for look in hair]
    if worn:
        sentences.append(f"{he} {rng.choice(('also wears', 'wears', 'has on'))} {listed(worn, 'and')}")
    carried = [
        f"{rng.choice(CARRYING[said[part]]).format(x=thing)} {phrases.place(part)}"
        for part in ("bag", "held")
        for thing in phrases.thing(part)
    ]
    if carried:
        sentences.append(f"{he} {' and '.join(carried)}")
    return " ".join(sentence(_with_articles(text.format(his=his))) for text in sentences)


def _accessories(phrases: Phrases) -> list[str]:
    return phrases.thing("headwear") + phrases.thing("eyewear") + phrases.cloth("mask") + phrases.cloth("scarf")


def _opening(who: str, clothes: str, scene: Scene, rng: random.Random) -> str:
    text = f"{who} {rng.choice(('wears', 'is wearing', 'is dressed in'))} {clothes}"
    if scene.walking is not None:
        moving = (
            rng.choice(("walking", "walking along")) if scene.walking else rng.choice(("standing", "standing still"))
        )
        dressed = rng.choice(("wearing", "in", "dressed in"))
        text = rng.choice((f"{who} is {moving}, {dressed} {clothes}", f"{who} {dressed} {clothes} is {moving}"))
    return f"{rng.choice(VIEWS[scene.view])}, {text}" if scene.view else text


def _with_articles(text: str, *, drop: bool = False) -> str:
    text = re.sub(r"@ *", "", text) if drop else re.sub(r"@ *(?=[aeiou])", "an ", text)
    return re.sub(r"@ *", "a ", text)
