"""Claim: attention is fused, matrix products and attention take most of a step, and a step never waits for the GPU."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.steps import Recipe, Trainee, seconds_each, some_recipes

STEPS: Final = 3
ATTENTION: Final = {  # operator -> form of attention
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash on the CPU",
    "aten::_scaled_dot_product_attention_math": "plain",
}
KINDS: Final = (  # kind of a kernel, pattern of its name; the first match decides
    ("attention", re.compile(r"flash|fmha|attention|sdpa", re.I)),
    ("matrix products", re.compile(r"gemm|nvjet|xmma|cutlass|cublas|gemv|splitk", re.I)),
    ("copies", re.compile(r"memcpy|memset", re.I)),
    ("optimizer", re.compile(r"multi_tensor|fused_?adam", re.I)),
)
SYNCHRONIZES: Final = "synchronizing CUDA operation"
ROOT: Final = Path(__file__).parents[2]


class Kernel(NamedTuple):
    """A kernel that ran on the GPU from `start` to `end`, in nanoseconds."""

    name: str
    start: int
    end: int


def kernels(bench: Bench) -> None:
    """Profiles some steps of two recipes, and counts synchronizations with the device."""
    if not bench.on_gpu:
        bench.leave_out("because it needs a GPU: kernels, idle time and synchronisations")
    bench.parts({recipe.label: partial(_profile, bench, recipe) for recipe in some_recipes(bench)})


def _profile(bench: Bench, recipe: Recipe) -> None:
    trainee = Trainee(recipe.compose(), bench.device)
    trainee.step()  # loads the kernels
    seconds = seconds_each(bench, trainee.step, most=1.5)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=activities) as watched:
        for _ in range(STEPS):
            trainee.step()
        bench.synchronize()
    events = list(watched.profiler.kineto_results.events())
    forms = Counter(ATTENTION[event.name()] for event in events if event.name() in ATTENTION)
    ran = [Kernel(e.name(), e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if is_on_gpu(e)]
    shares = shares_by_kind(ran)
    with counted_synchronizations() as places:
        for _ in range(STEPS):
            trainee.step()
    busy = busy_time(ran) / 1e9 / STEPS
    bench.row(
        recipe=recipe.label,
        attention=", ".join(f"{form} x {count // STEPS}" for form, count in forms.items()),
        matrix_products=shares.get("matrix products"),
        attention_share=shares.get("attention"),
        copies=shares.get("copies"),
        optimizer=shares.get("optimizer"),
        kernels_a_step=len(ran) / STEPS if ran else None,
        ms_a_step=1000 * seconds,
        ms_busy=1000 * busy if ran else None,
        idle=1 - busy / seconds if ran else None,
        synchronizations_a_step=sum(places.values()) / STEPS if bench.on_gpu else None,
    )
    bench.expect(bool(ran) or not bench.on_gpu, "the profiler sees no kernel of the GPU")
    if ran:
        bench.note(f"most of the GPU's time, ms a step: {', '.join(longest(ran, STEPS))}")
        bench.expect(bool(shares.get("attention")), "no attention kernel is known by its name; see those above")
    for place, count in places.most_common(8):
        bench.note(f"{count / STEPS:.1f} synchronizations a step: {place}")
    bench.expect("plain" not in forms, f"{forms['plain'] // STEPS} attentions a step are not fused")
    bench.expect(not places, f"a step waits for the GPU {sum(places.values()) / STEPS:.1f} times")


def is_on_gpu(event: Any) -> bool:
    """Returns whether a profiler event is work of a GPU, and not only a time range shown on the GPU's track."""
    return event.device_type() == torch.autograd.DeviceType.CUDA and not event.name().startswith(
        ("ProfilerStep", "aten::", "Optimizer.")
    )


def shares_by_kind(ran: Iterable[Kernel]) -> Mapping[str, float]:
    """Returns the share of each of `KINDS`, and of "other", in the time of all kernels."""
    times: Counter[str] = Counter()
    for kernel in ran:
        kind = next((kind for kind, pattern in KINDS if pattern.search(kernel.name)), "other")
        times[kind] += kernel.end - kernel.start
    return {kind: time / times.total() for kind, time in times.items()}


def busy_time(ran: Iterable[Kernel]) -> int:
    """Returns the nanoseconds during which at least one kernel ran."""
    busy, until = 0, 0
    for _, start, end in sorted(ran, key=lambda kernel: kernel.start):
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return busy


def longest(ran: Iterable[Kernel], steps: int, count: int = 10) -> list[str]:
    """Returns the `count` kernels that took the most time, each with its milliseconds per step."""
    times: Counter[str] = Counter()
    for kernel in ran:
        times[kernel.name] += kernel.end - kernel.start
    return [f"{name[:70]} {time / 1e6 / steps:.2f}" for name, time in times.most_common(count)]


@contextmanager
def counted_synchronizations() -> Iterator[Counter[str]]:
    """Counts synchronizations with the GPU in its context, by line of code. Without a GPU it counts nothing."""
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            places.update(place_of(w) for w in caught if SYNCHRONIZES in str(w.message))


def place_of(warning: warnings.WarningMessage) -> str:
    """Returns the file and line of a warning, relative to the project's folder if the file is inside it."""
    path = Path(warning.filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{warning.lineno}"
