import pytest
import torch
from torch import nn

from solver.groups import kind_of, owner_of, parameter_table, split_parameters
from utils.errors import UserError

DEFAULT = {
    "lr": 1e-5,
    "lr_start": 1e-6,
    "lr_end": 5e-6,
    "weight_decay": 0.02,
    "betas": [0.9, 0.98],
    "eps": 1e-8,
}
BACKBONE = {"of": "backbone", "weight_decay": 0.01}
NEW = {"of": ["head", "loss"], "lr_scale": 5.0}
VECTORS = {"kind": ["norm", "bias", "vector", "temperature"], "weight_decay": 0.0}


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


@pytest.mark.parametrize(
    ("name", "dimensions", "owner", "kind"),
    [
        ("encoder.backbone.model.vision_model.embeddings.patch_embedding.weight", 4, "backbone", "matrix"),
        ("encoder.backbone.model.vision_model.embeddings.class_embedding", 1, "backbone", "vector"),
        ("encoder.backbone.model.vision_model.embeddings.position_embedding.weight", 2, "backbone", "position"),
        ("encoder.backbone.model.vision_model.embeddings.position_embeddings", 3, "backbone", "position"),
        ("encoder.backbone.model.vision_model.head.probe", 3, "backbone", "matrix"),
        ("encoder.backbone.model.vision_model.head.attention.in_proj_bias", 1, "backbone", "bias"),
        ("encoder.backbone.model.text_model.final_layer_norm.weight", 1, "backbone", "norm"),
        ("encoder.backbone.model.text_model.final_layer_norm.bias", 1, "backbone", "bias"),
        ("encoder.backbone.model.logit_scale", 0, "backbone", "temperature"),
        ("encoder.backbone.model.logit_bias", 1, "backbone", "temperature"),
        ("encoder.backbone.model.base_model.layers.0.q_proj.lora_A.default.weight", 2, "adapters", "matrix"),
        ("encoder.backbone.model.layers.0.q_proj.lora_magnitude_vector.default.weight", 1, "adapters", "vector"),
        ("encoder.head.attention.queries", 2, "head", "matrix"),
        ("encoder.head.pos_embed", 2, "head", "position"),
        ("objective.terms.any_name.image_log_temperature", 0, "loss", "temperature"),
        ("objective.terms.any_name.head.weight", 2, "loss", "matrix"),
        ("objective.terms.any_name.backbone.bias", 1, "loss", "bias"),
    ],
)
def test_what_a_parameter_is_and_belongs_to(name: str, dimensions: int, owner: str, kind: str):
    assert (owner_of(name), kind_of(name, dimensions)) == (owner, kind)


def test_every_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none():
    model = Model()
    model.encoder.backbone[2].weight.requires_grad_(False)
    groups = split({"default": DEFAULT, "backbone": BACKBONE, "new": NEW}, model)
    members = [name for group in groups.values() for name in group.parameters]
    assert sorted(members) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert list(groups["new"].parameters) == [
        *("encoder.head.weight", "encoder.head.bias"),
        *("objective.terms.id.weight", "objective.terms.id.bias"),
    ]
    assert groups["new"].parameters["objective.terms.id.bias"] is model.objective.terms.id.bias


def test_parameters_keep_the_order_of_the_model():
    groups = split_parameters(Model().named_parameters(), {"new": NEW, "backbone": BACKBONE, "default": DEFAULT})
    assert [group.name for group in groups] == ["backbone", "new"]
    in_model = [name for name, _ in Model().named_parameters() if name.startswith("encoder.backbone")]
    assert list(groups[0].parameters) == in_model


def test_rates_scale_with_default_unless_the_group_sets_them():
    groups = split({"default": DEFAULT, "new": {**NEW, "lr_end": 0.0, "betas": [0.8, 0.9], "eps": None}})
    new = groups["new"]
    assert (new.lr, new.lr_start, new.lr_end) == (pytest.approx(5e-5), pytest.approx(5e-6), 0.0)
    assert (new.weight_decay, new.betas, new.eps) == (0.02, (0.8, 0.9), 1e-8)
    own = split({"default": DEFAULT, "new": {**NEW, "lr": 1e-3}})["new"]
    assert (own.lr, own.lr_start) == (1e-3, pytest.approx(5e-6))
    moved = split({"default": {**DEFAULT, "lr": 2e-5}, "new": NEW})["new"]
    assert moved.lr == pytest.approx(1e-4)


def test_of_groups_that_overlap_each_setting_is_that_of_the_last_one_that_sets_it():
    biases = {"kind": "bias", "lr_scale": 2.0}
    last = {"match": [r"objective\..*"], "kind": "bias", "lr": 1e-3, "weight_decay": 0.3}
    groups = split({"default": DEFAULT, "new": NEW, "biases": biases, "vectors": VECTORS, "last": last})
    found = {name: (group.lr, group.weight_decay, len(group.parameters)) for name, group in groups.items()}
    assert found == {
        "default": (1e-5, 0.02, 2),
        "biases/vectors": (pytest.approx(2e-5), 0.0, 2),
        "vectors": (1e-5, 0.0, 2),
        "new": (pytest.approx(5e-5), 0.02, 2),
        "new/biases/vectors": (pytest.approx(2e-5), 0.0, 1),
        "new/biases/vectors/last": (1e-3, 0.3, 1),
    }
    assert groups["new/biases/vectors/last"].lr_start == pytest.approx(2e-6)


def test_groups_that_change_nothing_leave_no_trace():
    groups = split({"default": DEFAULT, "backbone": {"of": "backbone"}, "same": {"kind": "bias", "eps": 1e-8}})
    assert list(groups) == ["default"]


def test_patterns_match_the_whole_name():
    groups = split({"default": DEFAULT, "new": {"match": ["backbone", r"encoder\.head", "id"], "lr_scale": 2.0}})
    assert list(groups) == ["default"]


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
        ({"default": DEFAULT, "new": {"lr_scale": 2.0}}, "new: it selects no parameters; select some with of ("),
        ({"default": DEFAULT, "new": {"match": [5]}}, "new.match: expected regular expressions"),
        ({"default": DEFAULT, "new": {"match": ["encoder.("]}}, "new.match: expected regular expressions, one is"),
        (
            {"default": DEFAULT, "new": {"of": "tower"}},
            "new.of: expected one of adapters, loss, backbone, head",
        ),
        ({"default": DEFAULT, "new": {"kind": ["bias", "x"]}}, "new.kind: expected one of matrix, position, norm"),
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
    groups = {"default": DEFAULT, "backbone": BACKBONE, "new": NEW, "vectors": VECTORS}
    assert rows_of(parameter_table(model.named_parameters(), groups)) == [
        ["part", "group", "lr", "weight decay", "parameters"],
        ["temperature", "backbone/vectors", "1e-05", "0", "1"],
        ["losses", "new", "5e-05", "0.02", "15"],
        ["losses", "new/vectors", "5e-05", "0", "5"],
        ["head", "frozen", "", "", "8"],
        ["other", "backbone/vectors", "1e-05", "0", "9"],
        ["other", "backbone", "1e-05", "0.01", "33"],
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
