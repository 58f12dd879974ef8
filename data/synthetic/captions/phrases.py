"""What the two languages share: words in tables, phrases filled from templates."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from data.synthetic.captions.content import Said

Words = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Lexicon:
    """The words of a language. Several entries under one key are synonyms.

    Attributes:
        colours, hair_colours: names of colours.
        colour_forms: how a colour is attached, around ``{}``; one form serves a whole caption.
        things: phrase for each kind of hair, garment, bag, ..., with ``{c}`` where its colour goes.
        patterns: phrase for an upper garment ``{n}`` of colour ``{c}`` with a pattern of colour ``{p}``.
        layers: phrase for an open jacket ``{x}`` over something of colour ``{c}``.
        places: where something is carried, with ``{s}`` for the side.
        sides: left and right.
    """

    colours: Words
    hair_colours: Words
    colour_forms: tuple[str, ...]
    things: Words
    patterns: Words
    layers: tuple[str, ...]
    places: dict[str, str]
    sides: dict[str, str]


class Phrases:
    """Phrases for the parts of a person that one caption says; a part that is not said is an empty list."""

    def __init__(self, said: Said, lexicon: Lexicon, rng: random.Random) -> None:
        self.said = said
        self._lexicon = lexicon
        self._rng = rng
        self._colour_form = rng.choice(lexicon.colour_forms)

    def hair(self) -> list[str]:
        """Returns the hair."""
        if "hair" not in self.said:
            return []
        colour = self.said.get("hair_colour")
        word = self._colour_form.format(self._rng.choice(self._lexicon.hair_colours[colour])) if colour else ""
        return [self._fill(self._lexicon.things[self.said["hair"]], c=word)]

    def upper(self) -> list[str]:
        """Returns the upper garment with its pattern or what it is worn over."""
        said, lexicon = self.said, self._lexicon
        garment = self._rng.choice(lexicon.things[said["upper"]])
        forms = lexicon.patterns[said.get("pattern", "plain")]
        phrase = self._fill(forms, n=garment, c=self._colour("upper_colour"), p=self._colour("pattern_colour"))
        if "inner_colour" in said:
            phrase = self._fill(lexicon.layers, x=phrase, c=self._colour("inner_colour"))
        return [phrase]

    def thing(self, part: str) -> list[str]:
        """Returns the thing in field `part` with its colour: ``lower``, ``headwear``, ``shoes``, ``bag``, ..."""
        kind = self.said.get(part)
        return [self._fill(self._lexicon.things[kind], c=self._colour(f"{part}_colour"))] if kind else []

    def cloth(self, part: str) -> list[str]:
        """Returns the ``mask`` or ``scarf``, of which only the colour is a field."""
        colour = self._colour(f"{part}_colour")
        return [self._fill(self._lexicon.things[part], c=colour)] if colour else []

    def place(self, part: str) -> str:
        """Returns at which side the ``bag`` or ``held`` thing is, or an empty string."""
        side = self.said.get(f"{part}_side")
        return self._lexicon.places[self.said[part]].format(s=self._lexicon.sides[side]) if side else ""

    def _colour(self, field: str) -> str:
        if field not in self.said:
            return ""
        word = self._rng.choice(self._lexicon.colours[self.said[field]])
        return word if self.said[field] in ("dark", "light") else self._colour_form.format(word)

    def _fill(self, templates: Sequence[str], **words: str) -> str:
        return " ".join(self._rng.choice(templates).format(**words).split())


def sentence(text: str) -> str:
    """Returns `text` with single blanks, a capital first letter and a full stop."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + "."


def listed(items: Sequence[str], conjunction: str) -> str:
    """Returns ``a, b {conjunction} c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {conjunction} {items[-1]}"
