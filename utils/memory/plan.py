"""The memory that a training step of a config needs, computed without a GPU, and the largest batch that fits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, NamedTuple

from omegaconf import DictConfig, OmegaConf
from prettytable import PrettyTable

from utils.errors import UserError, check_positive
from utils.memory.trace import GIB, GRADIENTS, OTHER, STATES, WEIGHTS, StepMemory

MOST: Final = 16_384  # pairs; the largest batch that is tried
# Options that reduce the memory of a step; the option that changes the result least comes first.
REMEDIES: Final[Mapping[str, Any]] = {
    "backbone.gradient_checkpointing": True,
    "optimizer.algorithm": "adamw8bit",
    "grad_cache.micro_batch": 16,
}


class Traced(NamedTuple):
    """A traced training step, and the numbers of all and of trainable parameters of its module."""

    step: StepMemory
    parameters: int
    trainable: int


Trace = Callable[[DictConfig, int], Traced]  # (config, pairs in one process's batch) -> a traced step


@dataclass(frozen=True)
class Plan:
    """The result of `make_plan`; as a string: a table and advice.

    memory, reserve: bytes of the GPU, and the part of them that tensors cannot use.
    varied: the key that the plan varies: the batch of a process or, with GradCache, the micro-batch.
    size, largest: the given value of this key, and the largest that fits; `MOST` means "at least".
    remedies: (overrides, bytes of a step with them); each entry adds an override to the previous one.
    """

    title: str
    traced: Traced
    memory: int
    reserve: int
    varied: str
    size: int
    largest: int
    remedies: list[tuple[str, int]]

    @property
    def fits(self) -> bool:
        return self.peak <= self.memory

    @property
    def peak(self) -> int:
        """The peak in bytes, including the reserve."""
        return self.traced.step.total + self.reserve

    @property
    def advice(self) -> list[str]:
        """A sentence that says whether the step fits, and a sentence for each remedy."""
        asked, memory = f"{self.varied}={self.size}", f"{gib(self.memory)} GiB"
        if not self.largest:
            verdict = f"{asked} does not fit {memory}, and no smaller value does"
        else:
            largest = f"at least {self.largest}" if self.largest >= MOST else self.largest
            verdict = f"{asked} {'fits' if self.fits else 'does not fit'} {memory}; the largest that fits: {largest}"
        return [verdict, *(f"with {keys} it takes {gib(size + self.reserve)} GiB" for keys, size in self.remedies)]

    def __str__(self) -> str:
        table = PrettyTable(["peak of a training step", "GiB"], align="r")
        table.align["peak of a training step"] = "l"
        step = self.traced.step
        sizes = (step.weights, step.gradients, step.optimizer, step.activations, self.reserve)
        for name, size in zip((WEIGHTS, GRADIENTS, STATES, OTHER, "reserve"), sizes, strict=True):
            table.add_row([name, gib(size)], divider=name == "reserve")
        table.add_row(["together", gib(self.peak)])
        return "\n".join(
            [
                f"plan    {self.title}",
                f"model   {self.traced.parameters:,} parameters, {self.traced.trainable:,} of them trained",
                str(table),
                *self.advice,
            ]
        )


def gib(size: int) -> str:
    """Returns a number of bytes in GiB, as text."""
    return f"{size / GIB:.2f}"


def make_plan(cfg: DictConfig, trace: Trace) -> Plan:
    """Returns the plan of `cfg` for one training process with its share of the batch.

    Raises:
        UserError: if plan.memory_gb is not larger than plan.reserve_gb, or if training would refuse `cfg` too.
    """
    memory, reserve = (round(size * GIB) for size in (cfg.plan.memory_gb, cfg.plan.reserve_gb))
    if not 0 <= reserve < memory:
        raise UserError(
            f"plan.memory_gb: {cfg.plan.memory_gb} given, expected more than plan.reserve_gb={cfg.plan.reserve_gb}, "
            "the part that tensors cannot use, which is at least 0"
        )
    cached, batch = cfg.grad_cache.micro_batch, cfg.dataset.batch_size
    check_positive("dataset.batch_size", batch)
    batch = ceil(batch / processes(cfg))
    traced = trace(cfg, batch)

    def total(size: int) -> int:
        changed = {} if cached is None else {"grad_cache.micro_batch": size}
        return trace(_with(cfg, changed), size if cached is None else batch).step.total

    together = cfg.dataset.num_instance if cached is None and cfg.dataset.sampler == "identity" else 1
    size, most = (batch, MOST) if cached is None else (cached, batch)
    limit, needed = memory - reserve, traced.step.total
    return Plan(
        title=f"{cfg.loss.name} on {cfg.backbone.name} ({cfg.lora.name}), {cfg.dataset.label}, "
        f"{cfg.img_size[0]}x{cfg.img_size[1]}, batch {batch}, {cfg.trainer.precision}",
        traced=traced,
        memory=memory,
        reserve=reserve,
        varied="dataset.batch_size" if cached is None else "grad_cache.micro_batch",
        size=size,
        largest=largest_that_fits(total, limit, size, needed, most=most, multiple_of=together),
        remedies=list(_remedies(cfg, trace, batch, limit)) if needed > limit else [],
    )


def largest_that_fits(
    total: Callable[[int], int], limit: int, start: int, at_start: int, *, most: int, multiple_of: int = 1
) -> int:
    """Returns the largest multiple of `multiple_of` up to `most` with ``total(it) <= limit``, 0 if there is none.

    The next guess is where a line through the two measurements nearest to the limit reaches the limit. If two such
    guesses did not halve the interval, the next guess is its middle. `total` is measured for the result.

    Args:
        total: a function that grows with its argument.
        start, at_start: an argument, and the value of `total` for it.
    """
    found = {start: at_start}
    left: list[int] = []  # lengths of the interval between the largest that fits and the smallest that does not
    while True:
        low = max((size for size, taken in found.items() if taken <= limit), default=0)
        high = min((size for size, taken in found.items() if taken > limit), default=most + multiple_of)
        first, last = low // multiple_of + 1, -(-high // multiple_of) - 1
        if first > last:
            return low // multiple_of * multiple_of
        if high in found:
            left.append(high - low)
        if len(found) == 1:
            guess = 2 * low or high // 2
        elif len(left) > 2 and 2 * left[-1] > left[-3]:
            guess = (low + high) // 2
        else:
            (a, at_a), (b, at_b) = sorted(found.items(), key=lambda point: abs(point[1] - limit))[:2]
            guess = a + int((limit - at_a) * (b - a) / (at_b - at_a)) if at_a != at_b else (low + high) // 2
        size = min(max(guess // multiple_of, first), last) * multiple_of
        found[size] = total(size)


def processes(cfg: DictConfig) -> int:
    """Returns the number of training processes; trainer.devices counts as 1 unless it is a positive number."""
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    return max(devices, 1) * cfg.trainer.num_nodes


def _with(cfg: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    changed = cfg.copy()
    for key, value in changes.items():
        OmegaConf.update(changed, key, value)
    return changed


def _remedies(cfg: DictConfig, trace: Trace, batch: int, limit: int) -> Iterator[tuple[str, int]]:
    """Yields (overrides, bytes of a step with them), with one more override each time, until the step fits."""
    chosen: dict[str, Any] = {}
    for key, value in REMEDIES.items():
        if OmegaConf.select(cfg, key) == value:
            continue
        try:
            total = trace(_with(cfg, chosen | {key: value}), batch).step.total
        except UserError:
            continue  # GradCache does not work with a loss that reads tokens
        chosen[key] = value
        yield " ".join(f"{key}={str(value).lower()}" for key, value in chosen.items()), total
        if total <= limit:
            return
