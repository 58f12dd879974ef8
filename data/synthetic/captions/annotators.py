"""The annotators: for each picture and language, captions in alternating styles."""

import random
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import Appearance
from data.synthetic.captions import english, vietnamese
from data.synthetic.captions.content import Said, choose_content, choose_scene
from data.synthetic.shot import Shot, visible_fields

STYLES: Final = {
    "vi": (vietnamese.write_terse, vietnamese.write_flowing),
    "en": (english.write_terse, english.write_flowing),
}


@dataclass(frozen=True)
class Caption:
    """A caption and the attributes that it mentions."""

    text: str
    said: Said


def annotate(person: Appearance, shot: Shot, language: str, count: int, rng: random.Random) -> list[Caption]:
    """Returns `count` captions in `language` (vi or en), each true of what the shot shows of the person."""
    visible = visible_fields(person, shot)
    first = rng.randrange(2)
    captions: list[Caption] = []
    for annotator in range(count):
        said = choose_content(person, visible, rng)
        write = STYLES[language][(first + annotator) % 2]
        captions.append(Caption(write(said, choose_scene(shot, rng), rng), said))
    return captions
