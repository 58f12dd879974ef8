"""Claim: training pairs from shards reach the GPU as fast as pairs from loose files, and in an order that continues."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.drawn import drawn_root
from benchmarks.gpu_claims.steps import composed
from data.annotations import read_dataset
from data.batch import IMAGE, IMAGE_VIEWS, INDEX, TEXT, Batch
from data.shards.writer import ShardWriter
from lightning_data import TBPSDataModule, build_data

WARM_UP = 3  # batches
LEAST = 0.8  # of the rate of loose files
SHARD_BYTES = 2 * 2**20  # so that the drawn images fill several shards


def shards(bench: Bench) -> None:
    """Compares images per second from shards and from loose files, then a continued epoch with an uninterrupted one."""
    folder = bench.folder / "shards"
    records = read_dataset("drawn", drawn_root(bench)).train
    if not folder.exists():
        ShardWriter(folder, {"dataset": "drawn"}, shard_bytes=SHARD_BYTES).write(records)
    rates: dict[str, float] = {}
    bench.parts(
        {
            "loose files": partial(_load, bench, "loose files", rates),
            "shards": partial(_load, bench, "shards", rates, f"dataset.shards={folder}"),
            "continuing": partial(_continue, bench, folder),
        }
    )
    if bench.on_gpu and len(rates) == 2:
        ratio = rates["shards"] / rates["loose files"]
        bench.expect(ratio >= LEAST, f"shards give {ratio:.2f} of the images a second of loose files")


def _data(bench: Bench, *overrides: str) -> TBPSDataModule:
    size, batch, workers = ("384x128", 64, 4) if bench.on_gpu else ("64x32", 8, 0)
    sizes = (f"img_size_str={size}", f"dataset.batch_size={batch}", f"dataset.num_workers={workers}")
    options = ("aug=tbps_clip", "dataset.cache=false", "dataset.sampler=random", "trainer.limit_val_batches=1")
    limits = ("trainer.limit_test_batches=1", f"dataset_root_dir={drawn_root(bench)}")
    data = build_data(composed("demo", *sizes, *options, *limits, *overrides))
    # The trainer tells the loaders whether they feed a GPU.
    data.trainer = L.Trainer(devices=1, logger=False, enable_checkpointing=False, default_root_dir=bench.folder)
    data.set_views([*IMAGE_VIEWS, TEXT])
    return data


def _load(bench: Bench, form: str, rates: dict[str, float], *overrides: str) -> None:
    data = _data(bench, *overrides)
    batches = (data.transfer_batch_to_device(batch, bench.device, 0) for batch in _endless(data.train_dataloader()))
    list(islice(batches, WARM_UP))
    bench.synchronize()
    start = time.perf_counter()
    images = count = 0
    while count < 3 or time.perf_counter() - start < min(6.0, bench.left() / 4) * bench.on_gpu:
        images += len(next(batches)[INDEX])
        count += 1
    bench.synchronize()
    rates[form] = images / (time.perf_counter() - start)
    batches.close()
    bench.row(pairs_from=form, batch=str(images // count), images_a_second=rates[form])


def _continue(bench: Bench, folder: Path) -> None:
    first = _data(bench, f"dataset.shards={folder}").train_dataloader()
    batches: Iterator[Batch] = iter(first)
    list(islice(batches, 4))
    state = first.state_dict()
    expected = list(islice(batches, 3))
    second = _data(bench, f"dataset.shards={folder}").train_dataloader()
    second.load_state_dict(state)
    found = list(islice(second, 3))
    same = all(_same(a, b) for a, b in zip(expected, found, strict=True))
    bench.expect(same, "a continued epoch gives other batches")
    bench.note(f"stopped after {state['batches']} of {state['length']} batches, the next {len(found)} are the same")


def _same(first: Batch, second: Batch) -> bool:
    return all(_equal(value, second[key]) for key, value in first.items()) and (IMAGE in first or "source" in first)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, tuple):
        return all(map(_equal, first, second))
    return bool(first == second)


def _endless(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader
