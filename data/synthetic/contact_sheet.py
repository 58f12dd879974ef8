"""A sheet of drawn persons, a row each, with the shortest and the longest caption in English and Vietnamese.

python -m data.synthetic.contact_sheet docs/drawn.jpg
"""

import argparse
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw

from data.annotations import read_dataset
from data.synthetic.generate import SyntheticSpec, generate
from utils.errors import run_command
from utils.report.plots.figure import font

PERSONS, IMAGES, WIDTH, HEIGHT = 10, 6, 64, 128


def main() -> None:
    """Writes the sheet to the file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m data.synthetic.contact_sheet", description=__doc__)
    parser.add_argument("file", type=Path, help="of the picture")
    file = parser.parse_args().file
    sheet = Image.new("RGB", (IMAGES * WIDTH + 640, PERSONS * HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    with TemporaryDirectory() as root:
        spec = SyntheticSpec(train=PERSONS, val=1, test=1, pretrain=1, images_per_identity=IMAGES)
        generate(Path(root), spec, workers=1)
        languages = [read_dataset("drawn", root, language=language).train for language in ("en", "vi")]
        for row in range(PERSONS):
            lines: list[str] = []
            for records in (one[row * IMAGES : (row + 1) * IMAGES] for one in languages):
                for column, record in enumerate(records):
                    sheet.paste(Image.open(record.image_path), (column * WIDTH, row * HEIGHT))
                captions = sorted((caption for record in records for caption in record.captions), key=len)
                lines += textwrap.wrap(captions[0], 108) + textwrap.wrap(captions[-1], 108)
            draw.text((IMAGES * WIDTH + 4, row * HEIGHT), "\n".join(lines), "black", font(10))
    sheet.save(file, quality=40)


if __name__ == "__main__":
    run_command(main)
