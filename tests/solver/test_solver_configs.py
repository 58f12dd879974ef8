from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Adam, AdamW

from solver.groups import ParamGroup, split_parameters
from solver.optimizers import learning_rates

CONFIG = Path(__file__).parents[2] / "config"
OPTIMIZERS = sorted(p.stem for p in (CONFIG / "optimizer").glob("[!_]*.yaml"))
NO_DECAY = {"tbps_clip_decay": "tbps_clip_no_decay", "irra": "irra_no_decay"}
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
        "objective.terms.any_name.encoder",
    ]
    return [(name, nn.Parameter(torch.zeros(() if "scale" in name else (2, 2)))) for name in names]


def settings(choice: str, *overrides: str) -> list[ParamGroup]:
    """Returns the group of each parameter, in order: patch, temperature, adapter, head, loss."""
    groups = split_parameters(parameters(), read("optimizer", choice, *overrides).param_groups)
    return [next(group for group in groups if name in group.parameters) for name, _ in parameters()]


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_in_every_optimizer_heads_and_losses_of_any_name_have_the_rate_of_new_modules(choice: str):
    config = read("optimizer", choice)
    assert config.name == choice
    patch, temperature, adapter, head, term = settings(choice)
    assert head is term or choice == "rde"  # whose code has a rate of its own for its head
    assert patch.lr <= adapter.lr
    new = {"irra": 5, "tbps": 5, "part": 10, "rde": 100}.get(choice.partition("_")[0], 1)
    assert head.lr == pytest.approx(new * patch.lr)
    assert temperature.weight_decay == 0
    assert isinstance(instantiate(config)(parameters()), Adam if config.algorithm == "adam" else AdamW)


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_the_default_rate_moves_every_group(choice: str):
    config = read("optimizer", choice)
    before = learning_rates(instantiate(config)(parameters()))
    double = f"optimizer.param_groups.default.lr={2 * config.param_groups.default.lr}"
    after = learning_rates(instantiate(read("optimizer", choice, double))(parameters()))
    assert after == pytest.approx({group: 2 * lr for group, lr in before.items()})


@pytest.mark.parametrize("recipe", ["tbps_clip_decay", "irra"])
def test_no_decay_differs_in_the_pre_trained_matrices_and_in_nothing_else_that_decays(recipe: str):
    decays = [[group.weight_decay for group in settings(choice)] for choice in (recipe, NO_DECAY[recipe])]
    assert decays[0] == [decays[0][0], 0, *[decays[0][0]] * 3]
    assert decays[1] == [0, 0, *[decays[0][0]] * 3]
    assert decays[0][0] > 0


def test_the_rate_of_one_tower_is_one_override():
    before = settings("irra")
    after = settings("irra", "optimizer.param_groups.image_tower.lr_scale=0.1")
    assert [group.lr for group in after[:3]] == pytest.approx([1e-6, before[1].lr, 1e-6])
    assert [group.lr for group in after[3:]] == [group.lr for group in before[3:]]


def test_any_setting_of_any_group_is_an_override_and_a_misspelt_one_an_error():
    groups = ("backbone", "adapters", "new")
    overrides = [f"optimizer.param_groups.{group}.lr=3e-4" for group in groups]
    overrides += ["optimizer.param_groups.new.betas=[0.8,0.9]", "optimizer.param_groups.new.lr_end=2e-6"]
    found = settings("cir", *overrides)
    assert [group.lr for group in found] == [3e-4] * 5
    assert [group.betas for group in found[2:]] == [(0.9, 0.999), (0.8, 0.9), (0.8, 0.9)]
    assert [group.lr_end for group in found[2:]] == [1e-5, 2e-6, 2e-6]
    with pytest.raises(ConfigCompositionException, match="weight_dekay"):
        read("optimizer", "cir", "optimizer.param_groups.new.weight_dekay=0.1")


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
    assert peak == pytest.approx({"default": 1e-5, "adapters": 1e-4, "new": 5e-5})
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
