"""Search in your own images.

    uv run -m search index PHOTOS --model outputs/.../RUN [--index search_index]
    uv run -m search query "một người đàn ông mặc áo đỏ" [-k 10] [--folder PHOTOS/camera1]
    uv run -m search query --image FILE
    uv run -m search serve [--port 8000]

docs/search.md explains them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from search.files import real_folder
from utils.errors import UserError
from utils.training.signals import stopping

if TYPE_CHECKING:
    from search.index import Index

SHOWN: Final = 10  # unreadable files that are printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = _parser().parse_args(arguments)
    options.run(options)
    return 0


def index(options: argparse.Namespace) -> None:
    """Brings an index up to date with a folder, and prints what has changed."""
    real_folder(options.photos)
    opened = _opened(options)
    from encoder_loading import load_encoder

    encoder = opened.encoder() if options.model is None else load_encoder(options.model)
    print(f"model   {encoder}\nindex   {options.index}", flush=True)
    with stopping.on_signals("what is indexed stays; run the same command again"):
        added = opened.add_folder(options.photos, encoder)
    print(f"images  {added.new:,} new, {added.changed:,} changed, {added.unchanged:,} unchanged, {added.gone:,} gone")
    print(f"encoded {added.encoded:,}; the index has {len(opened):,} images")
    if added.links:
        print(f"links   {added.links:,} are not followed; index the folders that they lead to")
    for path, why in added.unreadable[:SHOWN]:
        print(f"skipped {path} ({why})")
    if len(added.unreadable) > SHOWN:
        print(f"skipped {len(added.unreadable) - SHOWN:,} more")


def query(options: argparse.Namespace) -> None:
    """Prints the images that fit a sentence or a picture best: rank, score and path."""
    if (options.sentence is None) == (options.image is None):
        raise UserError("give a sentence, or a picture with --image FILE")
    opened = _opened(options)
    folder = None if options.folder is None else str(real_folder(options.folder))
    if options.image is None:
        hits = opened.query(options.sentence, options.k, folder=folder)
    else:
        try:
            content = options.image.read_bytes()
        except OSError as error:
            raise UserError(f"--image {options.image} cannot be read ({error.strerror}); name a picture") from error
        hits = opened.query_picture(content, options.k, folder=folder)
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank:3}  {hit.score:.3f}  {hit.path}")
    if not hits:
        print(f"no image of the index lies in {options.folder}")


def serve(options: argparse.Namespace) -> None:
    """Serves the page until it is stopped."""
    from search.page.serve import serve_page

    serve_page(_opened(options), options.host, options.port)


def _opened(options: argparse.Namespace) -> Index:
    from search.index import Index  # large modules, which --help does not need
    from utils.training.log_filters import quiet_libraries

    quiet_libraries()
    return Index.open(options.index, options.model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="search", description="Finds people in your own images.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    kinds = {
        "index": (index, "index the images below a folder, or bring its index up to date"),
        "query": (query, "print the images that fit a sentence or a picture best"),
        "serve": (serve, "serve a page to search with"),
    }
    parsers = {}
    for name, (run, told) in kinds.items():
        parsers[name] = command = commands.add_parser(name, help=told, description=told.capitalize() + ".")
        command.set_defaults(run=run)
        command.add_argument("--index", default="search_index", help="folder of the index, or an address: s3://...")
        command.add_argument(
            "--model", help="folder of a run, checkpoint, or folder of a backbone (default: as when indexing)"
        )
    parsers["index"].add_argument("photos", type=Path, metavar="PHOTOS", help="folder of your images")
    parsers["query"].add_argument("sentence", nargs="?", metavar="SENTENCE", help="a description of a person")
    parsers["query"].add_argument("--image", type=Path, metavar="FILE", help="search with a picture instead")
    parsers["query"].add_argument("--folder", type=Path, help="show only images in this folder")
    parsers["query"].add_argument("-k", type=int, default=10, help="number of images (default: 10)")
    parsers["serve"].add_argument("--port", type=int, default=8000, help="port of the page (default: 8000); 0: any")
    parsers["serve"].add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, which only this machine reaches)"
    )
    return parser
