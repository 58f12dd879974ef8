"""The annotators: for each picture and language, captions in alternating styles."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import Appearance
from data.synthetic.captions import english, vietnamese
from data.synthetic.captions.content import Said, choose_content, choose_scene
from data.synthetic.shot import Shot

STYLES: Final = {
    "vi": {"terse": vietnamese.write_terse, "flowing": vietnamese.write_flowing},
    "en": {"terse": english.write_terse, "flowing": english.write_flowing},
}


@dataclass(frozen=True)
class Caption:
    """A caption and the attributes that it mentions."""

    text: str
    said: Said


def annotate(
    person: Appearance, shot: Shot, language: str, count: int, rng: random.Random, styles: Sequence[str]
) -> list[Caption]:
    """Returns `count` captions in `language` (vi or en), each of what the shot shows of the person."""
    first = rng.randrange(2)
    captions: list[Caption] = []
    for annotator in range(count):
        said = choose_content(person, shot, rng)
        write = STYLES[language][styles[(first + annotator) % len(styles)]]
        captions.append(Caption(write(said, choose_scene(shot, rng), rng), said))
    return captions
