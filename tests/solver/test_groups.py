import pytest
import torch
from torch import nn

from solver.groups import parameter_table, split_parameters
from utils.errors import UserError

DEFAULT = {
    "lr": 1e-5,
    "lr_start": 1e-6,
    "lr_end": 5e-6,
    "weight_decay": 0.02,
    "betas": [0.9, 0.98],
    "eps": 1e-8,
}
BACKBONE = {"match": [r"encoder\.backbone\..*"]}
NEW = {"match": [r"objective\.terms\.id\..*", r"objective\.terms\.simclr\..*"], "lr_scale": 5.0}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "backbone": nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Embedding(7, 3)),
                "head": nn.Linear(3, 2),
            }
        )
        self.encoder.backbone.logit_scale = nn.Parameter(torch.zeros(()))
        self.objective = nn.ModuleDict({"terms": nn.ModuleDict({"id": nn.Linear(3, 5)})})


def split(groups: dict, model: nn.Module | None = None) -> dict:
    return {group.name: group for group in split_parameters((model or Model()).named_parameters(), groups)}


def test_every_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none():
    model = Model()
    model.encoder.backbone[2].weight.requires_grad_(False)
    groups = split({"default": DEFAULT, "backbone": BACKBONE, "new": NEW}, model)
    members = [name for group in groups.values() for name in group.parameters]
    assert sorted(members) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert set(groups["default"].parameters) == {"encoder.head.weight", "encoder.head.bias"}
    assert set(groups["new"].parameters) == {"objective.terms.id.weight", "objective.terms.id.bias"}
    assert groups["new"].parameters["objective.terms.id.bias"] is model.objective.terms.id.bias


def test_groups_keep_the_order_of_the_config_and_parameters_that_of_the_model():
    groups = split_parameters(Model().named_parameters(), {"new": NEW, "backbone": BACKBONE, "default": DEFAULT})
    assert [group.name for group in groups] == ["new", "backbone", "default"]
    in_model = [name for name, _ in Model().named_parameters() if name.startswith("encoder.backbone")]
    assert list(groups[1].parameters) == in_model


def test_rates_scale_with_default_unless_the_group_sets_them():
    groups = split({"default": DEFAULT, "new": {**NEW, "lr_end": 0.0, "betas": [0.8, 0.9], "eps": None}})
    new = groups["new"]
    assert (new.lr, new.lr_start, new.lr_end) == (pytest.approx(5e-5), pytest.approx(5e-6), 0.0)
    assert (new.weight_decay, new.betas, new.eps) == (0.02, (0.8, 0.9), 1e-8)
    own = split({"default": DEFAULT, "new": {**NEW, "lr": 1e-3}})["new"]
    assert (own.lr, own.lr_start) == (1e-3, pytest.approx(5e-6))
    moved = split({"default": {**DEFAULT, "lr": 2e-5}, "new": NEW})["new"]
    assert moved.lr == pytest.approx(1e-4)


def test_only_matrices_are_decayed():
    backbone = split({"default": DEFAULT, "backbone": BACKBONE})["backbone"]
    (decay, matrices), (none, vectors) = backbone.by_decay()
    assert (decay, none) == (0.02, 0.0)
    assert [p.ndim for p in matrices] == [2, 2]
    assert sorted(p.ndim for p in vectors) == [0, 1, 1, 1]
    undecayed = split({"default": DEFAULT, "backbone": {**BACKBONE, "weight_decay": 0.0}})["backbone"]
    assert [(decay, len(tensors)) for decay, tensors in undecayed.by_decay()] == [(0.0, 6)]


def test_patterns_match_the_whole_name():
    groups = split({"default": DEFAULT, "new": {"match": ["backbone", r"encoder\.head", "id"]}})
    assert groups["new"].parameters == {}
    assert groups["new"].by_decay() == []


def test_a_parameter_of_two_groups_is_an_error_that_names_both():
    with pytest.raises(UserError, match=r"'encoder\.backbone\.logit_scale'.*'backbone' and 'tower'"):
        split({"default": DEFAULT, "backbone": BACKBONE, "tower": {"match": [r".*\.logit_scale"]}})


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="nothing to train"):
        split({"default": DEFAULT}, Model().requires_grad_(False))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"backbone": BACKBONE}, "default: expected a mapping"),
        ({"default": DEFAULT, "backbone": None}, "backbone: expected a mapping"),
        ({"default": {**DEFAULT, "match": [".*"]}}, "default.match: there is no such setting"),
        ({"default": DEFAULT, "new": {**NEW, "weight_dekay": 0.1}}, "Did you mean 'weight_decay'"),
        ({"default": {k: v for k, v in DEFAULT.items() if k != "eps"}}, "default.eps is not set"),
        ({"default": DEFAULT, "new": {"lr_scale": 2.0}}, "new.match: expected a list"),
        ({"default": DEFAULT, "new": {"match": "encoder.*"}}, "new.match: expected a list"),
        ({"default": DEFAULT, "new": {"match": ["encoder.("]}}, "no regular expression"),
        ({"default": {**DEFAULT, "lr": "fast"}}, "default.lr: expected a number of at least 0, got 'fast'"),
        ({"default": {**DEFAULT, "weight_decay": -0.1}}, "default.weight_decay: expected a number"),
        ({"default": {**DEFAULT, "lr": float("nan")}}, "default.lr: expected a number"),
        ({"default": {**DEFAULT, "lr": 0.0, "lr_start": 0.0, "lr_end": 0.0}}, "learning rate is 0"),
        ({"default": {**DEFAULT, "lr": 2e-6}}, "lr_end=5e-06 is above lr=2e-06"),
        ({"default": DEFAULT, "new": {**NEW, "lr_start": 1.0}}, "new: lr_start=1 is above lr=5e-05"),
        ({"default": {**DEFAULT, "betas": [0.9]}}, "betas: expected two numbers"),
        ({"default": {**DEFAULT, "betas": 0.9}}, "betas: expected two numbers"),
        ({"default": {**DEFAULT, "betas": [0.9, 1.0]}}, "betas: expected numbers below 1"),
    ],
)
def test_settings_that_cannot_be_are_named(groups: dict, message: str):
    with pytest.raises(UserError) as caught:
        split(groups)
    assert message in str(caught.value)


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_has_a_row_for_each_part_and_group_and_adds_up():
    model = Model()
    model.encoder.head.requires_grad_(False)
    groups = {"default": DEFAULT, "backbone": BACKBONE, "new": NEW}
    assert rows_of(parameter_table(model.named_parameters(), groups)) == [
        ["part", "group", "lr", "weight decay", "parameters"],
        ["temperature", "backbone", "1e-05", "0", "1"],
        ["losses", "new", "5e-05", "0.02", "20"],
        ["head", "frozen", "", "", "8"],
        ["other", "backbone", "1e-05", "0.02", "42"],
        ["trainable", "88.7%", "", "", "63"],
        ["all", "", "", "", "71"],
    ]


def test_table_tells_adapters_and_two_losses_from_the_frozen_rest():
    text = nn.ModuleDict({"token_embedding": nn.Embedding(10, 4), "lora_A": nn.Linear(4, 1)})
    terms = nn.ModuleDict({"id": nn.Linear(4, 4, bias=False), "mlm": nn.Linear(4, 2)})
    model = nn.ModuleDict({"text_model": text, "objective": nn.ModuleDict({"terms": terms})})
    text.token_embedding.requires_grad_(False)
    groups = {"default": DEFAULT, "id": {"match": [r"objective\.terms\.id\..*"], "lr": 0.5, "weight_decay": 0.0}}
    assert rows_of(parameter_table(model.named_parameters(), groups))[1:] == [
        ["LoRA adapters", "default", "1e-05", "0.02", "5"],
        ["token table", "frozen", "", "", "40"],
        ["losses", "default", "1e-05", "0.02", "10"],
        ["losses", "id", "0.5", "0", "16"],
        ["trainable", "43.7%", "", "", "31"],
        ["all", "", "", "", "71"],
    ]
