"""Time and peak memory of pseudo labelling for N captions of N/2 images, compared with a dense implementation.

    uv run benchmarks/mining.py [--sizes 8192 17027 34054 68126] [--threads 2] [--dense-up-to 8192]

The random features resemble those of a re-ID dataset: 512 wide, with six captions per person in 48 dimensions. Every
size runs in a separate process. "clustering" is the work of an epoch, which stores only the distances that DBSCAN
reads. "all distances" stores every distance below 1.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from prettytable import PrettyTable
from sklearn.cluster import DBSCAN
from torch import Tensor

from model.prototypes import Modality, cluster_statistics, dbscan, mine_outliers
from model.prototypes.jaccard import jaccard_distances, k_reciprocal_encoding
from model.prototypes.neighbors import nearest_neighbors, unit_features

DIM, LATENT, NOISE = 512, 48, 1.7
CAPTIONS_OF_A_PERSON, CAPTIONS_OF_AN_IMAGE = 6, 2
K1, K2, EPS, MIN_SAMPLES = 20, 6, 0.6, 4
GIB_OF_MAXRSS = 2**30 if sys.platform == "darwin" else 2**20

Result = TypeVar("Result")
Figures = dict[str, float]


class Stopwatch:
    """The seconds of each stage, and the peak memory of the process in GiB at the end of the stage."""

    def __init__(self) -> None:
        self.figures: Figures = {}

    def run(self, stage: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        self.figures[stage] = time.perf_counter() - start
        self.figures[f"{stage} GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB_OF_MAXRSS
        return result


def drawn_features(count: int) -> tuple[Tensor, Modality]:
    """Returns the unit features ``(N, 512)`` of captions, and the images (N/2) with the persons as clusters.

    Caption i belongs to image i // 2, and image i to person i // 3. A random third of the images are outliers.
    """
    draw = torch.Generator().manual_seed(0)
    persons = torch.arange(count) // CAPTIONS_OF_A_PERSON
    latent = torch.randn(int(persons.max()) + 1, LATENT, generator=draw) @ torch.randn(LATENT, DIM, generator=draw)
    centers = unit_features(latent)
    shown = persons[::CAPTIONS_OF_AN_IMAGE]
    texts, images = (
        unit_features(centers[of] + torch.randn(len(of), DIM, generator=draw) * NOISE / DIM**0.5)
        for of in (persons, shown)
    )
    outlier = torch.rand(len(shown), generator=draw) < 1 / 3
    return texts, Modality(images, shown.masked_fill(outlier, -1))


def measure_sparse(count: int, threads: int) -> Figures:
    torch.set_num_threads(threads)
    features, images = drawn_features(count)
    text_images = torch.arange(count) // CAPTIONS_OF_AN_IMAGE
    watch = Stopwatch()
    nearest = watch.run("search", lambda: nearest_neighbors(features, K1))
    weights = watch.run("encoding", lambda: k_reciprocal_encoding(features, nearest, K1, K2))
    near = watch.run("Jaccard", lambda: jaccard_distances(weights, EPS))
    labels = watch.run("DBSCAN", lambda: dbscan(near, EPS, MIN_SAMPLES))
    mined = watch.run("mining", lambda: mine_outliers(images, Modality(features, labels), text_images))
    every = watch.run("all distances", lambda: jaccard_distances(weights))
    again = watch.run("DBSCAN on all", lambda: dbscan(every, EPS, MIN_SAMPLES))
    if not torch.equal(labels, again):
        raise AssertionError("labels depend on the distances that were left out")
    watch.figures |= cluster_statistics(labels, torch.arange(count) // CAPTIONS_OF_A_PERSON)
    watch.figures["outliers after mining"] = cluster_statistics(mined[1])["outliers"]
    return watch.figures | {"stored": every.nnz / count, "stored near": near.nnz / count}


def measure_dense(count: int, threads: int) -> Figures:
    torch.set_num_threads(threads)
    features, _ = drawn_features(count)
    watch = Stopwatch()
    distances = watch.run("Jaccard", lambda: dense_jaccard(features.numpy()))
    watch.run("DBSCAN", lambda: DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit(distances))
    return watch.figures


def dense_jaccard(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the k-reciprocal Jaccard distances ``(N, N)``, computed with dense matrices."""
    count = len(features)
    squared = 2 - 2 * features @ features.T
    np.fill_diagonal(squared, -1)
    rank = np.argsort(squared, axis=1, kind="stable")

    def mutual(k: int) -> NDArray[np.float32]:
        among = np.zeros((count, count), dtype=np.float32)
        np.put_along_axis(among, rank[:, : k + 1], 1, axis=1)
        return among * among.T

    reciprocal, half = mutual(K1), mutual(round(K1 / 2))
    joins = reciprocal * (3 * (reciprocal @ half) > 2 * half.sum(axis=1))
    weights = np.where(reciprocal + joins @ half > 0, np.exp(-np.maximum(squared, 0)), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = np.stack([weights[rank[i, :K2]].mean(axis=0) for i in range(count)])
    distances = np.empty_like(squared)
    for i in range(count):
        own = weights[i].nonzero()[0]
        shared = np.minimum(weights[i, own], weights[:, own]).sum(axis=1)
        distances[i] = np.maximum(1 - shared / (2 - shared), 0)
    return distances


def in_own_process(measure: Callable[[int, int], Figures], count: int, threads: int) -> Figures:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, count, threads).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 17027, 34054, 68126], help="captions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense-up-to", type=int, default=8192, help="captions, at most, of the dense runs")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))

    stages = ["search", "encoding", "Jaccard", "DBSCAN", "mining"]
    quality = ["clusters", "outliers", "outliers after mining", "purity", "nmi"]
    times = PrettyTable(["N", *(f"{stage} s" for stage in stages), "clustering s", "x by N", "peak GiB"])
    everything = PrettyTable(["N", "all distances s", "stored a row", "DBSCAN s", "peak GiB"])
    dense = PrettyTable(["N", "dense s", "dense GiB", "sparse s", "sparse GiB", "times faster", "times smaller"])
    found = PrettyTable(["N", *quality])
    before: tuple[int, float] | None = None
    for count in options.sizes:
        run = in_own_process(measure_sparse, count, options.threads)
        total = sum(run[stage] for stage in stages)
        growth = f"{total / before[1]:.1f} by {count / before[0]:.1f}" if before else ""
        before = count, total
        times.add_row([count, *(f"{run[s]:.1f}" for s in stages), f"{total:.1f}", growth, f"{run['mining GiB']:.2f}"])
        everything.add_row(
            [
                count,
                f"{run['all distances']:.1f}",
                f"{run['stored']:.0f} (near: {run['stored near']:.0f})",
                f"{run['DBSCAN on all']:.1f}",
                f"{run['DBSCAN on all GiB']:.2f}",
            ]
        )
        found.add_row([count, *(f"{run[figure]:.4g}" for figure in quality)])
        if count <= options.dense_up_to:
            whole = in_own_process(measure_dense, count, options.threads)
            slow, fast = whole["Jaccard"] + whole["DBSCAN"], total - run["mining"]
            sizes = whole["DBSCAN GiB"], run["DBSCAN GiB"]
            compared = [slow, sizes[0], fast, sizes[1], slow / fast, sizes[0] / sizes[1]]
            dense.add_row([count, *(f"{value:.2f}" for value in compared)])
        print(f"{count}: done", file=sys.stderr, flush=True)
    for table in (times, everything, dense, found):
        print(table)


if __name__ == "__main__":
    main()
