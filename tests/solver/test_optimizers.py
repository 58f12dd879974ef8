import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from solver.optimizers import build_optimizer, can_fuse, learning_rates, under_settings_of
from utils.errors import UserError
from utils.training import muon

GROUPS = {
    "default": {
        "lr": 1e-2,
        "lr_start": 1e-3,
        "lr_end": 0.0,
        "weight_decay": 0.1,
        "betas": [0.9, 0.98],
        "eps": 1e-6,
    },
    "last": {"match": [r"1\..*"], "lr_scale": 5.0},
    "absent": {"match": ["nothing"]},
    "vectors": {"kind": "bias", "weight_decay": 0.0},
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def build(network: nn.Module, algorithm: str = "adamw", fused: bool | None = None) -> torch.optim.Optimizer:
    return build_optimizer(
        network.named_parameters(), name="test", algorithm=algorithm, param_groups=GROUPS, fused=fused
    )


def test_groups_carry_names_rates_and_decay():
    keys = ("name", "group", "lr", "lr_start", "lr_end", "weight_decay", "betas", "eps")
    assert [tuple(group[key] for key in keys) for group in build(model()).param_groups] == [
        ("default", "default", 1e-2, 1e-3, 0.0, 0.1, (0.9, 0.98), 1e-6),
        ("vectors", "default", 1e-2, 1e-3, 0.0, 0.0, (0.9, 0.98), 1e-6),
        ("last", "last", 5e-2, 5e-3, 0.0, 0.1, (0.9, 0.98), 1e-6),
        ("last/vectors", "last", 5e-2, 5e-3, 0.0, 0.0, (0.9, 0.98), 1e-6),
    ]


def test_learning_rates_are_told_once_per_group_that_has_parameters():
    assert learning_rates(build(model())) == {"default": 1e-2, "last": 5e-2}  # "vectors" have that of "default"


@pytest.mark.parametrize(("algorithm", "torch_class"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_a_step_equals_one_of_torch_over_groups_made_by_hand(algorithm: str, torch_class: type):
    ours, theirs = model(), model()
    optimizer = build(ours, algorithm)
    shared = {"betas": (0.9, 0.98), "eps": 1e-6}
    reference = torch_class(
        [
            {"params": [theirs[0].weight], "lr": 1e-2, "weight_decay": 0.1, **shared},
            {"params": [theirs[0].bias], "lr": 1e-2, "weight_decay": 0.0, **shared},
            {"params": [theirs[1].weight], "lr": 5e-2, "weight_decay": 0.1, **shared},
            {"params": [theirs[1].bias], "lr": 5e-2, "weight_decay": 0.0, **shared},
        ]
    )
    batch = torch.randn(4, 3)
    for _ in range(3):
        for network, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            network(batch).square().sum().backward()
            stepper.step()
    assert type(optimizer) is torch_class
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def orthogonalized_by_torch(matrix):
    return torch.optim._muon._zeropower_via_newtonschulz(matrix, muon.COEFFICIENTS, muon.STEPS, 1e-7)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (16, 16)])
def test_newton_schulz_is_torch_s_without_the_rounding_of_bf16(shape):
    matrix = torch.randn(*shape)
    found = muon.orthogonalized(matrix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, orthogonalized_by_torch(matrix).float(), rtol=0, atol=0.04)
    assert 0.5 < torch.linalg.svdvals(found).min() < torch.linalg.svdvals(found).max() < 1.3


def test_muon_moves_the_matrices_of_layers_as_torch_does_and_the_rest_by_adamw(monkeypatch):
    monkeypatch.setattr(muon, "orthogonalized", orthogonalized_by_torch)
    groups = {"default": GROUPS["default"], "vectors": {"kind": "bias", "weight_decay": 0.0}}
    ours, theirs = (nn.ModuleDict({"layers": nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8))}) for _ in range(2))
    ours["end"], theirs["end"] = nn.Linear(8, 1), nn.Linear(8, 1)
    theirs.load_state_dict(ours.state_dict())
    named = [(f"tower.{name}", parameter) for name, parameter in ours.named_parameters()]
    optimizer = build_optimizer(named, name="test", algorithm="muon", param_groups=groups)
    layers = [parameter for name, parameter in theirs.named_parameters() if "layers" in name and parameter.ndim == 2]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim < 2]
    references = [
        torch.optim.Muon(layers, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs["end"].weight], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6),
        torch.optim.AdamW(vectors, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-6),
    ]
    batch = torch.randn(5, 6)
    for _ in range(3):
        for network, steppers in ((ours, [optimizer]), (theirs, references)):
            network.zero_grad()
            network["end"](network["layers"](batch)).square().sum().backward()
            for stepper in steppers:
                stepper.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    again = build_optimizer(named, name="test", algorithm="muon", param_groups=groups)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[ours["layers"][0].weight]["momentum_buffer"].any()


def test_state_loads_into_a_new_optimizer_of_the_same_model():
    network = model()
    optimizer = build(network)
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    again = build(network)
    again.load_state_dict(optimizer.state_dict())
    assert [group["name"] for group in again.param_groups] == ["default", "vectors", "last", "last/vectors"]
    torch.testing.assert_close(again.state[network[0].weight]["exp_avg"], optimizer.state[network[0].weight]["exp_avg"])


@pytest.mark.parametrize(("asked", "told"), [(None, None), (False, None), (True, True)])
def test_fused_is_off_on_the_cpu_unless_asked_for(asked: bool | None, told: bool | None):
    assert build(model(), fused=asked).defaults["fused"] is told


def test_unknown_algorithm_names_the_nearest():
    with pytest.raises(UserError, match=r"there is no algorithm 'adamv'.*Did you mean 'adam"):
        build(model(), "adamv")


def test_adamw8bit_without_bitsandbytes_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="uv sync --extra bnb"):
        build(model(), "adamw8bit")


def test_adamw8bit_gets_the_same_groups(monkeypatch: pytest.MonkeyPatch):
    class AdamW8bit(torch.optim.AdamW):
        pass

    optim = ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    optimizer = build(model(), "adamw8bit")
    assert isinstance(optimizer, AdamW8bit)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    with pytest.raises(UserError, match="no fused form"):
        build(model(), "adamw8bit", fused=True)


def test_nothing_is_fused_where_scaled_gradients_are_clipped():
    assert can_fuse(None, "16-mixed", 1.0) is False
    assert [can_fuse(None, "16-mixed", None), can_fuse(None, "bf16-mixed", 1.0)] == [None, None]
    assert can_fuse(True, "bf16-mixed", 1.0) is True
    with pytest.raises(UserError, match=r"optimizer\.fused=true does not work with trainer\.gradient_clip_val=0\.5"):
        can_fuse(True, "16-mixed", 0.5)


def test_groups_of_an_earlier_version_are_not_continued_under_those_of_today():
    optimizer = build(model())
    saved = optimizer.state_dict()
    assert under_settings_of(optimizer, saved)["param_groups"][0]["name"] == "default"
    saved["param_groups"][1]["name"] = "default/no_decay"
    with pytest.raises(UserError, match=r"is of an earlier version of this project, in which"):
        under_settings_of(optimizer, saved)


def test_muon_has_no_fused_form():
    with pytest.raises(UserError, match=r"optimizer\.fused=true: muon has no fused form"):
        build(model(), "muon", fused=True)
