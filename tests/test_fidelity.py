"""What `experiment=` makes of the optimizer and its rates, at full size, against the released recipes.

docs/fidelity.md repeats the tables.
"""

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from lightning_models import build_module
from model.tbps import build_encoder
from tests.small_run import command
from utils.config.resolvers import register_resolvers

register_resolvers()
IDENTITIES = 11_003  # of CUHK-PEDES' training set
STEPS = 3  # in an epoch


def built(*overrides: str, name: str) -> tuple[DictConfig, dict[str, torch.nn.Parameter], Optimizer]:
    """Returns the config, the parameters by name and the optimizer; on the meta device, so that size costs nothing."""
    with command(*overrides, name=name) as cfg, torch.device("meta"):
        module = build_module(cfg, build_encoder(cfg, weights=False), IDENTITIES)
        return cfg, dict(module.named_parameters()), instantiate(cfg.optimizer)(module.named_parameters())


def of_each(optimizer: Optimizer) -> dict[str, tuple[float, float, float]]:
    """Returns parameter -> (peak learning rate, weight decay, eps)."""
    return {
        name: (group["lr"], group["weight_decay"], group["eps"])
        for group in optimizer.param_groups
        for name in group["names"]
    }


def of_each_epoch(cfg: DictConfig, optimizer: Optimizer) -> dict[str, list[tuple[float, ...]]]:
    """Returns parameter -> the rates of the steps of each epoch."""
    schedule = instantiate(cfg.scheduler)(optimizer, steps_per_epoch=STEPS, max_epochs=cfg.trainer.max_epochs)
    rates: list[list[float]] = []  # of each step, of each group
    for _ in range(cfg.trainer.max_epochs * STEPS):
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.step()
    of_groups = [[*zip(*[iter(of_group)] * STEPS, strict=True)] for of_group in zip(*rates, strict=True)]
    groups = zip(optimizer.param_groups, of_groups, strict=True)
    return {name: epochs for group, epochs in groups for name in group["names"]}


def irra_released(name: str) -> tuple[float, float]:
    """Returns (times the base rate, weight decay) that IRRA's solver/build.py gives a parameter, as RECIPES tells."""
    is_bias = name.endswith("bias")
    if re.search(r"\.(id|mlm\.head|id_\w+)\.", name):  # classifier and MLM head
        return 5, 0 if is_bias else 4e-5
    if is_bias:
        return 2, 0
    if re.search(r"\.interaction\.(text_norm|image_norm|blocks\.norm)\.", name):  # ln_pre_t, ln_pre_i, ln_post
        return 1, 4e-5
    return (5, 4e-5) if ".interaction." in name else (1, 4e-5)


@pytest.mark.parametrize("experiment", ["irra", "fmfa"])
def test_every_parameter_of_irra_has_the_released_rate_decay_and_eps(experiment: str) -> None:
    cfg, parameters, optimizer = built(f"experiment={experiment}", "dataset=cuhk_pedes", name="clip")
    assert type(optimizer) is torch.optim.Adam
    assert (cfg.trainer.max_epochs, cfg.dataset.batch_size, cfg.trainer.accumulate_grad_batches) == (60, 64, 1)
    found = of_each(optimizer)
    assert found.keys() == {name for name, parameter in parameters.items() if parameter.requires_grad}
    ours = {name for name in found if name.endswith("logit_scale")}  # IRRA's temperature is a constant
    for name in found.keys() - ours:
        times, decay = irra_released(name)
        assert found[name] == (pytest.approx(times * 1e-5), decay, 1e-3), name
    assert {found[name][:2] for name in ours} == {(1e-5, 0.0)}
    assert {irra_released(name) for name in found} >= {(1, 4e-5), (2, 0), (5, 4e-5), (5, 0)}


def test_every_parameter_of_rde_has_the_released_rate_decay_and_eps() -> None:
    cfg, parameters, optimizer = built("experiment=rde", "dataset=cuhk_pedes", name="clip")
    assert type(optimizer) is torch.optim.Adam
    assert (cfg.trainer.max_epochs, cfg.dataset.batch_size, cfg.trainer.accumulate_grad_batches) == (60, 64, 1)
    found = of_each(optimizer)
    assert found.keys() == {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert sum("_selection." in name for name in found) == 16  # three layers and a norm of each modality
    for name in found.keys() - {"encoder.backbone.model.logit_scale"}:  # TAL has no temperature to learn
        is_bias = name.endswith("bias")
        rate = 1e-3 if "_selection." in name else 2e-5 if is_bias else 1e-5
        assert found[name] == (pytest.approx(rate), 0 if is_bias else 4e-5, 1e-3), name


@pytest.mark.parametrize("experiment", ["irra", "rde"])
def test_every_epoch_of_irra_and_rde_has_the_released_rate(experiment: str) -> None:
    cfg, _, optimizer = built(f"experiment={experiment}", "dataset=cuhk_pedes", name="clip")
    peaks = {name: lr for name, (lr, _, _) in of_each(optimizer).items()}
    cosine = [(1 + math.cos(math.pi * (epoch - 5) / 55)) / 2 for epoch in range(5, 60)]
    shares = [*(0.1 + 0.9 * epoch / 5 for epoch in range(5)), *cosine]
    for name, epochs in of_each_epoch(cfg, optimizer).items():
        assert [share * peaks[name] for share in shares for _ in range(STEPS)] == pytest.approx(
            [rate for epoch in epochs for rate in epoch], rel=1e-12
        ), name


def test_pre_training_has_the_released_rates_and_decay() -> None:
    """One rate and one decay for all parameters, and IRRA's schedule over 30 epochs."""
    cfg, _, optimizer = built("experiment=pretrain", "dataset=cuhk_pedes", name="clip")
    assert type(optimizer) is torch.optim.Adam
    assert (cfg.trainer.max_epochs, cfg.dataset.batch_size, cfg.trainer.accumulate_grad_batches) == (30, 512, 1)
    found = of_each(optimizer)
    for name in found.keys() - {"encoder.backbone.model.logit_scale"}:  # a constant in the released code
        assert found[name] == (pytest.approx(1e-5), 4e-5, 1e-3), name
    cosine = [(1 + math.cos(math.pi * (epoch - 5) / 25)) / 2 for epoch in range(5, 30)]
    shares = [*(0.1 + 0.9 * epoch / 5 for epoch in range(5)), *cosine]
    rates = of_each_epoch(cfg, optimizer)[min(found)]
    assert [rate for epoch in rates for rate in epoch] == pytest.approx(
        [1e-5 * s for s in shares for _ in range(STEPS)]
    )


def test_the_circle_recipe_has_the_released_rates_and_decays() -> None:
    """One rate for adapters and the projector, 1e-4 after a fifth of the training, from 1e-6 and down to 1e-5."""
    cfg, parameters, optimizer = built("dataset=vn3k_vi", name="cir_msiglip")
    assert type(optimizer) is torch.optim.AdamW
    assert (cfg.lora.r, cfg.lora.alpha, cfg.lora.dropout) == (32, 64, 0.05)
    assert (cfg.dataset.batch_size, cfg.trainer.accumulate_grad_batches, cfg.trainer.max_epochs) == (24, 3, 60)
    found = of_each(optimizer)
    adapters = {name for name in found if ".lora_" in name}
    assert adapters
    for name, (lr, decay, eps) in found.items():
        is_matrix = parameters[name].ndim >= 2
        expected = 0.0 if not is_matrix else 0.01 if name in adapters or ".backbone." in name else 0.05
        assert (lr, decay, eps) == (1e-4, expected, 1e-8), name
    rates = of_each_epoch(cfg, optimizer)[min(adapters)]
    steps = [rate for epoch in rates for rate in epoch]
    warmup, last = 12 * STEPS, 60 * STEPS - 1
    assert steps[0] == pytest.approx(1e-6)
    assert steps[warmup] == pytest.approx(1e-4)
    assert steps[-1] == pytest.approx(1e-5)
    for step in range(warmup, last + 1):
        cosine = (1 + math.cos(math.pi * (step - warmup) / (last - warmup))) / 2
        assert steps[step] == pytest.approx(1e-5 + 9e-5 * cosine, rel=1e-9)


@pytest.mark.parametrize("term", ["mlm", "id", "simclr"])
def test_a_term_under_any_name_has_the_rate_of_new_modules(term: str) -> None:
    own = f"+loss/term@loss.terms.something={term}"
    _, parameters, optimizer = built("experiment=irra", "dataset=cuhk_pedes", "loss=sdm", own, name="clip")
    found = of_each(optimizer)
    matrices = [n for n in found if n.startswith("objective.terms.something.") and parameters[n].ndim >= 2]
    assert matrices
    assert [found[name][:2] for name in matrices] == [(pytest.approx(5e-5), 4e-5)] * len(matrices)


def test_the_temperatures_of_cpcl_have_the_rate_of_the_towers() -> None:
    _, _, optimizer = built("experiment=cpcl", "dataset=cuhk_pedes", name="clip")
    found = {name: of for name, of in of_each(optimizer).items() if name.endswith("temperature")}
    assert list(found.values()) == [(1e-5, 0.0, 1e-8)] * 2


def test_a_part_head_has_the_rate_of_new_modules() -> None:
    _, parameters, optimizer = built("head=part", "loss=part_cmr", name="clip")
    found = of_each(optimizer)
    heads = [name for name in found if name.startswith("encoder.head.") and parameters[name].ndim >= 2]
    assert heads
    assert [found[name][0] for name in heads] == pytest.approx([5e-5] * len(heads))


def documented() -> list[tuple[str, list[str], str, str]]:
    """Returns (primary config, overrides, option, value) of every option in the column "here" of docs/fidelity.md."""
    found = []
    name, overrides = "", [""]
    for line in (Path(__file__).parents[1] / "docs" / "fidelity.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("`-cn "):
            _, name, *overrides = line.split("`")[1].split()
        elif len(cells := line.split("|")) == 7:  # five columns
            options = re.findall(r"`([\w.]+)=([^`]*)`", cells[4])
            found += [(name, overrides, option, value) for option, value in options]
    return found


@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row[1][0]} {row[2]}")
def test_every_option_on_the_page_is_that_of_the_recipe(row: tuple[str, list[str], str, str]) -> None:
    name, overrides, option, value = row
    found: Any = OmegaConf.select(of_page(name, *overrides), option, throw_on_missing=True)
    assert found == OmegaConf.create({"value": yaml.safe_load(value)}).value or str(found) == value


@lru_cache
def of_page(name: str, *overrides: str) -> DictConfig:
    with command(*overrides, name=name) as cfg:
        return cfg
