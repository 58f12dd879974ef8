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
        colors, hair_colors: names of colours.
        color_forms: how a colour is attached, around ``{}``; one form serves a whole caption.
        things: phrase for each kind of hair, garment, bag, ..., with ``{c}`` where its colour goes.
        patterns: phrase for an upper garment ``{n}`` of color ``{c}`` with a pattern of color ``{p}``.
        layers: phrase for an open jacket ``{x}`` over something of color ``{c}``.
        places: where something is carried, with ``{s}`` for the side.
        sides: left and right.
    """

    colors: Words
    hair_colors: Words
    color_forms: tuple[str, ...]
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
        self._color_form = rng.choice(lexicon.color_forms)

    def hair(self) -> list[str]:
        """Returns the hair."""
        if "hair" not in self.said:
            return []
        color = self.said.get("hair_color")
        word = self._color_form.format(self._rng.choice(self._lexicon.hair_colors[color])) if color else ""
        return [self._fill(self._lexicon.things[self.said["hair"]], c=word)]

    def upper(self) -> list[str]:
        """Returns the upper garment with its pattern or what it is worn over."""
        said, lexicon = self.said, self._lexicon
        garment = self._rng.choice(lexicon.things[said["upper"]])
        forms = lexicon.patterns[said.get("pattern", "plain")]
        phrase = self._fill(forms, n=garment, c=self._color("upper_color"), p=self._color("pattern_color"))
        if "inner_color" in said:
            phrase = self._fill(lexicon.layers, x=phrase, c=self._color("inner_color"))
        return [phrase]

    def thing(self, part: str) -> list[str]:
        """Returns the thing in field `part` with its colour: ``lower``, ``headwear``, ``shoes``, ``bag``, ..."""
        kind = self.said.get(part)
        return [self._fill(self._lexicon.things[kind], c=self._color(f"{part}_color"))] if kind else []

    def cloth(self, part: str) -> list[str]:
        """Returns the ``mask`` or ``scarf``, of which only the colour is a field."""
        color = self._color(f"{part}_color")
        return [self._fill(self._lexicon.things[part], c=color)] if color else []

    def place(self, part: str) -> str:
        """Returns at which side the ``bag`` or ``held`` thing is, or an empty string."""
        side = self.said.get(f"{part}_side")
        return self._lexicon.places[self.said[part]].format(s=self._lexicon.sides[side]) if side else ""

    def _color(self, field: str) -> str:
        if field not in self.said:
            return ""
        word = self._rng.choice(self._lexicon.colors[self.said[field]])
        return word if self.said[field] in ("dark", "light") else self._color_form.format(word)

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
