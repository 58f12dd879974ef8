"""Peak memory and time of EFA, forward and backward, compared with the plain form of its equations.

    uv run benchmarks/efa_memory.py [--batches 16 32 64] [--chunk-size 8] [--threads 2]

Every measurement runs in a separate process: 192 patches (384x128 in 16-pixel patches), captions of 77 tokens, width
512, fp32. The peak is the memory allocated in addition to the tokens; gradients of the tokens count. On a GPU it is
torch.cuda.max_memory_allocated. On a CPU it is the sum of the profiler's allocator events. This is exact to the byte
and contains temporaries inside kernels; the resident set would also count libraries and pages not yet freed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from prettytable import PrettyTable
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from model.objectives import efa

PATCHES, LENGTH, WIDTH = 192, 77, 512
MARGIN_TEXT, MARGIN_IMAGE = 0.2, 0.8
MIB = 2**20

Loss = Callable[..., Tensor]


class Cost(NamedTuple):
    """The cost of one forward and backward pass: peak in bytes, seconds, and the loss, which all forms must share."""

    peak: int
    seconds: float
    loss: float


def plain_efa(text: Tensor, image: Tensor, mask: Tensor, margin_text: float, margin_image: float) -> Tensor:
    """Returns the loss of eqs. (5)-(12) of FMFA as written: whole matrices, lambda = tau = 1, sigma = 1 / N."""
    inner = text @ image.mT  # (B, L, N)
    low, high = inner.amin(dim=2, keepdim=True), inner.amax(dim=2, keepdim=True)
    relative = (inner - low) / (high - low)
    sparse = torch.where(relative >= 1 / image.shape[1], relative, 0)
    joint = sparse / sparse.sum(dim=2, keepdim=True) @ image  # (B, L, D)
    patches = mask.new_ones(image.shape[:2])
    text, image, joint = (F.normalize(tokens, dim=2) for tokens in (text, image, joint))

    def ranking(a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor, margin: float) -> Tensor:
        cosines = torch.einsum("ald,bmd->ablm", a, b)
        closest = torch.where(b_mask[None, :, None, :], cosines, -torch.inf).amax(dim=3)
        hard = torch.where(a_mask[:, None, :], closest, -torch.inf).logsumexp(dim=2)  # (B, B)
        own = torch.eye(len(hard), dtype=torch.bool, device=hard.device)
        gaps = hard - hard.diagonal()[:, None] + margin
        return torch.where(own, -torch.inf, gaps).logsumexp(dim=1).mean()

    directions = [
        ranking(text, mask, joint, mask, margin_text),
        ranking(joint, mask, text, mask, margin_text),
        ranking(image, patches, joint, mask, margin_image),
        ranking(joint, mask, image, patches, margin_image),
    ]
    return torch.stack(directions).sum()


def measure(loss: Loss, batch: int, threads: int, device: str) -> Cost:
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    text, image = (torch.randn(batch, length, WIDTH, generator=draw).to(device) for length in (LENGTH, PATCHES))
    words = torch.randint(LENGTH // 3, LENGTH + 1, (batch, 1), generator=draw)
    mask = (torch.arange(LENGTH) < words).to(device)

    def step(pairs: int) -> float:
        tokens = text[:pairs].requires_grad_(), image[:pairs].requires_grad_()
        value = loss(*tokens, mask[:pairs], MARGIN_TEXT, MARGIN_IMAGE)
        value.backward()
        return value.item()

    step(2)  # libraries allocate their workspace
    peak = (peak_on_gpu if device == "cuda" else peak_on_cpu)(partial(step, batch))
    start = time.perf_counter()
    value = step(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return Cost(peak, time.perf_counter() - start, value)


def peak_on_gpu(work: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = watched.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes, key=itemgetter(0))))


def in_own_process(loss: Loss, batch: int, threads: int, device: str) -> Cost:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, loss, batch, threads, device).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64], help="pairs")
    parser.add_argument("--chunk-size", type=int, default=8, help="as in config/loss/term/efa.yaml")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "KINETO_LOG_LEVEL": "99"}

    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = PrettyTable()
    for batch in options.batches:
        plain, chunked = (
            in_own_process(loss, batch, options.threads, device)
            for loss in (plain_efa, partial(efa, chunk_size=options.chunk_size))
        )
        if abs(plain.loss - chunked.loss) > 1e-4 * abs(plain.loss):
            raise AssertionError(f"batch {batch}: the plain form gives {plain.loss}, EFA {chunked.loss}")
        row = {
            "batch": batch,
            "plain MiB": f"{plain.peak / MIB:.0f}",
            "EFA MiB": f"{chunked.peak / MIB:.0f}",
            "times smaller": f"{plain.peak / chunked.peak:.1f}",
            "plain s": f"{plain.seconds:.2f}",
            "EFA s": f"{chunked.seconds:.2f}",
            "times faster": f"{plain.seconds / chunked.seconds:.1f}",
        }
        table.field_names = list(row)
        table.add_row(list(row.values()))
        print(f"{batch}: done", file=sys.stderr, flush=True)
    print(f"on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, {options.threads} threads")
    print(table)


if __name__ == "__main__":
    main()
