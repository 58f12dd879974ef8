"""Objective: weights, reports, precision, one vision pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.features import Encoded, Encoder, Features
from model.objectives import ITC, LossTerm, ModelSpec, Objective, Stats
from model.objectives.base import Ramp
from tests.model.objectives.make_term import make_term

PIDS = torch.tensor([0, 0, 1])

MakeFeatures = Callable[..., Features]


class MeanOf(LossTerm):
    """The mean of a view's squared embeddings."""

    def __init__(self, view: str, *, spec: ModelSpec, weight: float = 1.0) -> None:
        super().__init__(spec=spec)
        self.weight = weight
        self.view = view
        self.needs = frozenset({view})

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        assert not torch.is_autocast_enabled("cpu")
        embedding = features.embedding(self.view).float()
        return embedding.square().mean() + embedding.sum(), lambda: {"largest": embedding.max()}


def test_the_report_holds_total_raw_weighted_and_stats(spec: ModelSpec, make_features: MakeFeatures) -> None:
    objective = Objective({"a": MeanOf("image", spec=spec, weight=0.5), "b": MeanOf("text", spec=spec, weight=2.0)})
    features = make_features(PIDS)
    report = objective(features)
    raw = {name: MeanOf(view, spec=spec)(features)[0] for name, view in (("a", "image"), ("b", "text"))}
    assert report.total.requires_grad
    torch.testing.assert_close(report.total, 0.5 * raw["a"] + 2 * raw["b"])
    torch.testing.assert_close(report.weighted["b"], 2 * raw["b"].detach())
    assert not any(value.requires_grad for value in (*report.raw.values(), *report.weighted.values()))
    assert torch.equal(report.stats["a"]["largest"], features.embedding("image").max())


def test_statistics_are_computed_when_they_are_asked_for_only(
    spec: ModelSpec, make_features: MakeFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[bool] = []

    def forward(self: MeanOf, features: Features) -> tuple[Tensor, Stats]:
        def stats() -> dict[str, Tensor]:
            computed.append(torch.is_grad_enabled())
            return {}

        return features.embedding(self.view).sum(), stats

    monkeypatch.setattr(MeanOf, "forward", forward)
    objective = Objective({"a": MeanOf("image", spec=spec)})
    assert objective(make_features(PIDS), with_stats=False).stats == {}
    assert computed == []
    objective(make_features(PIDS))
    assert computed == [False]


def test_needs_are_the_union_and_nothing_else_is_read(spec: ModelSpec, make_features: MakeFeatures) -> None:
    objective = Objective({"a": MeanOf("image_aug", spec=spec), "b": make_term(ITC, spec)})
    features = make_features(PIDS)
    objective(features)
    assert objective.needs == features.accessed == {"image", "image_aug", "text"}


def test_losses_run_in_fp32_and_encoding_under_amp(spec: ModelSpec, make_features: MakeFeatures) -> None:
    objective = Objective({"a": MeanOf("image", spec=spec)})
    with torch.autocast("cpu", torch.bfloat16):
        features = make_features(PIDS)
        report = objective(features)
        assert torch.is_autocast_enabled("cpu")
    assert features.image("image").tokens.dtype == torch.bfloat16
    assert report.total.dtype == torch.float32


def test_the_images_of_all_terms_go_through_one_vision_pass(
    spec: ModelSpec, make_features: MakeFeatures, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    encode_image = encoder.encode_image

    def counted(pixels: Tensor) -> Encoded:
        batches.append(len(pixels))
        return encode_image(pixels)

    monkeypatch.setattr(encoder, "encode_image", counted)
    objective = Objective({"a": MeanOf("image", spec=spec), "b": MeanOf("image_ss2", spec=spec)})
    objective(make_features(PIDS))
    assert batches == [2 * len(PIDS)]


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0), (5.99, 0), (6, 1 / 15), (12, 7 / 15), (20, 1), (59.5, 1)])
def test_a_ramp_raises_the_weight_epoch_by_epoch(
    epoch: float, factor: float, spec: ModelSpec, make_features: MakeFeatures
) -> None:
    """EQUATIONS.md, curriculum of a weight."""
    ramped, fixed = MeanOf("image", spec=spec, weight=0.1), MeanOf("text", spec=spec)
    ramped.ramp = Ramp(first=5, last=20)
    features = make_features(PIDS)
    features.epoch = epoch
    report = Objective({"a": ramped, "b": fixed})(features)
    assert report.weights == {"a": pytest.approx(0.1 * factor), "b": 1.0}
    torch.testing.assert_close(report.total, report.weights["a"] * report.raw["a"] + report.raw["b"])


def test_gradient_shares_are_those_of_each_loss_by_itself(spec: ModelSpec, make_features: MakeFeatures) -> None:
    terms = {"a": MeanOf("image", spec=spec, weight=0.5), "b": MeanOf("image_aug", spec=spec, weight=3.0)}
    terms |= {"c": MeanOf("text", spec=spec)}
    features = make_features(PIDS)
    report = Objective(terms)(features)
    norms = {}
    for name, term in terms.items():
        loss = term.weight * term(features)[0]
        found = torch.autograd.grad(loss, features.sources(), retain_graph=True, allow_unused=True)
        norms[name] = torch.cat([gradient.flatten() for gradient in found if gradient is not None]).norm()
    total = torch.stack(list(norms.values())).sum()
    assert all(norm > 0 for norm in norms.values())
    torch.testing.assert_close(report.gradients, {name: norm / total for name, norm in norms.items()})
    assert Objective(terms)(make_features(PIDS), with_stats=False).gradients == {}
    report.total.backward()  # the graph is still there


def test_a_loss_that_reads_no_embedding_has_no_share(spec: ModelSpec, make_features: MakeFeatures) -> None:
    class OfTokens(MeanOf):
        def forward(self, features: Features) -> tuple[Tensor, Stats]:
            return features.text(self.view).tokens.mean(), dict

    report = Objective({"a": MeanOf("image", spec=spec), "b": OfTokens("text", spec=spec)})(make_features(PIDS))
    torch.testing.assert_close(report.gradients, {"a": torch.tensor(1.0)})
