"""Training steps of a config as in Lightning, with full-size models, random weights and drawn batches."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.efa_memory import peak_on_cpu
from benchmarks.gpu_claims.bench import GIB, Bench
from benchmarks.plan import HYBRID, LORA, RUNS
from data.batch import (
    IMAGE_VIEWS,
    INDEX,
    MLM_LABELS,
    MLM_POSITIONS,
    NOT_PREDICTED,
    PIDS,
    TEXT_MASKED,
    TEXT_VIEWS,
    Batch,
    Tokens,
)
from data.loading.dummy_batch import blank_batch, published_identities
from lightning_models import LitTBPS, build_module
from model.features import Features
from model.prototypes import PrototypeMemory
from model.tbps import build_encoder
from utils.config.resolvers import register_resolvers
from utils.training.precision import AUTOCAST

CONFIG: Final = Path(__file__).parents[2] / "config"
TINY: Final = ("img_size_str=64x32", "dataset.batch_size=8", "trainer=gpu", "dataset_root_dir=nowhere")


class Recipe(NamedTuple):
    """A primary config with overrides. size: more overrides, which make it small."""

    name: str
    overrides: tuple[str, ...] = ()
    size: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return " ".join([f"-cn {self.name}", *self.overrides])

    def compose(self, *more: str) -> DictConfig:
        return composed(self.name, *self.overrides, *self.size, *more)


def composed(name: str, *overrides: str) -> DictConfig:
    """Returns the config that `trainer.py` would compose."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose(name, overrides=["run_dir=.", *overrides])


def all_recipes(bench: Bench) -> list[Recipe]:
    """Returns the recipes in the table of planned peaks. Without a GPU: every kind of objective on tiny backbones."""
    if bench.on_gpu:
        return [Recipe(*run) for run in RUNS]
    methods = (f"experiment={method}" for method in ("irra", "fmfa", "cpcl", "part_cmr", "rde"))
    return [Recipe("demo", overrides, TINY) for overrides in ((), (LORA,), *((method,) for method in methods))]


def some_recipes(bench: Bench) -> list[Recipe]:
    """Returns two recipes: CLIP with all weights and losses on tokens, and mSigLIP with LoRA and four image views."""
    if bench.on_gpu:
        return [Recipe("clip", ("experiment=irra",)), Recipe("m_siglip", (HYBRID, LORA))]
    return [Recipe("demo", ("experiment=irra",), TINY), Recipe("demo", (LORA,), TINY)]


class Trainee:
    """A module in training, with weights, optimizer and batch on the device. Its steps are as in Lightning.

    Args:
        cfg: config of the training, `trainer.precision` included.
        batch_size: number of pairs. None: as in `cfg`.
        captions: tokens of each caption, as many as pairs. None: captions fill all positions.
    """

    def __init__(
        self,
        cfg: DictConfig,
        device: torch.device,
        batch_size: int | None = None,
        captions: Tensor | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.precision = str(cfg.trainer.precision)
        self.size = batch_size or cfg.dataset.batch_size
        self._accumulated = cfg.trainer.accumulate_grad_batches
        self._clip = cfg.trainer.gradient_clip_val
        identities = published_identities(cfg.dataset.name, cfg.dataset.proportion)
        before = requested(device)
        with device:  # a GPU draws 370 million random weights quickly
            self.module = build_module(cfg, build_encoder(cfg, weights=False), identities).train()
        weights = [*self.module.parameters(), *self.module.buffers()]
        self.stray = requested(device) - before - size_of(weights) if device.type == "cuda" else 0
        self.module.to(device)
        self.batch = drawn_batch(cfg, self.module, self.size, device, captions)
        for memory in (part for part in self.module.modules() if isinstance(part, PrototypeMemory)):
            shape = identities, memory.prototypes.shape[1]
            memory.prototypes = nn.functional.normalize(torch.rand(shape, device=device), dim=1)
        if self.module.labeler is not None:
            self.module.labeler.preset(self.size, device)
        self.optimizer = instantiate(cfg.optimizer)(self.module.named_parameters())
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "16-mixed")

    @property
    def pairs(self) -> int:
        """Number of pairs of a step, over all batches whose gradients are accumulated."""
        return self.size * self._accumulated

    def loss(self, precision: str | None = None) -> tuple[Tensor, Features]:
        """Returns the loss of the batch with its graph, in the AMP mode of `precision`. None: as in the config."""
        dtype = AUTOCAST[precision or self.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            features = self.module.features(self.batch)
            return self.module.objective(features).total, features

    def step(self) -> Tensor:
        """Takes a step and returns the loss of its last batch."""
        for _ in range(self._accumulated):
            loss, features = self.loss()
            self.scaler.scale(loss / self._accumulated).backward()
            if self.module.labeler is not None:
                self.module.objective.after_step(features)
            del features
        if self._clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()

    def peak(self) -> tuple[float, float | None]:
        """Takes a step and returns its peak in GiB: allocated, and reserved by the allocator of a GPU."""
        if self.device.type == "cpu":
            states = [leaf for leaf in tree_leaves(list(self.optimizer.state.values())) if isinstance(leaf, Tensor)]
            inputs = [leaf for leaf in tree_leaves(self.batch) if isinstance(leaf, Tensor)]
            there = size_of([*self.module.parameters(), *self.module.buffers(), *states, *inputs])
            return (there + peak_on_cpu(self.step)) / GIB, None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB


def seconds_each(bench: Bench, work: Callable[[], object], most: float) -> float:
    """Returns the seconds of a call of `work`, over 2 to 20 calls, as many as fit in `most` seconds."""
    calls, taken = 0, 0.0
    bench.synchronize()
    start = time.perf_counter()
    while calls < 2 or (calls < 20 and taken * (calls + 1) / calls < most):
        work()
        bench.synchronize()
        calls, taken = calls + 1, time.perf_counter() - start
    return taken / calls


def drawn_batch(
    cfg: DictConfig, module: LitTBPS, size: int, device: torch.device, captions: Tensor | None = None
) -> Batch:
    """Returns a batch of `size` pairs, two per person, with random pixels and words. `captions` is as in `Trainee`."""
    draw = torch.Generator().manual_seed(1)
    batch = blank_batch(module.objective.needs, size, cfg.img_size, cfg.backbone.max_length)
    words = module.encoder.backbone.vocab_size
    for view in (batch[name] for name in IMAGE_VIEWS if name in batch):
        view.random_(256, generator=draw)
    for view in (batch[name] for name in TEXT_VIEWS if name in batch):
        view.ids.random_(words, generator=draw)
    batch[INDEX] = torch.arange(size)
    if PIDS in batch:
        batch[PIDS] = batch[INDEX] // 2
    if captions is not None:
        for name in (name for name in TEXT_VIEWS if name in batch):
            ids = batch[name].ids
            tokens = Tokens(ids, torch.arange(ids.shape[1]) < captions[:, None])
            batch[name] = tokens if module.fixed_length else tokens.cut()
    if MLM_LABELS in batch:
        labels = torch.full_like(batch[TEXT_MASKED].ids, NOT_PREDICTED)
        there = batch[TEXT_MASKED].mask.flatten().nonzero().squeeze(1)
        count = len(batch[MLM_POSITIONS]) * len(there) // batch[MLM_LABELS].numel()
        places = there[torch.randperm(len(there), generator=draw)[:count]].sort().values
        labels.view(-1)[places] = torch.randint(words, places.shape, generator=draw)
        batch |= {MLM_LABELS: labels, MLM_POSITIONS: places}
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)


def size_of(tensors: Sequence[Tensor]) -> int:
    storages: dict[int, Any] = {id(t.untyped_storage()): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def requested(device: torch.device) -> int:
    """Returns the bytes that tensors on a GPU have requested, or 0 on a CPU."""
    return torch.cuda.memory_stats().get("requested_bytes.all.current", 0) if device.type == "cuda" else 0
