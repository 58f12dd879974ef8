"""Building an objective out of the config's terms, and refusing one whose needs are not met."""

from functools import partial

import pytest

from model.objectives import ITC, NITC, LossTerm, ModelSpec, Objective, build_objective, check_needs
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

PROVIDED = {"image", "image_aug", "text", "text_masked"}


class Needy(LossTerm):
    """Needs what it is told to."""

    def __init__(self, *needs: str, spec: ModelSpec) -> None:
        super().__init__(spec=spec, weight=1.0)
        self.needs = frozenset(needs)


def test_terms_keep_their_names_weights_and_order(spec: ModelSpec) -> None:
    itc = partial(ITC, weight=0.5, views=["image"], pairs="all")
    nitc = partial(NITC, weight=1.0, views=["image"], sigmoid=True, softlabel_ratio=0.0)
    objective = build_objective({"b": itc, "a": nitc}, spec)
    assert list(objective.terms) == ["b", "a"]
    assert objective.terms["b"].weight == 0.5
    assert objective.needs == {"image", "text", "pids"}


def test_no_terms(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"loss\.terms is empty"):
        build_objective({}, spec)


def test_errors_name_the_term_and_the_key(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"loss\.terms\.nitc cannot be built: .*'gama'"):
        build_objective({"nitc": partial(NITC, sigmoid=True, gama=3)}, spec)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"loss\.terms\.stray cannot be built"):
        build_objective({"stray": {"weight": 1.0}}, spec)
    with pytest.raises(UserError, match=r"^loss\.terms\.mine\.views: 'image' given"):
        build_objective({"mine": partial(ITC, weight=1.0, views="image", pairs="all")}, spec)


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
