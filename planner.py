"""What a training step of a config takes, before a GPU is paid for: the step itself, traced on fake tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from prettytable import PrettyTable
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from transformers.initialization import no_init_weights

from data.annotations.layouts import layout_of
from data.batch import IMAGE_VIEWS, LABELS, MLM_LABELS, MLM_POSITIONS, TEXT_VIEWS, Batch, Tokens
from data.masking import MASKED_SHARE
from data.synthetic import SyntheticSpec
from lightning_models import LitTBPS, build_encoder, build_module
from utils.errors import UserError
from utils.memory import GIB, OTHER, LikeCuda, MemoryTracker, track_gradients

AMP: Final[Mapping[str, torch.dtype | None]] = {
    "32": None,
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
WEIGHTS, GRADIENTS, STATES = "weights", "gradients", "optimizer state"
MOST: Final = 16_384
# What makes a step smaller, that which changes the result least first.
REMEDIES: Final[Mapping[str, Any]] = {
    "backbone.gradient_checkpointing": True,
    "optimizer.algorithm": "adamw8bit",
    "grad_cache.micro_batch": 16,
}


@dataclass(frozen=True)
class Step:
    """Bytes at the peak of a training step. activations: the batch and 16-bit copies of weights included."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Plan:
    """What `make_plan` found out; as a string, a table and what follows from it.

    varied: the key whose value `size` is given and `largest` would fit, `MOST` standing for even more: the batch of
    a process or, under GradCache, which makes little of that, the micro-batch.
    remedies: (overrides, bytes of a step with them), each more than the one before.
    """

    title: str
    parameters: int
    trainable: int
    step: Step
    memory: int
    reserve: int
    varied: str
    size: int
    largest: int
    remedies: list[tuple[str, int]]

    @property
    def fits(self) -> bool:
        return self.step.total + self.reserve <= self.memory

    @property
    def peak_gb(self) -> float:
        return (self.step.total + self.reserve) / GIB

    def __str__(self) -> str:
        table = PrettyTable(["peak of a training step", "GiB"], align="r")
        table.align["peak of a training step"] = "l"
        step = self.step
        sizes = (step.weights, step.gradients, step.optimizer, step.activations, self.reserve)
        for name, size in zip((WEIGHTS, GRADIENTS, STATES, "activations", "reserve"), sizes, strict=True):
            table.add_row([name, _gib(size)])
        table.add_divider()
        table.add_row(["together", _gib(sum(sizes))])
        largest = f"{'at least ' if self.largest >= MOST else ''}{self.largest}" if self.largest else "none"
        return "\n".join(
            [
                f"plan    {self.title}",
                f"model   {self.parameters:,} parameters, {self.trainable:,} of them trained",
                str(table),
                f"{self.varied}={self.size} {'fits' if self.fits else 'does not fit'} {_gib(self.memory)} GiB; "
                f"the largest that fits: {largest}.",
                *(f"With {overrides} it takes {_gib(size + self.reserve)} GiB." for overrides, size in self.remedies),
            ]
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def make_plan(cfg: DictConfig) -> Plan:
    """Returns the plan of `cfg`, without data, weights or a GPU.

    Captions are taken to fill all their positions. One process of several has its share of the batch, and the
    buckets of DDP.

    Raises:
        UserError: what training would refuse as well, or a precision that cannot be traced.
    """
    memory, reserve = (round(size * GIB) for size in (cfg.plan.memory_gb, cfg.plan.reserve_gb))
    cached = cfg.grad_cache.micro_batch
    batch = ceil(cfg.dataset.batch_size / _processes(cfg))
    step, parameters, trainable = _trace(cfg, batch)

    def total(size: int) -> int:
        changed = {} if cached is None else {"grad_cache.micro_batch": size}
        return _trace(_with(cfg, changed), size if cached is None else batch)[0].total

    together = cfg.dataset.num_instance if cached is None and cfg.dataset.sampler == "identity" else 1
    size, most = (batch, MOST) if cached is None else (cached, batch)
    return Plan(
        title=f"{cfg.loss.name} on {cfg.backbone.name} ({cfg.lora.name}), {cfg.dataset.label}, "
        f"{cfg.img_size[0]}x{cfg.img_size[1]}, batch {batch}, {cfg.trainer.precision}",
        parameters=parameters,
        trainable=trainable,
        step=step,
        memory=memory,
        reserve=reserve,
        varied="dataset.batch_size" if cached is None else "grad_cache.micro_batch",
        size=size,
        largest=largest_that_fits(total, memory - reserve, size, step.total, most=most, multiple_of=together),
        remedies=list(_remedies(cfg, batch, memory - reserve)) if step.total > memory - reserve else [],
    )


def largest_that_fits(
    total: Callable[[int], int], limit: int, start: int, at_start: int, *, most: int, multiple_of: int = 1
) -> int:
    """Returns the largest multiple of `multiple_of` up to `most` with ``total(it) <= limit``, 0 if there is none.

    The next guess is where the line through the two measurements next to the limit meets it; the answer is measured.

    Args:
        total: grows with its argument.
        start, at_start: a value, and what `total` gives for it.
    """
    found = {start: at_start}
    while True:
        low = max((size for size, taken in found.items() if taken <= limit), default=0)
        high = min((size for size, taken in found.items() if taken > limit), default=most + multiple_of)
        first, last = low // multiple_of + 1, -(-high // multiple_of) - 1
        if first > last:
            return low // multiple_of * multiple_of
        if len(found) == 1:
            guess = 2 * low or high // 2
        else:
            (a, at_a), (b, at_b) = sorted(found.items(), key=lambda point: abs(point[1] - limit))[:2]
            guess = a + int((limit - at_a) * (b - a) / (at_b - at_a)) if at_a != at_b else (low + high) // 2
        size = min(max(guess // multiple_of, first), last) * multiple_of
        found[size] = total(size)


def measure(
    module: LitTBPS,
    optimizer: Optimizer,
    batch: Batch,
    amp: torch.dtype | None,
    *,
    accumulated: int = 1,
    processes: int = 1,
) -> Step:
    """Runs a training step as it is after the first one, when the optimizer has its state, and returns its peak.

    Args:
        module: on the device of `batch`; its gradients are overwritten.
        amp: of autocast; None: fp32.
        accumulated: batches of a step; from the second one on, the gradients of those before are there.
        processes: of which this is one; the others are imagined.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    buckets = [torch.empty_like(parameter) for parameter in trained] if processes > 1 else []
    tracker = MemoryTracker()
    tracker.count([*module.parameters(), *module.buffers()], WEIGHTS)
    states = [value for state in optimizer.state.values() for value in state.values()]
    tracker.count([value for value in states if isinstance(value, Tensor)], STATES)
    tracker.count(buckets, GRADIENTS)
    tracker.count([t for value in batch.values() for t in (value if isinstance(value, tuple) else [value])], OTHER)
    hooks = track_gradients(module, tracker, GRADIENTS)

    def loss() -> Tensor:
        with torch.autocast(trained[0].device.type, dtype=amp, enabled=amp is not None):
            return module.objective(module.features(batch, gather=lambda rows: torch.cat([rows] * processes))).total

    with tracker:
        for _ in range(min(accumulated, 2)):
            loss().backward()
        optimizer.step()
    optimizer.zero_grad()
    for hook in hooks:
        hook.remove()
    return Step(*(tracker.peak.get(kind, 0) for kind in (WEIGHTS, GRADIENTS, STATES, OTHER)))


def blank_batch(needs: frozenset[str], size: int, img_size: Sequence[int], length: int) -> Batch:
    """Returns a training batch of `size` pairs with what the losses need, see `data.batch`; all of it is zero."""
    ids = torch.zeros(size, length, dtype=torch.int64)
    batch: Batch = {view: torch.zeros(size, 3, *img_size, dtype=torch.uint8) for view in IMAGE_VIEWS}
    batch |= {view: Tokens(ids.clone(), torch.ones_like(ids, dtype=torch.bool)) for view in TEXT_VIEWS}
    batch |= {label: torch.zeros(size, dtype=torch.int64) for label in LABELS}
    batch |= {MLM_LABELS: ids, MLM_POSITIONS: torch.zeros(ceil(MASKED_SHARE * ids.numel()), dtype=torch.int64)}
    return {key: value for key, value in batch.items() if key in needs}


class AdamW8bitStates(Optimizer):
    """Holds what bitsandbytes' AdamW8bit holds; its step changes nothing.

    Two states of a byte per weight and, for every 256 of them, two scales in fp32; small parameters stay in fp32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            small = parameter.numel() < 4096
            states = [torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8) for _ in range(2)]
            scales = [] if small else [parameter.new_zeros(ceil(parameter.numel() / 256)) for _ in range(2)]
            if parameter not in self.state:
                self.state[parameter] = dict(enumerate([*states, *scales]))


def _trace(cfg: DictConfig, batch_size: int) -> tuple[Step, int, int]:
    """Returns the step of `batch_size` pairs, the number of all parameters, and of the trained ones."""
    with FakeTensorMode(), LikeCuda():
        with no_init_weights():
            encoder = build_encoder(cfg, weights=False)
        module = build_module(cfg, encoder, _identities(cfg)).train()
        numbers = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        step = measure(
            module,
            _optimizer(cfg, module),
            blank_batch(module.objective.needs, batch_size, cfg.img_size, cfg.backbone.max_length),
            _amp(cfg),
            accumulated=cfg.trainer.accumulate_grad_batches,
            processes=_processes(cfg),
        )
    return step, sum(number for number, _ in numbers), sum(number for number, trained in numbers if trained)


def _optimizer(cfg: DictConfig, module: LitTBPS) -> Optimizer:
    """Returns the optimizer as it is on a GPU."""
    if cfg.optimizer.algorithm == "adamw8bit":
        return AdamW8bitStates([parameter for parameter in module.parameters() if parameter.requires_grad])
    return instantiate(cfg.optimizer, fused=cfg.optimizer.fused is not False)(module.named_parameters())


def _amp(cfg: DictConfig) -> torch.dtype | None:
    precision = str(cfg.trainer.precision)
    if precision not in AMP:
        raise UserError(f"trainer.precision={precision} cannot be planned; task=plan knows {', '.join(AMP)}")
    return AMP[precision]


def _identities(cfg: DictConfig) -> int:
    """Returns how many identities the training set has, as published: no dataset needs to be there."""
    official = layout_of(cfg.dataset.name).official
    identities = official["train"].ids if official else SyntheticSpec().train
    return ceil(identities * cfg.dataset.proportion)


def _processes(cfg: DictConfig) -> int:
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    return max(devices, 1) * cfg.trainer.num_nodes


def _with(cfg: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    changed = cfg.copy()
    for key, value in changes.items():
        OmegaConf.update(changed, key, value)
    return changed


def _remedies(cfg: DictConfig, batch: int, limit: int) -> Iterator[tuple[str, int]]:
    """Yields overrides and the bytes of a step with them, one more each time, until it fits."""
    chosen: dict[str, Any] = {}
    for key, value in REMEDIES.items():
        if OmegaConf.select(cfg, key) == value:
            continue
        try:
            total = _trace(_with(cfg, chosen | {key: value}), batch)[0].total
        except UserError:
            continue  # a loss that reads tokens has no use for GradCache
        chosen[key] = value
        yield " ".join(f"{key}={str(value).lower()}" for key, value in chosen.items()), total
        if total <= limit:
            return
