"""Claims about options: GradCache, 8-bit optimizer states, compiled towers."""

from functools import partial
from importlib.util import find_spec
from math import isfinite
from typing import Final

import torch

from benchmarks.efa_memory import MIB
from benchmarks.gpu_claims.bench import GIB, Bench
from benchmarks.gpu_claims.steps import Recipe, Trainee, seconds_each, some_recipes
from benchmarks.grad_cache import BASE, TINY, Cost, measure
from lightning_plan import trace_step

FLAT: Final = 1.1  # largest allowed ratio of the largest peak to the smallest peak
LOSS: Final = {True: 1e-2, False: 1e-4}  # on a GPU (bf16) or not (fp32) -> allowed relative difference of losses
AGREE: Final = (0.85, 1.1)  # allowed ratio of the allocated peak to the planned peak


def grad_cache(bench: Bench) -> None:
    """Takes a step of hybrid_circle's losses at growing batches, with GradCache and, for small batches, without."""
    micro_batch, plain, cached = (64, (32, 64), (64, 256, 512)) if bench.on_gpu else (4, (8,), (8, 16))
    peaks: dict[int, int] = {}
    losses: dict[int, float] = {}

    def take(batch: int, own: int | None) -> None:
        try:
            cost = measure(BASE if bench.on_gpu else TINY, batch, own, torch.get_num_threads(), bench.device.type)
        except torch.OutOfMemoryError:
            if own is not None:
                raise
            bench.row(batch=str(batch), micro_batch="-", peak_MiB="does not fit", seconds=None, pairs_a_second=None)
            return
        _grad_cache_row(bench, batch, own, cost)
        if own is not None:
            peaks[batch] = cost.peak
        known = losses.setdefault(batch, cost.loss)
        gap = abs(known - cost.loss) / abs(known)
        bench.expect(gap <= LOSS[bench.on_gpu], f"the loss is {cost.loss}, but {known} plain")

    bench.parts(
        {f"plain, {batch} pairs": partial(take, batch, None) for batch in plain}
        | {f"GradCache, {batch} pairs": partial(take, batch, micro_batch) for batch in cached}
    )
    if len(peaks) > 1:
        growth = max(peaks.values()) / min(peaks.values())
        bench.note(f"the peak grows {growth:.3f} times from {min(peaks)} to {max(peaks)} pairs")
        bench.expect(growth <= FLAT, f"the peak grows {growth:.2f} times from {min(peaks)} to {max(peaks)} pairs")


def _grad_cache_row(bench: Bench, batch: int, micro_batch: int | None, cost: Cost) -> None:
    bench.row(
        batch=str(batch),
        micro_batch=str(micro_batch or "-"),
        peak_MiB=cost.peak / MIB,
        seconds=cost.seconds,
        pairs_a_second=batch / cost.seconds,
    )


def adamw8bit(bench: Bench) -> None:
    """Trains a recipe with 8-bit states and with the usual states."""
    if not bench.on_gpu:
        bench.leave_out("because it needs a GPU")
    elif find_spec("bitsandbytes") is None:
        bench.leave_out("because bitsandbytes is not installed")
    else:
        bench.parts({algorithm: partial(_optimize, bench, algorithm) for algorithm in ("adamw", "adamw8bit")})


def _optimize(bench: Bench, algorithm: str) -> None:
    cfg = Recipe("clip").compose(f"optimizer.algorithm={algorithm}")
    trainee = Trainee(cfg, bench.device)
    losses = [trainee.step() for _ in range(3)]
    allocated, reserved = trainee.peak()
    seconds = seconds_each(bench, trainee.step, most=1.0)
    planned = trace_step(cfg, trainee.size).step.total / GIB
    loss = losses[-1].item()
    bench.row(
        optimizer=algorithm,
        planned_GiB=planned,
        allocated_GiB=allocated,
        reserved_GiB=reserved,
        ms_a_step=1000 * seconds,
        loss_of_step_3=loss,
    )
    bench.expect(isfinite(loss), f"{algorithm}: the loss is {loss}")
    share = allocated / planned
    bench.expect(AGREE[0] <= share <= AGREE[1], f"{algorithm}: a step takes {share:.2f} times what is planned")


def compiled(bench: Bench) -> None:
    """Takes steps with compiled towers and with plain towers, and encodes for evaluation between them."""
    if not bench.on_gpu:
        bench.leave_out("because it needs a GPU")
        return
    bench.parts({recipe.label: partial(_compile, bench, recipe) for recipe in some_recipes(bench)[::-1]})


def _compile(bench: Bench, recipe: Recipe) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    trainee = Trainee(recipe.compose(), bench.device)
    plain = seconds_each(bench, trainee.step, most=1.5)
    trainee.module.encoder.backbone.compile_towers()
    first = seconds_each(bench, trainee.step, most=0.0)
    graphs = counters["stats"]["unique_graphs"]
    again = seconds_each(bench, trainee.step, most=1.5)
    after = counters["stats"]["unique_graphs"]
    view = next(view for view in trainee.batch if view.startswith("image"))
    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
        trainee.module.eval()
        trainee.module.encoder.encode_image(trainee.batch[view])
        trainee.module.encoder.encode_text(*trainee.batch["text"])
        trainee.module.train()
    trainee.step()
    bench.row(
        recipe=recipe.label,
        plain_ms=1000 * plain,
        compiled_ms=1000 * again,
        gain=plain / again,
        first_two_steps_s=2 * first,
        graphs=str(graphs),
        more_while_training=str(after - graphs),
        more_for_evaluation=str(counters["stats"]["unique_graphs"] - after),
        graph_breaks=str(sum(counters["graph_break"].values())),
    )
    bench.expect(after == graphs, f"{after - graphs} recompilations while nothing changes")
    bench.expect(plain / again >= 1.0, f"compiled steps are {again / plain:.2f} times as long")
