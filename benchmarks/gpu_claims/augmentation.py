"""Claim: the GPU builds the same image views as workers, and training gets them faster."""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import lightning as L
import torch
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.drawn import drawn_root
from benchmarks.gpu_claims.steps import composed
from data.batch import IMAGE_VIEWS, SEEDS, SOURCE, TEXT, Batch
from data.views.build import Views
from data.views.on_device import DeviceViews
from lightning_data import build_data

WARM_UP = 3  # batches
LEVELS, ALIKE = 2, 0.99  # at least this share of the pixels has to agree within LEVELS of 255 levels
BUSY = 0.3  # seconds of other work on the GPU while views are requested


def augmentation(bench: Bench) -> None:
    """Compares the speed of augmentation on the device and in workers, and then the views."""
    bench.parts(
        {
            "device": partial(_load, bench, "device"),
            "worker": partial(_load, bench, "worker"),
            "views": partial(_compare, bench),
        }
    )


def _load(bench: Bench, where: str) -> None:
    workers = 4 if bench.on_gpu else 0
    overrides = [*_size(bench), f"dataset.augment_on={where}", f"dataset.num_workers={workers}"]
    cfg = composed("demo", *overrides, f"dataset_root_dir={drawn_root(bench)}")
    data = build_data(cfg)
    # The trainer tells the loaders whether they feed a GPU.
    data.trainer = L.Trainer(devices=1, logger=False, enable_checkpointing=False, default_root_dir=bench.folder)
    data.set_views([*IMAGE_VIEWS, TEXT])
    data.setup("fit")
    loader = data.train_dataloader()
    batches = (data.transfer_batch_to_device(batch, bench.device, 0) for batch in _endless(loader))
    list(islice(batches, WARM_UP))
    bench.synchronize()
    start = time.perf_counter()
    images = count = 0
    while count < 3 or time.perf_counter() - start < min(6.0, bench.left() / 4) * bench.on_gpu:
        images += len(next(batches)["index"])
        count += 1
    bench.synchronize()
    seconds = time.perf_counter() - start
    batches.close()
    bench.row(augmented_on=where, workers=str(workers), batch=str(images // count), images_a_second=images / seconds)


def _compare(bench: Bench) -> None:
    cfg = composed("demo", *_size(bench))
    count, (height, width) = cfg.dataset.batch_size, cfg.img_size
    views = Views(IMAGE_VIEWS, cfg.backbone.max_length, instantiate(cfg.aug))
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (count, 3, height // 8, width // 8), generator=drawn).float()
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)
    seeds = list(range(count))
    expected = views.of_images(images, seeds)
    on_device = DeviceViews(views)
    batch: Batch = {SOURCE: images.pin_memory() if bench.on_gpu else images, SEEDS: seeds}
    found = on_device(batch, bench.device)
    for view, there in found.items():
        _compare_view(bench, view, expected[view], there.cpu())
    bench.synchronize()
    start = time.perf_counter()
    on_device(batch, bench.device)
    told = time.perf_counter() - start
    bench.synchronize()
    alone = time.perf_counter() - start
    waited = None
    if bench.on_gpu:
        _keep_busy(bench.device)
        start = time.perf_counter()
        on_device(batch, bench.device)
        waited = time.perf_counter() - start
        bench.synchronize()
        bench.expect(waited < told + BUSY / 2, f"views wait for the step before: {waited:.3f} s, not {told:.3f} s")
    bench.row(
        batch=str(count),
        ms_of_the_host=1000 * told,
        ms_until_done=1000 * alone,
        ms_of_the_host_beside_a_busy_GPU=None if waited is None else 1000 * waited,
    )


def _compare_view(bench: Bench, view: str, expected: Tensor, found: Tensor) -> None:
    gap = (expected.int() - found.int()).abs()
    alike = float((gap <= LEVELS).float().mean())
    means, spreads = ([float(getattr(side.float(), of)()) for side in (expected, found)] for of in ("mean", "std"))
    bench.row(
        view=view,
        **{f"pixels_within_{LEVELS}_levels": f"{alike:.5f}"},
        mean_gap=float(gap.float().mean()),
        largest_gap=str(int(gap.max())),
        mean="{:.2f}, {:.2f}".format(*means),
        deviation="{:.2f}, {:.2f}".format(*spreads),
    )
    bench.expect(alike >= ALIKE, f"{view}: {1 - alike:.2%} of the pixels differ by more than {LEVELS} levels")
    for name, (here, there) in (("mean", means), ("deviation", spreads)):
        bench.expect(abs(here - there) < 0.5, f"{view}: the {name} is {there:.2f} instead of {here:.2f}")


def _keep_busy(device: torch.device) -> None:
    """Starts matrix products on the GPU for about `BUSY` seconds or more, and does not wait for them."""
    square = torch.randn(4096, 4096, device=device)
    torch.mm(square, square)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.mm(square, square)
    end.record()
    end.synchronize()
    for _ in range(round(1000 * BUSY / start.elapsed_time(end)) + 1):
        torch.mm(square, square)


def _size(bench: Bench) -> tuple[str, ...]:
    size = ("384x128", 64) if bench.on_gpu else ("64x32", 8)
    return "aug=tbps_clip", f"img_size_str={size[0]}", f"dataset.batch_size={size[1]}"


def _endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader
