"""A sheet of drawn persons, each seen by their cameras, with a terse and a full caption in both languages.

python -m data.synthetic.contact_sheet docs/drawn.jpg
"""

import sys
import textwrap
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw

from data.annotations import Record, read_dataset
from data.synthetic import SyntheticSpec, generate
from utils.errors import run_command
from utils.report.plots.pictures import font

PERSONS, COLUMNS, IMAGES, GAP, TEXT, LINE = 10, 2, 4, 4, 500, 12


def contact_sheet(english: Iterable[Record], vietnamese: Iterable[Record]) -> Image.Image:
    """Returns a picture of the first persons of a split in two columns."""
    pairs = zip(english, vietnamese, strict=True)
    persons = list(islice(zip(*[pairs] * IMAGES, strict=True), PERSONS))
    with Image.open(persons[0][0][0].image_path) as first:
        width, height = first.size
    cell = IMAGES * (width + GAP) + TEXT, height + 2 * GAP
    sheet = Image.new("RGB", (COLUMNS * cell[0], -(-len(persons) // COLUMNS) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, records in enumerate(persons):
        left, top = number % COLUMNS * cell[0], number // COLUMNS * cell[1] + GAP
        for column, (record, _) in enumerate(records):
            with Image.open(record.image_path) as image:
                sheet.paste(image, (left + column * (width + GAP), top))
        for language, color in ((0, "black"), (1, "navy")):
            captions = sorted((caption for pair in records for caption in pair[language].captions), key=len)
            for caption in (captions[0], captions[-1]):
                for line in textwrap.wrap(caption, 80):
                    draw.text((left + cell[0] - TEXT + GAP, top), line, color, font(11))
                    top += LINE
                top += 1
            top += 2
    return sheet


def main() -> None:
    """Writes the sheet to the file that the command line names."""
    with TemporaryDirectory() as root:
        spec = SyntheticSpec(train=PERSONS, val=1, test=1, pretrain=1, images_per_identity=IMAGES)
        generate(Path(root), spec, workers=1)
        sheet = contact_sheet(*(read_dataset("drawn", root, language=language).train for language in ("en", "vi")))
    sheet.save(sys.argv[1], quality=40)


if __name__ == "__main__":
    run_command(main)
