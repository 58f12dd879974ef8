"""What the terms add to the functions: views, ramp, temperature, projector, statistics."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.features import Features
from model.objectives import (
    ASDM,
    ITC,
    NCITC,
    NITC,
    SDM,
    CrossModalCircle,
    InModalCircle,
    ModelSpec,
    Objective,
    SimCLR,
    cross_modal_circle,
    in_modal_circle,
    itc,
    nitc,
    simclr,
)
from model.objectives.base import LossTerm
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

PIDS = torch.tensor([0, 0, 1, 1, 2])
MVS = ("image", "image_aug")

MakeFeatures = Callable[..., Features]


def test_needs_follow_from_the_views(spec: ModelSpec) -> None:
    assert make_term(NITC, spec, sigmoid=True).needs == {"image", "text", "pids"}
    assert make_term(NITC, spec, sigmoid=True, views=MVS).needs == {"image", "image_aug", "text", "pids"}
    assert make_term(ITC, spec, views=["image_aug"]).needs == {"image_aug", "text"}


@pytest.mark.parametrize("views", [[], "image", None])
def test_views_must_be_a_list_of_views(views: object, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"views: .* expected a list of image views"):
        make_term(ITC, spec, views=views)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_the_softlabel_ratio_is_a_share(ratio: float, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=f"softlabel_ratio: {ratio} given"):
        make_term(NITC, spec, sigmoid=True, softlabel_ratio=ratio)


def test_misspelt_options_stop_before_training(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match="scope"):
        make_term(CrossModalCircle, spec, scope="anker")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reduction"):
        make_term(NCITC, spec, reduction="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize(("epoch", "ratio"), [(0.0, 0.0), (0.25, 0.1), (1.0, 0.4), (7.5, 0.4)])
def test_soft_labels_ramp_up_over_the_first_epoch(
    epoch: float, ratio: float, sigmoid: bool, spec: ModelSpec, make_features: MakeFeatures
) -> None:
    features = make_features(PIDS, epoch=epoch)
    loss, _ = make_term(NITC, spec, sigmoid=sigmoid, softlabel_ratio=0.4)(features)
    image, text = features.embedding("image"), features.embedding("text")
    expected = nitc(image, text, PIDS, *features.logit_scale_and_bias(), sigmoid=sigmoid, softlabel_ratio=ratio)
    torch.testing.assert_close(loss, expected)


def test_multi_view_supervision_averages_over_views_and_trains_the_augmented_one(
    spec: ModelSpec, make_features: MakeFeatures
) -> None:
    features = make_features(PIDS)
    image, aug, text = (features.embedding(view) for view in ("image", "image_aug", "text"))
    aug.retain_grad()
    loss, _ = make_term(CrossModalCircle, spec, views=MVS)(features)
    expected = (cross_modal_circle(image, text, PIDS) + cross_modal_circle(aug, text, PIDS)) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert aug.grad is not None
    assert aug.grad.abs().sum() > 0


def test_in_modal_circle_averages_the_image_and_the_text_branch(spec: ModelSpec, make_features: MakeFeatures) -> None:
    features = make_features(PIDS)
    loss, _ = make_term(InModalCircle, spec, views=MVS, scope="anchor")(features)
    of_view = {v: in_modal_circle(features.embedding(v), PIDS, scope="anchor") for v in (*MVS, "text")}
    expected = (of_view["image"] + of_view["image_aug"]) / 4 + of_view["text"] / 2
    torch.testing.assert_close(loss, expected)


def test_temperature_is_trained(spec: ModelSpec, make_features: MakeFeatures, encoder: nn.Module) -> None:
    loss, _ = make_term(NITC, spec, sigmoid=True)(make_features(PIDS))
    loss.backward()
    assert all(p.grad is not None and p.grad != 0 for n, p in encoder.named_parameters() if n in {"log_scale", "bias"})


def test_statistics_describe_positive_and_negative_pairs(spec: ModelSpec, make_features: MakeFeatures) -> None:
    features = make_features(PIDS)
    cosines = (features.embedding("image") @ features.embedding("text").T).tolist()
    positives = [cosines[i][j] for i in range(5) for j in range(5) if PIDS[i] == PIDS[j]]
    negatives = [cosines[i][j] for i in range(5) for j in range(5) if PIDS[i] != PIDS[j]]
    _, stats = make_term(NITC, spec, sigmoid=True)(features)
    assert stats()["positive_cosine"].item() == pytest.approx(sum(positives) / len(positives), abs=1e-6)
    assert stats()["negative_cosine"].item() == pytest.approx(sum(negatives) / len(negatives), abs=1e-6)
    _, stats = make_term(CrossModalCircle, spec, margin=0.3)(features)
    assert stats()["hard_positives"].item() == pytest.approx(sum(s < 0.7 for s in positives) / len(positives))
    assert stats()["hard_negatives"].item() == pytest.approx(sum(s > 0.3 for s in negatives) / len(negatives))


def test_hard_pairs_within_a_modality_are_those_of_different_images(
    spec: ModelSpec, make_features: MakeFeatures
) -> None:
    features = make_features(PIDS)
    image, text = features.embedding("image"), features.embedding("text")
    shares = []
    for rows, others in ((image, image), (text, text), (image, text)):
        cosines = (rows @ others.T).tolist()
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        positives = [cosines[i][j] for i, j in pairs if PIDS[i] == PIDS[j]]
        negatives = [cosines[i][j] for i, j in pairs if PIDS[i] != PIDS[j]]
        shares.append([sum(s < 0.7 for s in positives) / 4, sum(s > 0.3 for s in negatives) / 16])
    _, stats = make_term(InModalCircle, spec, margin=0.3)(features)
    assert [stats()[name].item() for name in ("hard_positives", "hard_negatives")] == pytest.approx(shares[0])
    assert shares[0] not in shares[1:], "the texts would give the same"


@pytest.mark.parametrize(
    ("kind", "options"),
    [(NITC, {"sigmoid": True}), (CrossModalCircle, {}), (InModalCircle, {}), (SDM, {}), (ASDM, {})],
)
def test_statistics_of_several_views_are_those_of_the_first(
    kind: type[LossTerm], options: dict[str, bool], spec: ModelSpec, make_features: MakeFeatures
) -> None:
    features = make_features(PIDS)
    expected, others = (make_term(kind, spec, views=[view], **options)(features)[1]() for view in MVS)
    stats = make_term(kind, spec, views=MVS, **options)(features)[1]()
    assert stats == expected
    assert stats != others, "the views have the same statistics"


def test_simclr_parameters_can_be_told_apart_by_name(spec: ModelSpec) -> None:
    objective = Objective({"self_supervision": make_term(SimCLR, spec, hidden_dim=16)})
    names = [name for name, _ in objective.named_parameters()]
    assert len(names) == 10
    assert all("simclr" in name for name in names)


@pytest.mark.parametrize(
    ("options", "modules"),
    [
        ({}, "64 BatchNorm1d ReLU 64 BatchNorm1d ReLU 256"),
        ({"hidden_dim": 16, "hidden_layers": 1, "out_dim": None, "batch_norm": False}, "16 ReLU 8"),
        ({"hidden_layers": 3, "out_dim": 4}, "64 BatchNorm1d ReLU 64 BatchNorm1d ReLU 64 BatchNorm1d ReLU 4"),
    ],
)
def test_the_projector_of_simclr_is_what_its_options_say(options: dict, modules: str, spec: ModelSpec) -> None:
    projector = make_term(SimCLR, spec, **options).simclr_projector
    found = [str(m.out_features) if isinstance(m, torch.nn.Linear) else type(m).__name__ for m in projector]
    assert " ".join(found) == modules


@pytest.mark.parametrize("option", ["hidden_dim", "hidden_layers", "out_dim"])
def test_a_projector_without_width_or_layers_is_refused(option: str, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=f"^{option}: 0 given, expected at least 1"):
        make_term(SimCLR, spec, **{option: 0})


def test_simclr_projects_under_amp_and_compares_in_fp32(spec: ModelSpec, make_features: MakeFeatures) -> None:
    term = make_term(SimCLR, spec, hidden_dim=16, out_dim=4)
    projected: list[torch.Tensor] = []
    term.simclr_projector.register_forward_hook(lambda *call: projected.append(call[2]))
    with torch.autocast("cpu", torch.bfloat16):
        report = Objective({"simclr": term})(make_features(PIDS))
    assert [(p.dtype, tuple(p.shape)) for p in projected] == [(torch.bfloat16, (10, 4))]
    assert report.total.dtype == torch.float32


def test_simclr_compares_both_views_behind_its_projector_at_its_own_temperature(
    spec: ModelSpec, make_features: MakeFeatures
) -> None:
    term, features = make_term(SimCLR, spec, hidden_dim=16, temperature=0.7), make_features(PIDS)
    views = torch.cat([features.pooled("image_ss1"), features.pooled("image_ss2")])
    a, b = term.simclr_projector(views).chunk(2)
    torch.testing.assert_close(term(features)[0], simclr(a, b, 0.7))
    assert simclr(a, b, 0.7) != simclr(a, b)


def test_simclr_accepts_a_batch_of_one(spec: ModelSpec, make_features: MakeFeatures) -> None:
    loss, _ = make_term(SimCLR, spec, hidden_dim=16)(make_features(PIDS[:1]))
    assert loss == 0
    assert loss.requires_grad


def test_itc_of_outliers_takes_the_pairs_of_which_a_side_is_in_no_cluster(
    spec: ModelSpec, make_features: MakeFeatures
) -> None:
    labels = {"image_labels": torch.tensor([0, -1, 1, 0, -1]), "text_labels": torch.tensor([-1, 2, 0, 1, -1])}
    features = make_features(PIDS, **labels)
    term = make_term(ITC, spec, pairs="outliers")
    assert term.needs == {"image", "text", "image_labels", "text_labels"}
    image, text = (features.embedding(view)[[0, 1, 4]] for view in ("image", "text"))
    torch.testing.assert_close(term(features)[0], itc(image, text, features.logit_scale_and_bias()[0]))
    with pytest.raises(UserError, match="pairs=some is unknown; expected all or outliers"):
        make_term(ITC, spec, pairs="some")  # type: ignore[arg-type]
