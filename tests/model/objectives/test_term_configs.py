"""Every YAML of config/loss/ and config/loss/term/: composed, built and run on a tiny encoder."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import Tensor, nn

from model.features import Features
from model.objectives import ID, LossTerm, ModelSpec, Objective, build_objective
from model.prototypes import Modality
from tests.model.objectives.make_term import make_term

LOSS = Path(__file__).parents[3] / "config" / "loss"
TERMS = sorted(path.stem for path in (LOSS / "term").glob("[!_]*.yaml"))
PRESETS = sorted(path.stem for path in LOSS.glob("[!_]*.yaml"))
REPEATED = torch.tensor([0, 0, 1, 1, 2, 2])
TOWERS = {
    "vision": {"image", "image_aug", "image_ss1", "image_ss2"},
    "language": {"text", "text_masked"},
}

MakeFeatures = Callable[..., Features]
ComposeLoss = Callable[..., DictConfig]


def build(loss: DictConfig, spec: ModelSpec) -> Objective:
    """Returns the objective of `loss`, after a clustering of six persons."""
    for term in loss.terms.values():
        if "hidden_dim" in term:
            term.hidden_dim = 16
    objective = build_objective(loss.terms, spec)
    draw = torch.Generator().manual_seed(2)
    samples = [Modality(torch.randn(12, spec.embed_dim, generator=draw), torch.arange(12) % 6) for _ in range(2)]
    objective.reset_prototypes(*samples, seed=0)
    return objective


@dataclass
class Case:
    """A term, the objective that it is in with what it needs of other terms, and an encoder that has what it needs."""

    term: LossTerm
    objective: Objective
    encoder: nn.Module


@pytest.fixture
def make_case(
    compose_loss: ComposeLoss, spec: ModelSpec, part_spec: ModelSpec, encoder: nn.Module, part_encoder: nn.Module
) -> Callable[[str], Case]:
    def make(name: str) -> Case:
        torch.manual_seed(0)
        loss = compose_loss("loss.softlabel_ratio=0.5", f"+loss/term@loss.terms.tested={name}").loss
        parts = "parts" in build(loss, spec).needs
        term = build(loss, part_spec if parts else spec).terms["tested"]
        assert isinstance(term, LossTerm)
        helpers = {"id": make_term(ID, part_spec)} if "id_logits" in term.needs else {}
        return Case(term, Objective({name: term, **helpers}), part_encoder if parts else encoder)

    return make


def assert_finite_gradients(modules: list[nn.Module]) -> None:
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", TERMS)
def test_term(
    name: str,
    amp: bool,
    make_case: Callable[[str], Case],
    make_features: MakeFeatures,
) -> None:
    case = make_case(name)
    term, objective, encoder = case.term, case.objective, case.encoder
    with torch.autocast("cpu", torch.bfloat16) if amp else nullcontext():
        features = make_features(REPEATED, epoch=2.0, encoder=encoder)
        report = objective(features)
    report.total.backward()
    assert report.total.dtype == torch.float32
    assert report.total.isfinite()
    assert features.accessed - term.provides == term.needs
    for tower, views in TOWERS.items():
        for parameter in getattr(encoder, tower).parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == bool(views & term.needs)
    assert_finite_gradients([encoder, objective])
    for own_name, parameter in term.named_parameters():
        assert parameter.grad is not None, own_name
    for stat in report.stats[name].values():
        assert stat.shape == ()
        assert stat.isfinite()
        assert not stat.requires_grad


@pytest.mark.parametrize(
    "pids",
    [
        pytest.param(torch.arange(6), id="no-positives"),
        pytest.param(torch.zeros(6, dtype=torch.int64), id="no-negatives"),
        pytest.param(torch.zeros(1, dtype=torch.int64), id="one-sample"),
    ],
)
@pytest.mark.parametrize("name", TERMS)
def test_term_on_a_batch_that_lacks_a_kind_of_pair(
    name: str,
    pids: Tensor,
    make_case: Callable[[str], Case],
    make_features: MakeFeatures,
) -> None:
    case = make_case(name)
    objective, encoder = case.objective, case.encoder
    report = objective(make_features(pids, encoder=encoder))
    assert report.total.isfinite()
    assert report.total.requires_grad
    report.total.backward()
    assert_finite_gradients([encoder, objective])
    assert all(stat.isfinite() for stat in report.stats[name].values())


@pytest.mark.parametrize("preset", PRESETS)
def test_preset(
    preset: str,
    compose_loss: ComposeLoss,
    spec: ModelSpec,
    part_spec: ModelSpec,
    make_features: MakeFeatures,
    encoder: nn.Module,
    part_encoder: nn.Module,
) -> None:
    loss = compose_loss(f"loss={preset}").loss
    assert loss.name == preset
    assert 0 <= loss.softlabel_ratio <= 1
    objective = build(loss, spec)
    if "parts" in objective.needs:
        objective, encoder = build(loss, part_spec), part_encoder
    features = make_features(REPEATED, epoch=0.5, encoder=encoder)
    report = objective(features)
    report.total.backward()
    assert report.total.isfinite()
    assert_finite_gradients([encoder])
    assert set(report.raw) == set(loss.terms)
    for name in loss.terms:
        torch.testing.assert_close(report.weighted[name], report.weights[name] * report.raw[name])


@pytest.mark.parametrize(
    ("preset", "weights"),
    [
        ("baseline", {"nitc": 1.0, "citc": 0.1, "simclr": 0.4}),
        ("in_modal_circle", {"nitc": 1.0, "in_modal_circle": 0.1, "citc": 0.1, "simclr": 0.4}),
        ("nc_itc", {"nc_itc": 1.0, "citc": 0.1, "simclr": 0.4}),
        ("pure_circle", {"cross_modal_circle": 1.0, "citc": 0.1, "simclr": 0.4}),
        ("hybrid_circle", {"nitc": 1.0, "cross_modal_circle": 0.1, "citc": 0.1, "simclr": 0.4}),
        ("tbps_clip", {"nitc": 1.0, "ritc": 1.0, "citc": 0.1, "simclr": 0.4}),
    ],
)
def test_strategy_weights_and_multi_view_supervision(
    preset: str, weights: dict[str, float], compose_loss: ComposeLoss
) -> None:
    terms = compose_loss(f"loss={preset}").loss.terms
    assert {name: term.weight for name, term in terms.items()} == weights
    for name in {"nitc", "nc_itc", "cross_modal_circle", "in_modal_circle"} & set(terms):
        assert terms[name].views == ["image", "image_aug"]


def test_terms_are_set_removed_and_added_from_the_command_line(compose_loss: ComposeLoss) -> None:
    loss = compose_loss(
        "loss.terms.cross_modal_circle.gamma=64",
        "~loss.terms.citc",
        "+loss/term@loss.terms.itc=itc",
        "loss.softlabel_ratio=0.3",
        "loss.terms.nitc.views=[image]",
    ).loss
    assert list(loss.terms) == ["nitc", "cross_modal_circle", "simclr", "itc"]
    assert loss.terms.cross_modal_circle.gamma == 64
    assert loss.terms.cross_modal_circle.weight == 0.1
    assert loss.terms.nitc.softlabel_ratio == 0.3
    assert loss.terms.nitc.views == ["image"]
    assert loss.terms.itc._target_ == "model.objectives.ITC"


@pytest.mark.parametrize(
    "override",
    [
        "loss=circle",
        "loss.terms.cross_modal_circle.gama=64",
        "loss.terms.ritc.eps=1",
        "+loss/term@loss.terms.x=it",
    ],
)
def test_a_misspelt_override_does_not_compose(override: str, compose_loss: ComposeLoss) -> None:
    with pytest.raises(HydraException):
        compose_loss(override)
