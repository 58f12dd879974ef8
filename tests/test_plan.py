"""task=plan: what is traced agrees with what a real step takes, for every way to train, without any file."""

import gc
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import trainer
from data.batch import Batch
from data.loading.dummy_batch import blank_batch, published_identities
from lightning_models import LitTBPS, build_module
from lightning_plan import trace_step
from model.prototypes import PrototypeMemory
from model.tbps import build_encoder
from utils.errors import UserError
from utils.memory.trace import no_cycle_collection

CONFIG = Path(__file__).parents[1] / "config"
BATCH = 16
SMALL = (
    "optimizer.algorithm=adamw",
    "img_size_str=64x32",
    "dataset_root_dir=nowhere",
    "run_dir=.",
    f"dataset.batch_size={BATCH}",
)


def config(*overrides: str, name: str = "demo") -> DictConfig:
    trainer.register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose(name, overrides=[*SMALL, *overrides])


def real_module(cfg: DictConfig) -> tuple[LitTBPS, Batch]:
    """A module of `cfg` on the CPU and a batch for it, with pseudo labels where it wants them."""
    torch.manual_seed(0)
    identities = published_identities(cfg.dataset.name, cfg.dataset.proportion)
    module = build_module(cfg, build_encoder(cfg, weights=False), identities).train()
    batch = blank_batch(module.objective.needs, BATCH, cfg.img_size, cfg.backbone.max_length)
    for memory in (part for part in module.modules() if isinstance(part, PrototypeMemory)):
        memory.prototypes = torch.rand(identities, memory.prototypes.shape[1])
    if module.labeler is not None:
        module.labeler.preset(BATCH)
    return module, batch


def measured_peak(cfg: DictConfig) -> int:
    """Bytes that the allocator gives out for the second training step, on top of weights, states and batch."""
    module, batch = real_module(cfg)
    optimizer = instantiate(cfg.optimizer, fused=True)(module.named_parameters())

    def step() -> None:
        module.objective(module.features(batch)).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()  # what earlier tests left behind, freed in this step, would count as given back by it
    with no_cycle_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    events = watched.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes, key=itemgetter(0))))


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=hybrid_circle",),
        ("loss=hybrid_circle", "lora=default", "lora.dropout=0"),
        ("loss=hybrid_circle", "lora=dora", "lora.dropout=0"),
        ("loss=hybrid_circle", "backbone.gradient_checkpointing=true"),
        ("loss=hybrid_circle", "grad_cache.micro_batch=4"),
        ("experiment=fmfa", "img_size_str=64x32"),
        ("experiment=cpcl", "img_size_str=64x32", f"dataset.batch_size={BATCH}"),
        ("experiment=part_cmr", "img_size_str=64x32"),
        ("experiment=rde", "img_size_str=64x32", f"dataset.batch_size={BATCH}"),
        ("experiment=part_cmr", "backbone=tiny_clip", "img_size_str=64x32"),
    ],
    ids=" ".join,
)
def test_the_traced_peak_is_the_measured_one(overrides: tuple[str, ...]) -> None:
    cfg = config(*overrides)
    traced = trace_step(cfg, BATCH).step
    module, batch = real_module(cfg)
    inputs = sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
    weights = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    trained = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    assert traced.weights == pytest.approx(weights, rel=0.05)  # whole blocks
    assert traced.optimizer == pytest.approx(2 * trained, rel=0.15)  # a step's number for each parameter
    assert traced.gradients + traced.activations - inputs == pytest.approx(measured_peak(cfg), rel=0.1)


def test_parameters_are_those_of_the_module() -> None:
    cfg = config("lora=dora")
    module, _ = real_module(cfg)
    traced = trace_step(cfg, 2)
    assert traced.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert traced.trainable == sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_accumulated_batches_keep_the_gradients_of_those_before() -> None:
    alone, several = (trace_step(config(f"trainer.accumulate_grad_batches={n}"), 8).step for n in (1, 2))
    assert several.total > alone.total
    assert several.weights == alone.weights


def test_eight_bit_states_and_amp_take_less() -> None:
    plain = trace_step(config(), BATCH).step
    eight_bit = trace_step(config("optimizer.algorithm=adamw8bit"), BATCH).step
    assert eight_bit.optimizer < plain.optimizer / 3
    amp = trace_step(config("trainer.precision=bf16-mixed"), BATCH).step
    assert amp.activations < plain.activations
    assert trace_step(config("trainer.precision=16-mixed"), BATCH).step == amp


def test_processes_share_the_batch_and_have_buckets() -> None:
    alone, two = trace_step(config(), 8).step, trace_step(config("trainer.devices=2"), 8).step
    assert two.total >= alone.total + alone.weights // 2


@pytest.mark.parametrize(
    ("name", "overrides", "millions"),
    [
        ("clip", ("loss=itc",), (149, 151)),
        ("m_siglip", ("lora=default",), (370, 400)),
        ("resnet50_bert", ("experiment=part_cmr",), (130, 250)),
    ],
)
def test_published_backbones_need_no_folder(name: str, overrides: tuple[str, ...], millions: tuple[int, int]) -> None:
    cfg = config("plan.memory_gb=80", "img_size_str=128x64", *overrides, name=name)
    traced = trace_step(cfg, 4)
    assert millions[0] < traced.parameters / 1e6 < millions[1]
    assert traced.step.weights >= 4 * traced.parameters


def test_the_task_prints_a_table_and_returns_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures = trainer.plan(config("plan.memory_gb=2", "plan.reserve_gb=0.5"))
    printed = capsys.readouterr().out
    assert f"the largest that fits: {figures['plan/largest']}" in printed
    assert f"{figures['plan/peak_gb']:.2f}" in printed
    assert figures["plan/largest"] > BATCH


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.precision=16-true",), r"trainer\.precision: 16-true cannot be planned"),
        (("grad_cache.micro_batch=4", "loss=irra"), r"loss\.terms\.mlm reads tokens"),
        (("img_size_str=60x32",), r"img_size_str: 60x32 is not divisible"),
    ],
)
def test_what_training_refuses_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises((UserError, InstantiationException), match=message):  # trainer.py makes one sentence of either
        trace_step(config(*overrides), 4)
