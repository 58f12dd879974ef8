"""Building an objective out of the config's terms, and refusing one whose needs are not met."""

import re
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from model.objectives import ITC, NITC, LossTerm, ModelSpec, Objective, build_objective, check_needs
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

PROVIDED = {"image", "image_aug", "text", "text_masked"}


class Needy(LossTerm):
    """Needs what it is told to."""

    def __init__(self, *needs: str, spec: ModelSpec) -> None:
        super().__init__(spec=spec)
        self.needs = frozenset(needs)


def config(**terms: dict[str, Any]) -> DictConfig:
    """The terms of a config: those of a `kind` with what every YAML of a term has, others as they are."""
    made = {}
    for name, term in terms.items():
        kind = term.pop("kind", None)
        every = {"_target_": f"model.objectives.{kind}", "_partial_": True, "weight": 1.0, "ramp": None}
        made[name] = term if kind is None else every | term
    return OmegaConf.create(made)


ITC_TERM = {"kind": "ITC", "views": ["image"], "pairs": "all"}


def test_terms_keep_their_names_weights_and_order(spec: ModelSpec) -> None:
    nitc = {
        "kind": "NITC",
        "views": ["image"],
        "sigmoid": True,
        "softlabel_ratio": 0.0,
        "text_view": "text",
        "weighted": False,
    }
    objective = build_objective(config(b=ITC_TERM | {"weight": 0.5}, a=nitc), spec)
    assert list(objective.terms) == ["b", "a"]
    assert objective.terms["b"].weight == 0.5
    assert objective.needs == {"image", "text", "pids"}


def test_no_terms(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"loss\.terms is empty"):
        build_objective(config(), spec)


def test_errors_name_the_term_and_the_key(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"loss\.terms\.nitc cannot be built: .*'gama'"):
        build_objective(config(nitc={"kind": "NITC", "sigmoid": True, "gama": 3}), spec)
    with pytest.raises(UserError, match=r"loss\.terms\.stray cannot be built"):
        build_objective(config(stray={"weight": 1.0}), spec)
    with pytest.raises(UserError, match=r"^loss\.terms\.mine\.views: 'image' given"):
        build_objective(config(mine=ITC_TERM | {"views": "image"}), spec)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight": "half"}, "weight: 'half' given, expected a number"),
        ({"ramp": 5}, "ramp: 5 given, expected null or epochs"),
        ({"ramp": {"first": 5}}, "ramp: {'first': 5} given, expected null or epochs"),
        ({"ramp": {"first": 20, "last": 20}}, "ramp: first=20 and last=20 given"),
        ({"ramp": {"first": -1, "last": 20}}, "ramp: first=-1 and last=20 given"),
        ({"ramp": {"first": 0.5, "last": 20}}, "ramp: first=0.5 and last=20 given"),
    ],
)
def test_a_weight_and_a_ramp_that_cannot_be(settings: dict[str, Any], said: str, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=rf"^loss\.terms\.itc\.{re.escape(said)}"):
        build_objective(config(itc=ITC_TERM | settings), spec)


def test_met_needs_pass(spec: ModelSpec) -> None:
    check_needs(Objective({"nitc": make_term(NITC, spec, sigmoid=True)}), {*PROVIDED, "pids"})


@pytest.mark.parametrize(
    ("need", "option"),
    [
        ("pids", "pseudo_label=none"),
        ("image_labels", "pseudo_label=dbscan"),
        ("text_labels", "pseudo_label=dbscan"),
        ("parts", "head=part"),
    ],
)
def test_an_unmet_need_names_the_term_and_the_option_that_provides_it(need: str, option: str, spec: ModelSpec) -> None:
    objective = Objective({"fine": make_term(ITC, spec), "pcm": Needy("image", need, spec=spec)})
    with pytest.raises(UserError, match=f"loss.terms.pcm needs '{need}', which this run lacks: set {option}"):
        check_needs(objective, PROVIDED)


def test_an_unknown_need_names_the_nearest_known_one(spec: ModelSpec) -> None:
    objective = Objective({"itc": make_term(ITC, spec, views=["image_agu"])})
    with pytest.raises(UserError, match=r"needs 'image_agu', which is unknown.* Did you mean 'image_aug'\?"):
        check_needs(objective, PROVIDED)
