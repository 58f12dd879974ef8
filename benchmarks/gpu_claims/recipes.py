"""Claim: every recipe in the table of planned peaks trains on the card, and takes the planned memory."""

import os
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from math import isfinite
from multiprocessing import get_context

import torch

from benchmarks.gpu_claims.bench import GIB, Bench
from benchmarks.gpu_claims.steps import Recipe, Trainee, all_recipes, seconds_each
from lightning_plan import trace_step

AGREE = (0.85, 1.1)  # allowed ratio of the allocated peak to the planned peak
WORKSPACE = 0.15  # GiB that cuBLAS and cuDNN may take beside tensors


def recipes(bench: Bench) -> None:
    """Trains each recipe for some steps. At the same time, other processes without the GPU compute the plans."""
    runs = all_recipes(bench)
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(max(1, min(6, cores // 2)), get_context("spawn"), _without_gpu) as pool:
        plans = {recipe: pool.submit(planned, recipe) for recipe in runs}
        try:
            bench.parts({recipe.label: partial(_measure, bench, recipe, plans[recipe]) for recipe in runs})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def planned(recipe: Recipe) -> float:
    """Returns the planned peak of a step in GiB, without the reserve."""
    cfg = recipe.compose()
    return trace_step(cfg, cfg.dataset.batch_size).step.total / GIB


def _without_gpu() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.nice(10)
    torch.set_num_threads(1)


def _measure(bench: Bench, recipe: Recipe, plan: Future[float]) -> None:
    trainee = Trainee(recipe.compose(), bench.device)
    trainee.step()  # creates the state of the optimizer
    allocated, reserved = trainee.peak()
    losses: list[torch.Tensor] = []
    problem = ""
    seconds = seconds_each(bench, lambda: losses.append(trainee.step()), most=2.0)
    loss = losses[-1].item()
    try:
        expected = plan.result(timeout=max(1.0, bench.left()))
    except Exception as error:  # the measured values are still printed
        expected, problem = None, repr(error)
    share = None if expected is None else allocated / expected
    bench.row(
        recipe=recipe.label,
        batch=str(trainee.size),
        precision=trainee.precision,
        planned_GiB=expected,
        allocated_GiB=allocated,
        of_planned=share,
        reserved_GiB=reserved,
        ms_a_step=1000 * seconds,
        pairs_a_second=trainee.pairs / seconds,
        loss=loss,
    )
    bench.expect(all(isfinite(value) for value in torch.stack(losses).tolist()), "a loss is not finite")
    bench.expect(not trainee.stray, f"{trainee.stray} bytes on the device belong to no parameter and no buffer")
    bench.expect(expected is not None, f"it cannot be planned: {problem}")
    if share is not None and bench.on_gpu:
        most = AGREE[1] + WORKSPACE / expected
        bench.expect(AGREE[0] <= share <= most, f"a step takes {share:.2f} times what is planned")
