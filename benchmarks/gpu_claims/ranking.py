"""Claims: ranking is nearly as fast as the matrix product, and CPCL's pseudo labels equal those of the CPU."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from benchmarks.gpu_claims.bench import GIB, Bench
from benchmarks.mining import CAPTIONS_OF_AN_IMAGE, EPS, K1, K2, MIN_SAMPLES, drawn_features
from benchmarks.retrieval import FORMS, SETS, Figures, Size, draw
from model.prototypes import JaccardDBSCAN, Modality, mine_outliers
from utils.ranking.retrieval import full_precision

DIM: Final = 512
RANKINGS: Final = ("product", "t2i", "i2t", "both")
CLOSE: Final = 0.02  # allowed difference of figures in points, because scores differ in the last digit
PACE: Final = 3.0  # allowed ratio of the time for both directions to that of the matrix product
ALIKE: Final = 0.995  # smallest share of samples whose pseudo label equals the CPU's
TINY: Final = Size(400, 300, 50)

Result = TypeVar("Result")


def ranking(bench: Bench) -> None:
    """Ranks a set of the size of ICFG-PEDES and compares figures with the CPU's, and then ranks 100,000 x 100,000."""
    sizes = (SETS["icfg"], SETS["large"]) if bench.on_gpu else (TINY,)
    bench.parts({f"{size.texts:,} x {size.images:,}": partial(_rank, bench, size) for size in sizes})


def _rank(bench: Bench, size: Size) -> None:
    on_cpu = draw(size, DIM)
    features = tuple(side.to(bench.device) for side in on_cpu)
    figures: dict[str, Figures] = {}
    seconds: dict[str, float] = {}
    for form in RANKINGS:
        with full_precision(), torch.no_grad():
            FORMS[form](*features)  # libraries allocate their workspace
            bench.synchronize()
            before = torch.cuda.memory_allocated() if bench.on_gpu else 0
            if bench.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            figures[form], seconds[form] = _timed(bench, lambda form=form: FORMS[form](*features))
        peak = (torch.cuda.max_memory_allocated() - before) / GIB if bench.on_gpu else None
        bench.row(
            set=f"{size.texts:,} x {size.images:,}",
            form=form,
            times_the_product=seconds[form] / seconds["product"],
            seconds=seconds[form],
            GiB_above_the_features=peak,
            R1=" ".join(f"{of[0]:.2f}" for of in figures[form]) or "-",
        )
    _expect_close(bench, figures["both"], figures["t2i"] + figures["i2t"], "both directions at once", "one by one")
    if size != SETS["large"]:
        _expect_close(bench, figures["both"], FORMS["both"](*on_cpu), f"on {bench.device.type}", "on the CPU")
    if bench.on_gpu:
        pace = seconds["both"] / seconds["product"]
        bench.expect(pace <= PACE, f"both directions take {pace:.1f} times the product")


def _expect_close(bench: Bench, some: Figures, others: Figures, here: str, there: str) -> None:
    gap = float((torch.tensor(some) - torch.tensor(others)).abs().max())
    bench.expect(gap <= CLOSE, f"figures {here} and {there} differ by {gap:.3f} points")


def clustering(bench: Bench) -> None:
    """Clusters and mines half of CUHK-PEDES' number of captions, and a quarter of it also on the CPU."""
    counts = {17_027: True, 34_054: False} if bench.on_gpu else {600: True}
    bench.parts({f"{count:,} captions": partial(_cluster, bench, count, beside) for count, beside in counts.items()})


def _cluster(bench: Bench, count: int, beside_cpu: bool) -> None:
    texts, images = drawn_features(count)
    of = torch.arange(count) // CAPTIONS_OF_AN_IMAGE
    cluster = JaccardDBSCAN(K1, K2, EPS, MIN_SAMPLES)

    def work(device: torch.device) -> tuple[Tensor, float, Tensor, float]:
        there, shown = texts.to(device), Modality(images.features.to(device), images.labels)
        labels, clustered = _timed(bench, lambda: cluster(there, 0))
        mined, taken = _timed(bench, lambda: mine_outliers(shown, Modality(there, labels), of)[1])
        return labels, clustered, mined, taken

    found = {str(bench.device): work(bench.device)}
    if beside_cpu:
        found["the CPU"] = work(torch.device("cpu"))
    for where, (labels, clustered, mined, taken) in found.items():
        bench.row(
            captions=f"{count:,}",
            on=where,
            clustering_s=clustered,
            mining_s=taken,
            clusters=f"{int(labels.max()) + 1:,}",
            outliers=f"{int((labels < 0).sum()):,}",
            outliers_after_mining=f"{int((mined < 0).sum()):,}",
        )
    if beside_cpu:
        here, there = found.values()
        share = same_clusters(here[0], there[0])
        bench.note(f"{share:.2%} of {count:,} captions are in the same cluster as on the CPU")
        bench.expect(share >= ALIKE, f"only {share:.2%} of the captions are in the same cluster as on the CPU")


def same_clusters(one: Tensor, other: Tensor) -> float:
    """Returns the share of samples that are outliers in both labellings, or whose cluster has the same members."""
    pairs, members = torch.stack([one, other], dim=1).unique(dim=0, return_counts=True)
    sizes = [labels[labels >= 0].bincount(minlength=1) for labels in (one, other)]
    outliers = members[(pairs < 0).all(dim=1)].sum()
    pairs, members = pairs[(pairs >= 0).all(dim=1)], members[(pairs >= 0).all(dim=1)]
    same = (sizes[0][pairs[:, 0]] == members) & (sizes[1][pairs[:, 1]] == members)
    return float(members[same].sum() + outliers) / len(one)


def _timed(bench: Bench, work: Callable[[], Result]) -> tuple[Result, float]:
    bench.synchronize()
    start = time.perf_counter()
    result = work()
    bench.synchronize()
    return result, time.perf_counter() - start
