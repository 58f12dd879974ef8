"""No tensor on the wrong device: training, augmentation, ranking and pseudo labels where the GPU is a stand-in.

`stand_in_gpu` computes real numbers under CUDA's rules, forward, backward and in the optimizer. Fake CUDA tensors of
PyTorch go through the forward pass under CUDA's own autocast, which the stand-in does not have.

Caught, as the planted mistakes at the end show: tensors of two devices in one operator, in backward too; NumPy and
random generators of the CPU; operators that CUDA has no kernel for (where PyTorch is built for CUDA); whatever makes
the host wait for the device within a training step: values that are read, sizes that depend on values, copies.

Not caught: a number of the CPU (a tensor without dimensions) among those of the GPU and, outside of a training step,
rows of the GPU picked by an index of the CPU, both of which CUDA accepts; a tensor that nothing reads; kernels that
lack a type of numbers; the order of streams, memory that is given away too soon or not pinned; whether memory suffices;
several GPUs; what torch.compile makes of a tower; how kernels round, and NaN of AMP; what runs in threads and processes
of its own. `benchmarks/gpu.py` is for those.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.apply_func import move_data_to_device
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import trainer
from data.batch import (
    IMAGE,
    IMAGE_VIEWS,
    INDEX,
    MLM_LABELS,
    MLM_POSITIONS,
    NOT_PREDICTED,
    PIDS,
    SEEDS,
    SOURCE,
    TEXT_VIEWS,
    VIEWS,
    Batch,
)
from data.loading.dummy_batch import blank_batch
from data.views.build import PROVIDED_BY, Views
from data.views.on_device import DeviceViews
from data.views.transforms import RandomResizedCrop
from lightning_models import LitTBPS, build_module
from model.features import Features
from model.labeling import EncodedPairs
from model.objectives import LossReport
from model.objectives.build import PROVIDERS
from model.prototypes import PrototypeMemory
from model.prototypes.labeler import ClusteringResult, Labeler, Labels
from model.tbps import build_encoder
from tests.small_run import ANY_METHOD, CONFIG_DIR
from tests.stand_in_gpu import CUDA, StandInGpu, stand_in_gpu
from utils.training.gather import gather_rows


def names(folder: str) -> list[str]:
    """Returns the choices of a config group."""
    return sorted(file.stem for file in (CONFIG_DIR / folder).glob("[!_]*.yaml"))


PAIRS, LENGTH = 6, 12
SMALL: Final = (
    f"backbone.max_length={LENGTH}",
    f"dataset.batch_size={PAIRS}",
    "dataset_root_dir=.",
    "run_dir=.",
    "trainer.log_every_n_steps=100",
)
FAMILIES: Final = {  # folder of `hub_folders` -> config/backbone/ of that family, a size of four rows of patches
    "clip": ("tiny_clip", "32x32"),
    "siglip": ("tiny_siglip", "32x32"),
    "resnet": ("tiny_resnet_bert", "64x32"),
    "vit": ("vit_bert", "32x32"),
}
ALL_TERMS: Final = ("loss=itc", *(f"+loss/term@loss.terms.{t}={t}" for t in names("loss/term") if t != "itc"))
WAYS: Final[Mapping[str, Sequence[str]]] = {
    **{preset: (f"loss={preset}",) for preset in names("loss")},
    **{f"head={head}": ("loss=sdm", f"head={head}") for head in names("head")},
    "outliers": ("loss=cpcl", "loss.terms.pcm.start=member"),
    "anchors": ("loss=hybrid_circle", "loss.terms.cross_modal_circle.scope=anchor"),
    "lora": ("loss=irra", "lora=default", "lora.r=2"),
    "dora": ("loss=irra", "lora=dora", "lora.r=2"),
    "recomputed": ("loss=irra", "backbone.gradient_checkpointing=true"),
    "grad_cache": ("loss=tbps_clip", "grad_cache.micro_batch=4"),
    "frozen": ("loss=sdm", "backbone.freeze_text=true", "backbone.freeze_token_table=true"),
}


def config(folders: Mapping[str, Path], family: str, *overrides: str) -> DictConfig:
    """Returns a composed config with what its losses need of a head and of pseudo labels."""
    backbone, size = FAMILIES[family]
    model = (f"backbone={backbone}", f"backbone.folder={folders[family]}", f"img_size_str={size}")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("demo", overrides=[*model, *SMALL, *overrides])
        terms = cfg.loss.terms.values()
        needs = {need for term in terms for need in get_class(term._target_).needs}
        needs |= {"pair_weights" for term in terms if term.get("weighted")}
        provide = [PROVIDERS[need] for need in ("parts", "image_labels", "pair_weights") if need in needs]
        return compose("demo", overrides=[*model, *SMALL, *provide, *overrides]) if provide else cfg


def filled_batch(module: LitTBPS, cfg: DictConfig) -> Batch:
    """Returns a batch of three persons with what the losses of `module` need, drawn at random."""
    draw = torch.Generator().manual_seed(0)
    batch = blank_batch(module.objective.needs, PAIRS, cfg.img_size, LENGTH)
    for view in IMAGE_VIEWS & batch.keys():
        batch[view].random_(256, generator=draw)
    for view in TEXT_VIEWS & batch.keys():
        batch[view].ids.random_(4, 40, generator=draw)
        batch[view].mask.copy_(torch.arange(LENGTH) < torch.randint(3, LENGTH, (PAIRS, 1), generator=draw))
    if MLM_LABELS in batch:
        places = torch.arange(PAIRS) * LENGTH + 1
        labels = torch.full((PAIRS, LENGTH), NOT_PREDICTED)
        labels[:, 1] = 5
        batch |= {MLM_LABELS: labels, MLM_POSITIONS: places}
    return batch | {PIDS: torch.arange(PAIRS) // 2, INDEX: torch.arange(PAIRS)}


def label(module: LitTBPS) -> None:
    """Gives the pairs pseudo labels, an outlier on either side among them, where `module` learns from such."""
    if module.labeler is None:
        return
    found = Labels(torch.tensor([0, 0, 1, 1, 2, -1]), torch.tensor([0, 0, 1, 1, -1, 2]))
    if not isinstance(module.labeler, Labeler):
        module.labeler.preset(PAIRS, module.device)
        return
    features = torch.randn(PAIRS, module.encoder.embed_dim, generator=torch.Generator().manual_seed(1))
    place, pids = torch.arange(PAIRS), torch.arange(PAIRS) // 2
    pairs = EncodedPairs(*(features.to(module.device),) * 2, place, pids, pids, torch.ones(()), torch.ones(()))
    module.labeler.take(ClusteringResult(found, found), pairs, module.objective, seed=0)


def losses(module: LitTBPS, batch: Batch) -> tuple[Features, LossReport]:
    torch.manual_seed(0)
    features = module.features(batch, epoch=0.5)
    return features, module.objective(features)


def train(module: LitTBPS, batch: Batch, cfg: DictConfig, gpu: StandInGpu) -> LossReport:
    """Takes a training step on the stand-in; from the batch's arrival on, `gpu` counts the waits of that step alone."""
    module.to(CUDA)
    label(module)
    batch = move_data_to_device(batch, CUDA)
    optimizer = instantiate(cfg.optimizer)(module.named_parameters())
    gpu.waits.clear()
    features, report = losses(module, batch)
    report.total.backward()
    module.objective.after_step(features)
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    views = features.accessed & {*VIEWS}
    encoded = [features.image(view) if view in IMAGE_VIEWS else features.text(view) for view in views]
    tensors = [*module.parameters(), *module.buffers(), *(part for view in encoded for part in vars(view).values())]
    assert {tensor.device for tensor in tensors} == {CUDA}
    return report


def check_step(cfg: DictConfig) -> None:
    """Passes if a step on the stand-in works, does not wait for it, and has the losses that the CPU has."""
    torch.manual_seed(0)
    module = build_module(cfg, build_encoder(cfg), 3).train()
    batch = filled_batch(module, cfg)
    label(module)
    expected = losses(deepcopy(module), batch)[1].raw
    with stand_in_gpu() as gpu:
        report = train(module, batch, cfg, gpu)
        assert gpu.waits == []
        for name, loss in report.raw.items():
            torch.testing.assert_close(
                loss.cpu(), expected[name].detach(), rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("way", WAYS)
def test_a_training_step(way: str, hub_folders: dict[str, Path]) -> None:
    check_step(config(hub_folders, "siglip" if way == "grad_cache" else "clip", *WAYS[way]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_term_on_every_family(family: str, hub_folders: dict[str, Path]) -> None:
    check_step(config(hub_folders, family, *ALL_TERMS))


@pytest.mark.skipif(
    not hasattr(torch._C, "_ensureCUDADeviceGuardSet"),
    reason="PyTorch before 2.10 asks a driver where fake CUDA tensors are indexed",
)
@pytest.mark.parametrize(("family", "dtype"), zip(FAMILIES, [torch.bfloat16, torch.float16] * 2, strict=True), ids=str)
def test_every_term_under_autocast_of_cuda(
    family: str, dtype: torch.dtype, hub_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(hub_folders, family, *ALL_TERMS)
    with torch.device("meta"):
        module = build_module(cfg, build_encoder(cfg, weights=False), 3).train()
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr("model.objectives.base.gradient_shares", lambda *_: {})  # backward would ask a driver
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device=CUDA)
        for memory in (part for part in module.modules() if isinstance(part, PrototypeMemory)):
            memory.prototypes = memory.prototypes.new_zeros(3, memory.prototypes.shape[1])
        assert module.labeler is not None
        module.labeler.preset(PAIRS, CUDA)
        batch = move_data_to_device(filled_batch(module, cfg), CUDA)
        with torch.autocast("cuda", dtype):
            report = losses(module, batch)[1]
            assert module.encoder.backbone.image(batch[IMAGE]).pooled.dtype == dtype
    assert report.total.device == CUDA
    assert report.total.dtype == torch.float32


@pytest.mark.parametrize("name", names("aug"))
def test_views_built_on_the_device_are_those_of_the_cpu(name: str) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        augmentation = instantiate(compose("demo", overrides=[f"aug={name}", "img_size_str=32x16"]).aug)
    needs = [view for view in IMAGE_VIEWS if getattr(augmentation, PROVIDED_BY[view]) is not None]
    views, seeds = Views(needs, LENGTH, augmentation), list(range(24))
    source = torch.randint(256, (len(seeds), 3, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = views.of_images(source, seeds)
    with stand_in_gpu():
        made = DeviceViews(views)({SOURCE: source, SEEDS: seeds, INDEX: None}, CUDA)
        assert made.keys() == {*needs, INDEX}
        for view in needs:
            assert made[view].device == CUDA
            differences = (made[view].cpu().int() - expected[view].int()).abs()
            assert differences.float().mean() < 0.5, view  # resized in fp32, not in uint8


RUNS: Final = {  # waits in a step that logs nothing (for GradScaler's verdict), whether Adam is fused, the run
    "cpcl": (
        1,
        None,
        "experiment=cpcl",
        "backbone=tiny_clip",
        "lora=default",
        "grad_cache.micro_batch=4",
        "trainer.precision=16-mixed",
        "trainer.gradient_clip_val=1.0",
    ),
    "part_cmr": (0, True, "experiment=part_cmr", "backbone=tiny_siglip", "+loss/term@loss.terms.efa=efa"),
}
SHORT: Final = ("trainer=gpu", "trainer.limit_train_batches=3", "trainer.log_every_n_steps=9", "logger=csv")


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run(name: str, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels, trains, ranks and reports; then goes on for another epoch."""
    waits, fused, *method = RUNS[name]
    paths = (f"dataset_root_dir={small_root}", f"run_dir={tmp_path}")
    last = tmp_path / "checkpoints" / "last.ckpt"
    seen: list[tuple[int, Any]] = []
    start = LitTBPS.on_train_batch_start

    def watched(module: LitTBPS, batch: Batch, batch_idx: int) -> None:
        seen.append((len(gpu.waits), module.trainer.optimizers[0].param_groups[0]["fused"]))
        start(module, batch, batch_idx)

    monkeypatch.setattr(LitTBPS, "on_train_batch_start", watched)
    for epochs, continued in ((1, ()), (2, (f"ckpt_path={last}",))):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            overrides = [*method, *ANY_METHOD, *SHORT, *paths, f"trainer.max_epochs={epochs}", *continued]
            cfg = compose("demo", overrides=overrides)
        with stand_in_gpu() as gpu:
            metrics = trainer.train(cfg)
        assert all(0 <= value <= 100 for value in metrics.values())
        counts = [count for count, _ in seen]
        assert [b - a for a, b in pairwise(counts)] == [waits] * 2, gpu.waits[counts[0] : counts[-1]]
        assert {kernel for _, kernel in seen} == {fused}
        seen.clear()
    weights = torch.load(last, weights_only=True)["state_dict"]
    assert {weight.device.type for weight in weights.values()} == {"cpu"}


@pytest.mark.parametrize("fused", [True, False])
def test_the_logged_norm_of_gradients_has_no_scale(
    fused: bool, hub_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning takes the scale of fp16 away before it is logged, but where a fused optimizer does so."""
    cfg = config(hub_folders, "clip", "loss=sdm", "optimizer.algorithm=adamw", "trainer.precision=16-mixed")
    module, logged = build_module(cfg, build_encoder(cfg), 3).train(), {}
    with stand_in_gpu():
        module.to(CUDA)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        optimizer = instantiate(cfg.optimizer, fused=fused)(module.named_parameters())
        total = losses(module, move_data_to_device(filled_batch(module, cfg), CUDA))[1].total
        expected = torch.autograd.grad(total, module.encoder.backbone.token_table, retain_graph=True)[0]
        scaler.scale(total).backward()
        if not fused:
            scaler.unscale_(optimizer)
        for name, parameter in module.named_parameters():
            if not name.endswith("token_embedding.weight"):
                parameter.grad = None
        plugin = SimpleNamespace(scaler=scaler)
        module._trainer = SimpleNamespace(precision_plugin=plugin, global_step=cfg.trainer.log_every_n_steps - 1)
        monkeypatch.setattr(module, "log", logged.__setitem__)
        module.on_before_optimizer_step(optimizer)
        assert float(logged["train/grad_norm"]) == pytest.approx(float(expected.norm()), rel=1e-4)


def test_rows_are_gathered_on_the_device(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with stand_in_gpu() as gpu:
            rows = torch.arange(6.0, device=CUDA).view(3, 2).requires_grad_()
            gathered = gather_rows(rows)
            gathered.square().sum().backward()
            assert gpu.waits == []
            assert rows.grad is not None
            assert gathered.device == rows.grad.device == CUDA
            assert torch.equal(rows.grad.cpu(), 2 * torch.arange(6.0).view(3, 2))
    finally:
        dist.destroy_process_group()


# Mistakes, planted to see that they are caught: functions of rows (B, D) on the GPU, with gradient.


class BackwardOnTheCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.ones(gradient.shape)


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.center = torch.zeros(4)

    def forward(self, rows: Tensor) -> Tensor:
        return rows - self.center


MISTAKES: Final[Mapping[str, Callable[[Tensor], Any]]] = {
    "numbers of the CPU": lambda rows: rows * torch.arange(len(rows))[:, None],
    "a mask of the CPU": lambda rows: rows.masked_fill(torch.zeros(rows.shape, dtype=torch.bool), 0),
    "a condition of the CPU": lambda rows: torch.where(torch.ones(4) > 0, rows, 0),
    "labels of the CPU": lambda rows: F.cross_entropy(rows, torch.arange(len(rows))),
    "a column of the CPU": lambda rows: torch.cat([rows, torch.zeros(len(rows), 1)], dim=1),
    "a number of the CPU, stacked": lambda rows: torch.stack([rows.sum(), torch.zeros(())]),
    "a table of the CPU": lambda rows: torch.zeros(10)[rows.detach().long().clamp(0, 9)],
    "a product with the CPU": lambda rows: rows @ torch.ones(4, 4),
    "a result on the CPU": lambda rows: torch.mm(rows.detach(), rows.detach().T, out=torch.zeros(len(rows), len(rows))),
    "through NumPy": lambda rows: rows + torch.from_numpy(rows.detach().cpu().numpy()),
    "NumPy of the GPU": lambda rows: rows.detach().numpy(),
    "NumPy made of the GPU": lambda rows: np.asarray(rows.detach()),
    "drawn by the CPU": lambda rows: rows + torch.randn(rows.shape, generator=torch.Generator(), device=rows.device),
    "the CPU in backward": lambda rows: BackwardOnTheCpu.apply(rows),
    "a constant that is no buffer": lambda rows: Unregistered().to(rows.device)(rows),
}
WAITING: Final[Mapping[str, Callable[[Tensor], Any]]] = {
    "a value": lambda rows: rows.sum().item(),
    "a condition": lambda rows: bool((rows > 0).any()),
    "a list": lambda rows: rows.tolist(),
    "a copy": lambda rows: rows.detach().cpu(),
    "rows under a mask": lambda rows: rows[rows[:, 0] > 0],
    "places": lambda rows: (rows > 0).nonzero(),
    "distinct values": lambda rows: rows.detach().unique(),
    "a comparison": lambda rows: torch.equal(rows, rows),
    "rows in a list": lambda rows: rows[[1, 0]],
    "rows by an index of the CPU": lambda rows: rows[torch.tensor([1, 0])],
    "numbers from a list": lambda rows: torch.tensor([1.0, 2.0], device=rows.device),
    "a tensor of the CPU, moved": lambda rows: rows + torch.ones(4).to(rows.device),
}
AT_ONCE: Final[Mapping[str, Callable[[Tensor], Any]]] = {
    "a number of the CPU": lambda rows: rows * torch.tensor(2.0),
    "made there": lambda rows: rows + torch.arange(4, device=rows.device) + torch.zeros_like(rows) + rows.new_ones(4),
    "a slice, set": lambda rows: rows.detach().clone()[:, 0].fill_(1),
    "under a mask, set": lambda rows: rows.detach().clone().masked_fill_(rows > 0, 0),
    "moved asynchronously": lambda rows: rows + torch.ones(4).to(rows.device, non_blocking=True),
}


def rows_on_gpu() -> Tensor:
    return torch.randn(3, 4).to(CUDA).requires_grad_()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_an_error(name: str) -> None:
    with stand_in_gpu(), pytest.raises(RuntimeError, match=r"found cuda:0 and cpu|generator of the GPU|numpy"):
        MISTAKES[name](rows_on_gpu()).sum().backward()


@pytest.mark.skipif(torch.version.cuda is None, reason="this build of PyTorch does not know what CUDA can")
def test_an_operator_that_cuda_lacks_is_an_error() -> None:
    with stand_in_gpu(), pytest.raises(NotImplementedError, match="CUDA has no kernel"):
        torch.histogram(rows_on_gpu(), 3)


@pytest.mark.parametrize("name", [*WAITING, *AT_ONCE])
def test_waiting_for_the_device_is_seen(name: str) -> None:
    with stand_in_gpu() as gpu:
        rows = rows_on_gpu()
        gpu.waits.clear()
        {**WAITING, **AT_ONCE}[name](rows)
    assert bool(gpu.waits) == (name in WAITING)
    assert all(wait.startswith("tests/test_device.py:") for wait in gpu.waits)


def mask_of_the_cpu(pids: Tensor) -> Tensor:
    return torch.eye(len(pids), dtype=torch.bool)


def mask_that_waits(pids: Tensor) -> Tensor:
    return pids[:, None] == pids + 0 * int(pids.max())


def noisy_crop(self: RandomResizedCrop, images: Tensor, draws: Tensor) -> Tensor:
    return (images + torch.randint(2, images.shape)).to(torch.uint8)


def no_buffer(self: nn.Module, name: str, tensor: Tensor, persistent: bool = True) -> None:
    setattr(self, name, tensor)


@pytest.mark.parametrize(
    ("planted", "mistake", "message"),
    [
        ("model.objectives.circle.same_identity", mask_of_the_cpu, "found cuda:0 and cpu"),
        (
            "model.objectives.circle.same_identity",
            mask_that_waits,
            r"test_device\.py:\d+ aten._local_scalar_dense",
        ),
        ("model.backbones.base.Backbone.register_buffer", no_buffer, "found cuda:0 and cpu"),
    ],
)
def test_a_mistake_in_a_loss_or_a_backbone_is_caught(
    planted: str, mistake: Any, message: str, hub_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planted, mistake)
    with pytest.raises((RuntimeError, AssertionError), match=message):
        check_step(config(hub_folders, "clip", "loss=pure_circle"))


def test_a_mistake_in_a_view_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomResizedCrop, "__call__", noisy_crop)
    with pytest.raises(RuntimeError, match="found cuda:0 and cpu"):
        test_views_built_on_the_device_are_those_of_the_cpu("light")
