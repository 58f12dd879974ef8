"""Formats of shards: images per second of one thread that reads them, and how far apart the images of a batch are.

    uv run --extra shards --with litdata --with webdataset benchmarks/shard_formats.py [--images 20000]

The same JPEG files are written with pyarrow (as `data.shards` does), LitData and WebDataset. Nothing is decoded. By
index, images come in the order of `data.shards.order`; the streams of the libraries come in their own shuffled order,
in which the last column counts how many images a batch of 64 spans.
"""

import argparse
import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import litdata
import numpy as np
import webdataset
from litdata.streaming.cache import Cache
from prettytable import PrettyTable

from benchmarks.data import draw_records
from benchmarks.shards import CAPTIONS, FILES, mixture, sampler, write

SECONDS, BATCH = 10.0, 64
PER_TAR = 4096


def write_litdata(folder: Path, contents: list[bytes], images: int) -> None:
    cache = Cache(str(folder), chunk_bytes="32MB")
    for image in range(images):
        cache[image] = {"image": contents[image % len(contents)], "captions": "[]", "pid": image}
    cache.done()
    cache._merge_no_wait()


def write_tars(folder: Path, contents: list[bytes], images: int) -> None:
    folder.mkdir()
    for first in range(0, images, PER_TAR):
        with tarfile.open(folder / f"{first // PER_TAR:05d}.tar", "w") as tar:
            for image in range(first, min(first + PER_TAR, images)):
                for suffix, content in (("jpg", contents[image % len(contents)]), ("json", json.dumps(image).encode())):
                    entry = tarfile.TarInfo(f"{image:08d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def measured(images: Iterator[int]) -> tuple[float, float]:
    """Returns images per second, and how many images a batch spans on average; stops after some seconds."""
    start, seen = time.perf_counter(), []
    for image in images:
        seen.append(image)
        if time.perf_counter() - start > SECONDS:
            break
    rate = len(seen) / (time.perf_counter() - start)
    whole = len(seen) // BATCH * BATCH
    return rate, float(np.ptp(np.array(seen[:whole]).reshape(-1, BATCH), axis=1).mean()) if whole else float("nan")


def forms(root: Path, images: int) -> dict[str, Callable[[], Iterator[int]]]:
    """Returns name -> a function that starts to read and yields the number of each image."""
    pairs = mixture(root / "arrow")
    drawn = [draw.pair for batch in sampler(pairs, BATCH) for draw in batch]
    by_index = litdata.StreamingDataset(str(root / "litdata"))
    tars = f"{root}/tar/{{00000..{-(-images // PER_TAR) - 1:05d}}}.tar"

    def stream() -> Iterator[Any]:
        return iter(webdataset.WebDataset(tars, shardshuffle=100, seed=0).shuffle(5000))

    return {
        "pyarrow, by index": lambda: (pairs[pair].image for pair in drawn),
        "LitData, by index": lambda: (by_index[pair // CAPTIONS]["pid"] for pair in drawn),
        "LitData, its own stream": lambda: (
            one["pid"] for one in litdata.StreamingDataset(str(root / "litdata"), shuffle=True)
        ),
        "WebDataset, its own stream": lambda: (json.loads(one["json"]) for one in stream()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=20_000)
    images = parser.parse_args().images
    table = PrettyTable(["form", "images/s", "a batch of 64 spans"], align="r")
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "loose").mkdir()
        files = [record.image_path for record in draw_records(root / "loose", FILES)]
        contents = [file.read_bytes() for file in files]
        write(root / "arrow", files, CAPTIONS * images, None)
        write_litdata(root / "litdata", contents, images)
        write_tars(root / "tar", contents, images)
        for name, start in forms(root, images).items():
            rate, span = measured(islice(start(), CAPTIONS * images))
            table.add_row([name, f"{rate:,.0f}", f"{span:,.0f} of {images:,}"])
    print(table)


if __name__ == "__main__":
    main()
