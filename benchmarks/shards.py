"""Training pairs from shards beside loose files: memory, images per second and core, continuing, two processes.

    uv run --extra shards benchmarks/shards.py [--pairs 1000000] [--size 384x128] [--batch 64] [--folder FOLDER]

The benchmark draws 512 JPEG files with the image sizes of CUHK-PEDES, and writes shards of PAIRS pairs that repeat
them, two captions per image, and other shards of a tenth of the pairs. Each part runs in a process of its own:

- memory: an epoch of all pairs in training order, without decoding: the peak beyond what imports take, its private
  part, and the pages of mapped files, which the system takes back when it needs memory;
- speed: one thread decodes and resizes, from loose files, from shards of these files, and from shards whose images
  were encoded again at the training size;
- continuing: a loader with two worker processes is stopped in the middle of the epoch, and another one goes on;
- processes: the shares of two processes against the batches of one.
"""

import argparse
import io
import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from omegaconf import OmegaConf
from PIL import Image
from prettytable import PrettyTable

from benchmarks.data import draw_records
from data.annotations import Record
from data.batch import IMAGE, INDEX, TEXT
from data.images.read import Resize, read_image
from data.loading.loader import ResumableLoader
from data.shards.mixture import ShardDataset, ShardMixture, open_shards
from data.shards.order import ShardSampler
from data.shards.writer import ShardWriter
from data.views.augmentation import Augmentation
from data.views.build import Views
from utils.config.resolvers import parse_size
from utils.images import read_rgb

FILES, CAPTIONS = 512, 2
MIB = 2**20


class RepeatedFiles(ShardWriter):
    """A writer of records that repeat a few files: each is read only once."""

    contents: dict[Path, bytes]

    def _encoded(self, record: Record) -> bytes:
        return self.contents[record.image_path]


def write(folder: Path, files: list[Path], pairs: int, size: list[int] | None) -> float:
    """Writes `pairs` pairs that repeat `files`, and returns the seconds. `size`: encodes the images again."""
    contents = {file: file.read_bytes() if size is None else encoded(file, size) for file in files}
    captions = [
        tuple(f"a man {image} in a red shirt, seen {place}" for place in range(CAPTIONS)) for image in range(997)
    ]
    records = [
        Record(image // 4, image, files[image % len(files)], captions[image % len(captions)])
        for image in range(pairs // CAPTIONS)
    ]
    writer = RepeatedFiles(folder, {})
    writer.contents = contents
    start = time.perf_counter()
    writer.write(records)
    return time.perf_counter() - start


def encoded(file: Path, size: list[int]) -> bytes:
    stream = io.BytesIO()
    read_rgb(file.read_bytes()).resize(size[::-1], Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=95, subsampling=0
    )
    return stream.getvalue()


def mixture(folder: Path) -> ShardMixture:
    options = {"shards": str(folder), "epoch_pairs": None, "cache_dir": str(folder), "shard_cache_gb": 1.0}
    return open_shards(OmegaConf.create(options))


def sampler(pairs: ShardMixture, batch: int, **share: int) -> ShardSampler:
    return ShardSampler(pairs.sizes, pairs.shares, batch, seed=0, **share)


def memory(folder: Path, batch: int) -> dict[str, float]:
    """Reads every pair of an epoch in training order. Returns MiB beyond the start, and pairs per second."""
    before = status()
    pairs, private, mapped = mixture(folder), 0.0, 0.0
    start, read = time.perf_counter(), 0
    for number, drawn in enumerate(sampler(pairs, batch)):
        for draw in drawn:
            read += len(pairs[draw.pair].content) > 0
        if number % 200 == 0:
            now = status()
            private, mapped = max(private, now["RssAnon"]), max(mapped, now["RssFile"])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "peak": peak - before["VmRSS"],
        "private": private - before["RssAnon"],
        "mapped": mapped - before["RssFile"],
    }
    return {key: value / MIB for key, value in found.items()} | {"rate": read / seconds}


def status() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        key: 1024 * float(value.split()[0])
        for key, value in (line.split(":") for line in lines if "Rss" in line or "VmRSS" in line)
    }


def speed(read: Callable[[int], Any], images: int) -> float:
    """Returns images per second."""
    start = time.perf_counter()
    for image in range(images):
        read(image)
    return images / (time.perf_counter() - start)


def speeds(loose: Path, shards: Path, small: Path, size: list[int], batch: int) -> dict[str, float]:
    """Returns images per second of each form, in turns; the median of three."""
    resize = Resize((size[0], size[1]), "bicubic")
    records = [Record(0, 0, file, ("",)) for file in sorted(loose.glob("*.jpg"))]
    forms: dict[str, Callable[[int], Any]] = {"loose files": lambda image: read_image(records[image % FILES], resize)}
    for name, folder in (("shards of these files", shards), (f"shards, --size {size[0]}x{size[1]}", small)):
        pairs = mixture(folder)
        draws = [draw.pair for drawn in islice(sampler(pairs, batch), 20) for draw in drawn]
        forms[name] = lambda image, pairs=pairs, draws=draws: resize(read_rgb(pairs[draws[image % len(draws)]].content))
    for read in forms.values():
        speed(read, 64)
    found = [{name: speed(read, 640) for name, read in forms.items()} for _ in range(3)]
    return {name: sorted(each[name] for each in found)[1] for name in forms}


def loader(folder: Path, size: list[int], batch: int) -> ResumableLoader:
    pairs = mixture(folder)
    views = Views({IMAGE, TEXT}, 8, Augmentation("none", image=(), text=()))
    dataset = ShardDataset(pairs, Resize((size[0], size[1]), "bicubic"), views, str)
    return ResumableLoader(dataset, sampler(pairs, batch), together, num_workers=2)


def together(samples: list[Any]) -> dict[str, Any]:
    return {
        key: torch.stack([s[key] for s in samples]) if key == IMAGE else [s[key] for s in samples]
        for key in (IMAGE, TEXT, INDEX)
    }


def continuing(folder: Path, size: list[int], batch: int) -> dict[str, float]:
    """Stops a loader in mid-epoch; returns the seconds to the next batch, and the share of equal batches after it."""
    first = loader(folder, size, batch)
    first.load_state_dict({"epoch": 0, "batches": len(first) // 2, "length": len(first)})
    batches: Iterator[Any] = iter(first)
    for _ in range(5):
        next(batches)
    state = first.state_dict()
    expected = list(islice(batches, 10))
    second = loader(folder, size, batch)
    second.load_state_dict(state)
    start = time.perf_counter()
    found = [next(rest := iter(second))]
    seconds = time.perf_counter() - start
    found += list(islice(rest, 9))
    same = [torch.equal(a.pop(IMAGE), b.pop(IMAGE)) and a == b for a, b in zip(expected, found, strict=True)]
    return {"seconds": seconds, "same": sum(same) / len(same), "batch": state["batches"], "of": len(first)}


def processes(folder: Path, batch: int) -> float:
    """Returns the share of an epoch's batches that two processes share out without a difference."""
    pairs = mixture(folder)
    shares = [sampler(pairs, batch, rank=rank, world_size=2) for rank in (0, 1)]
    same = [a + b == whole for a, b, whole in zip(*shares, sampler(pairs, batch), strict=True)]
    return sum(same) / len(same)


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of `work` in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--size", type=parse_size, default=[384, 128], metavar="HxW")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--folder", type=Path, help="for the shards, about 5 KB a pair; default: the system's for temporary files"
    )
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as temporary:
        root = Path(temporary)
        loose = root / "loose"
        loose.mkdir()
        files = [record.image_path for record in draw_records(loose, FILES)]
        parts = {"tenth": options.pairs // 10, "all": options.pairs}
        seconds = [alone(write, root / name, files, pairs, None) for name, pairs in parts.items()]
        alone(write, root / "small", files, 20_000, options.size)
        total = sum(file.stat().st_size for file in (root / "all").iterdir()) / 1e9
        print(
            f"{options.pairs:,} pairs of {options.pairs // CAPTIONS:,} images, {total:.1f} GB, "
            f"written in {seconds[-1]:.0f} s"
        )
        table = PrettyTable(["pairs", "peak MiB", "private MiB", "mapped files MiB", "pairs/s read"], align="r")
        for name, pairs in parts.items():
            found = alone(memory, root / name, options.batch)
            table.add_row([f"{pairs:,}", *(f"{found[key]:,.0f}" for key in ("peak", "private", "mapped", "rate"))])
        print(f"memory beyond the imports, an epoch without decoding\n{table}")
        table = PrettyTable(["form", "times loose files", "images/s and core"], align="r")
        rates = alone(speeds, loose, root / "all", root / "small", options.size, options.batch)
        for name, rate in rates.items():
            table.add_row([name, f"{rate / rates['loose files']:.2f}", f"{rate:,.0f}"])
        print(f"decoded and resized to {options.size[0]}x{options.size[1]}\n{table}")
        shutil.rmtree(root / "tenth")
        found = continuing(root / "all", options.size, options.batch)  # has worker processes of its own
        print(
            f"stopped after batch {found['batch']:,} of {found['of']:,}: {found['same']:.0%} of the next batches are "
            f"the same to the last bit; the first came after {found['seconds']:.1f} s"
        )
        same = alone(processes, root / "all", options.batch)
        print(f"two processes: {same:.0%} of the batches are those of one process")


if __name__ == "__main__":
    main()
