"""Command line: ``python -m data.synthetic --root . --train 800``."""

import argparse
from dataclasses import fields
from pathlib import Path

from data.synthetic.generate import SyntheticSpec, generate
from utils.errors import run_command


def main() -> None:
    """Writes the embedded dataset that the command line specifies."""
    parser = argparse.ArgumentParser(
        prog="python -m data.synthetic",
        description="Draws the embedded dataset of pedestrians with Vietnamese and English captions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path(), help="folder that gets the dataset's folder")
    parser.add_argument("--workers", type=int, help="processes (as many as cores unless given)")
    for field in fields(SyntheticSpec):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default, help=field.metadata["help"])
    options = vars(parser.parse_args())
    folder = generate(options.pop("root"), workers=options.pop("workers"), spec=SyntheticSpec(**options))
    print(folder)


if __name__ == "__main__":
    run_command(main)
