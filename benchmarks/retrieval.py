"""Time and memory of ranking, compared with the usual evaluator, which sorts everything, and with the matrix product.

    uv run benchmarks/retrieval.py [--sets cuhk icfg large] [--dim 512 768] [--repeats 3] [--threads 2] [--scale 1.0]

The sets have the size of a test split: CUHK-PEDES (6,156 captions, 3,074 images) and ICFG-PEDES (19,848 of each), with
1,000 identities. `large` has 100,000 of each and 5,000 identities. It is not sorted: its order would take 80 GB. "t2i,
re-ranked" is the plain ranking plus k-reciprocal re-ranking of the 100 best images per caption. Features are random,
around one centre per identity. Every form runs in a separate process, and the forms run in turns; times are medians.
The peak is the growth of the resident set after the features exist, first call included. All forms that rank must give
the same figures. Sorting ICFG-PEDES takes about 12 GB.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from prettytable import PrettyTable
from torch import Tensor
from torch.nn.functional import normalize

from utils.ranking.k_reciprocal import KReciprocal
from utils.ranking.metrics import measure as measure_ranks
from utils.ranking.rerank import reranked_ranks
from utils.ranking.retrieval import Retrieval, both_directions, full_precision, rank_positives, retrieval_metrics

NOISE = 3.0
ROWS = 512
GIB = 2**30

Features = tuple[Tensor, Tensor, Tensor, Tensor]
Figures = list[tuple[float, ...]]


class Size(NamedTuple):
    """The size of a test split."""

    texts: int
    images: int
    identities: int


SETS = {"cuhk": Size(6156, 3074, 1000), "icfg": Size(19848, 19848, 1000), "large": Size(100_000, 100_000, 5000)}


class Cost(NamedTuple):
    """The cost of one call: seconds, growth of the resident set in bytes since the features exist, and the figures."""

    seconds: float
    peak: int
    figures: Figures


def product(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    """Computes every similarity, in chunks that overwrite each other, which is the fastest form."""
    scores = texts.new_empty(ROWS, len(images))
    for chunk in texts.split(ROWS):
        torch.mm(chunk, images.T, out=scores[: len(chunk)])
    return []


def whole_product(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    """Computes the similarities as one matrix."""
    texts @ images.T
    return []


def t2i(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    return [tuple(retrieval_metrics(texts, images, text_pids, image_pids).as_dict().values())]


def i2t(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    return [tuple(retrieval_metrics(images, texts, image_pids, text_pids).as_dict().values())]


def both(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    found = both_directions(texts, images, text_pids, image_pids)
    return [tuple(metrics.as_dict().values()) for metrics in found]


def k_reciprocal(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    """Returns t2i figures after re-ranking of the 100 best images of every caption. It includes the plain ranking."""
    plain = rank_positives(texts, images, text_pids, image_pids)
    reranker = KReciprocal(top=100, k1=20, k2=6, lambda_=0.3)
    found = reranked_ranks(Retrieval(images, image_pids, texts, text_pids), plain, reranker)
    return [tuple(measure_ranks(found).as_dict().values())]


def argsort(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    """Returns t2i figures from a sorted gallery for every query, in the steps of the usual evaluators.

    It reads identities in sorted order and sums up hits. INP is computed query by query, and AP rank by rank.
    """
    order = torch.argsort(texts @ images.T, dim=1, descending=True)  # (Q, G)
    right = image_pids[order] == text_pids[:, None]
    found = right.cumsum(dim=1)
    last = [row.nonzero()[-1] for row in right]
    inp = torch.cat([row[rank] / (rank + 1) for row, rank in zip(found, last, strict=True)])
    precision = torch.stack([found[:, rank] / (rank + 1) for rank in range(len(images))], dim=1) * right
    return _percent(found, precision, inp)


def argsort_whole(texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor) -> Figures:
    """Returns the figures of `argsort` without its loops and its unneeded matrices."""
    right = image_pids[torch.argsort(texts @ images.T, dim=1, descending=True)] == text_pids[:, None]
    found = right.cumsum(dim=1)
    ranks = torch.arange(1, right.shape[1] + 1)
    inp = found[:, -1] / (ranks * right).amax(dim=1)
    return _percent(found, (found / ranks).mul_(right), inp)


def _percent(found: Tensor, precision: Tensor, inp: Tensor) -> Figures:
    """Returns (R@1, R@5, R@10, mAP, mINP) from hits up to each rank ``(Q, G)``, precision at hits, INP ``(Q,)``."""
    hits = [(found[:, k - 1] > 0).float().mean() for k in (1, 5, 10)]
    ap = precision.sum(dim=1) / found[:, -1]
    return [tuple(100 * value.item() for value in (*hits, ap.mean(), inp.mean()))]


FORMS: dict[str, Callable[..., Figures]] = {
    "product": product,
    "whole product": whole_product,
    "t2i": t2i,
    "i2t": i2t,
    "both": both,
    "t2i, re-ranked": k_reciprocal,
    "argsort": argsort,
    "argsort, no loops": argsort_whole,
}
OF_SMALL_SETS = ("t2i, re-ranked", "whole product", "argsort", "argsort, no loops")


def draw(size: Size, dim: int) -> Features:
    """Returns unit-norm texts and images, and their identities, made in pieces so that memory has no peak."""
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(size.identities, dim, generator=generator), dim=1)
    sides = []
    for items in (size.texts, size.images):
        pids = (torch.arange(items) % size.identities)[torch.randperm(items, generator=generator)]
        features = torch.empty(items, dim)
        for piece, of in zip(features.split(ROWS), pids.split(ROWS), strict=True):
            noise = torch.randn(len(of), dim, generator=generator) / dim**0.5
            piece.copy_(normalize(centers[of] + NOISE * noise, dim=1))
        sides.append((features, pids))
    (texts, text_pids), (images, image_pids) = sides
    return texts, images, text_pids, image_pids


def prepare(size: Size, dim: int, threads: int) -> None:
    """Creates the features of a set in this process."""
    global features, before
    torch.set_num_threads(threads)
    product(*draw(Size(64, 64, 8), dim))  # libraries allocate their workspace
    features = draw(size, dim)
    before = _peak()


def call(form: str) -> Cost:
    start = time.perf_counter()
    with full_precision(), torch.no_grad():
        figures = FORMS[form](*features)
    return Cost(time.perf_counter() - start, _peak() - before, figures)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(size: Size, dim: int, forms: list[str], repeats: int, threads: int) -> dict[str, Cost]:
    """Returns form -> median seconds, peak and figures."""
    context = get_context("spawn")
    pools = {form: ProcessPoolExecutor(1, context, prepare, (size, dim, threads)) for form in forms}
    turns = [{form: pool.submit(call, form).result() for form, pool in pools.items()} for _ in range(repeats)]
    for pool in pools.values():
        pool.shutdown()
    return {
        form: Cost(
            statistics.median(turn[form].seconds for turn in turns),
            max(turn[form].peak for turn in turns),
            turns[0][form].figures,
        )
        for form in forms
    }


def check_figures(costs: dict[str, Cost]) -> None:
    """Raises `AssertionError` if two forms rank differently. Scores may differ in the last digit."""
    t2i_figures, i2t_figures = costs["t2i"].figures, costs["i2t"].figures
    pairs = [(costs["both"].figures, t2i_figures + i2t_figures)]
    pairs += [(costs[form].figures, t2i_figures) for form in OF_SMALL_SETS[1:] if form in costs and costs[form].figures]
    for one, other in pairs:
        if not torch.allclose(torch.tensor(one), torch.tensor(other), atol=0.02):
            raise AssertionError(f"{one} and {other} should be the same figures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["cuhk", "icfg"])
    parser.add_argument("--dim", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes, to try it")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    table = PrettyTable()
    table.align = "r"
    for name in options.sets:
        size = Size(*(int(options.scale * number) for number in SETS[name]))
        left_out = {"cuhk": (), "icfg": OF_SMALL_SETS[:1], "large": OF_SMALL_SETS}[name]
        forms = [form for form in FORMS if form not in left_out]
        for dim in options.dim:
            costs = measure(size, dim, forms, options.repeats, options.threads)
            check_figures(costs)
            for form, cost in costs.items():
                sorting = f"{costs['argsort'].seconds / cost.seconds:.1f}" if "argsort" in costs else "-"
                row = {
                    "set": f"{size.texts:,} x {size.images:,}",
                    "dim": dim,
                    "form": form,
                    "times the product": f"{cost.seconds / costs['product'].seconds:.2f}",
                    "times faster than argsort": sorting,
                    "s": f"{cost.seconds:.2f}",
                    "GiB above the features": f"{cost.peak / GIB:.2f}",
                    "R@1": " ".join(f"{figures[0]:.1f}" for figures in cost.figures),
                }
                table.field_names = list(row)
                table.add_row(list(row.values()), divider=form == forms[-1])
            print(f"{name}, {dim}: done", file=sys.stderr, flush=True)
    print(f"on CPU, {options.threads} threads")
    print(table)


if __name__ == "__main__":
    main()
