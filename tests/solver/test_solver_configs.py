from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from solver.groups import split_parameters
from solver.optimizers import learning_rates

CONFIG = Path(__file__).parents[2] / "config"
OPTIMIZERS = sorted(p.stem for p in (CONFIG / "optimizer").glob("[!_]*.yaml"))
SCHEDULERS = sorted(p.stem for p in (CONFIG / "scheduler").glob("[!_]*.yaml"))


def read(group: str, choice: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose(f"{group}/{choice}", overrides=list(overrides))[group]


def parameters() -> list[tuple[str, nn.Parameter]]:
    names = [
        "encoder.backbone.model.vision_model.embeddings.patch_embedding",
        "encoder.backbone.model.logit_scale",
        "encoder.backbone.model.base_model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default",
        "encoder.head.pool",
        "objective.terms.mlm.encoder",
        "objective.terms.id.classifier",
        "objective.terms.simclr.projector",
    ]
    return [(name, nn.Parameter(torch.zeros(() if "scale" in name else (2, 2)))) for name in names]


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_every_optimizer_puts_each_module_into_its_group(choice: str):
    config = read("optimizer", choice)
    assert config.name == choice
    sizes = {g.name: len(g.parameters) for g in split_parameters(parameters(), config.param_groups)}
    assert sizes == {"default": 1, "backbone": 2, "adapters": 1, "cross": 1, "classifier": 1, "simclr": 1}
    optimizer = instantiate(config)(parameters())
    assert isinstance(optimizer, torch.optim.Adam if config.algorithm == "adam" else torch.optim.AdamW)


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_the_default_rate_moves_every_group(choice: str):
    before = learning_rates(instantiate(read("optimizer", choice))(parameters()))
    double = f"optimizer.param_groups.default.lr={2 * before['default']}"
    after = learning_rates(instantiate(read("optimizer", choice, double))(parameters()))
    assert after == pytest.approx({group: 2 * lr for group, lr in before.items()})


def test_rates_of_irra_are_those_of_the_paper():
    optimizer = instantiate(read("optimizer", "irra_no_decay", "optimizer.param_groups.default.lr=1e-5"))(parameters())
    new = {"adapters": 1e-4, "cross": 5e-5, "classifier": 5e-5, "simclr": 5e-5}
    assert learning_rates(optimizer) == pytest.approx({"default": 1e-5, "backbone": 1e-5, **new})
    assert optimizer.param_groups[0]["lr_start"] == 1e-6


@pytest.mark.parametrize("recipe", ["tbps_clip", "irra"])
def test_decay_and_no_decay_differ_in_the_pre_trained_weights_only(recipe: str):
    decays = {
        choice: {
            group.name: group.weight_decay
            for group in split_parameters(parameters(), read("optimizer", choice).param_groups)
        }
        for choice in (f"{recipe}_decay", f"{recipe}_no_decay")
    }
    decay, no_decay = decays.values()
    assert no_decay == {**decay, "backbone": 0.0}
    assert min(decay.values()) > 0


def test_any_setting_of_any_group_is_an_override_and_a_misspelt_one_an_error():
    groups = ("backbone", "adapters", "cross", "classifier", "simclr")
    overrides = [f"optimizer.param_groups.{group}.lr=3e-4" for group in groups]
    overrides += ["optimizer.param_groups.cross.betas=[0.8,0.9]", "optimizer.param_groups.simclr.lr_end=2e-6"]
    optimizer = instantiate(read("optimizer", "cir", *overrides))(parameters())
    assert learning_rates(optimizer) == {"default": 1e-4, **dict.fromkeys(groups, 3e-4)}
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert by_name["cross"]["betas"] == (0.8, 0.9)
    assert by_name["simclr"]["lr_end"] == 2e-6
    with pytest.raises(ConfigCompositionException, match="weight_dekay"):
        read("optimizer", "cir", "optimizer.param_groups.cross.weight_dekay=0.1")


@pytest.mark.parametrize("choice", SCHEDULERS)
def test_every_schedule_runs_over_the_optimizers_groups(choice: str):
    config = read("scheduler", choice)
    assert config.name == choice
    optimizer = instantiate(read("optimizer", "tbps_clip_decay"))(parameters())
    schedule = instantiate(config)(optimizer, steps_per_epoch=3, max_epochs=60)
    start = learning_rates(optimizer)
    for _ in range(15):
        optimizer.step()
        schedule.step()
    peak = learning_rates(optimizer)
    scales = {"default": 1, "backbone": 1, "adapters": 10}
    assert peak == pytest.approx({group: 1e-5 * scales.get(group, 5) for group in peak})
    assert (start["default"] < peak["default"]) == (choice == "cosine")


def test_multistep_has_the_milestones_of_part_level_cmr():
    optimizer = instantiate(read("optimizer", "cir"))(parameters())
    schedule = instantiate(read("scheduler", "multistep"))(optimizer, steps_per_epoch=1, max_epochs=60)
    drops = []
    for epoch in range(1, 60):
        before = learning_rates(optimizer)["default"]
        optimizer.step()
        schedule.step()
        if learning_rates(optimizer)["default"] < before:
            drops.append(epoch)
    assert drops == [20, 40, 50, 55]
