"""Ranking and CMR against loops on float64 scalars, their invariances, and the terms."""

from collections.abc import Callable
from math import log

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Features
from model.objectives import CMR, ID, ModelSpec, Objective, Ranking, check_needs, cmr_loss, commonality, ranking_loss
from model.objectives.build import build_objective
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

CLASSES, PARTS = 7, 3
PIDS = torch.tensor([0, 0, 1, 5, 1, 2])

MakeFeatures = Callable[..., Features]
ComposeLoss = Callable[..., DictConfig]


def rows(*size: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*size, generator=torch.Generator().manual_seed(seed)), dim=-1)


def scores(*size: int, seed: int) -> Tensor:
    return (3 * torch.randn(*size, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def slow_ranking(
    image: Tensor, text: Tensor, pids: Tensor, image_margins: list[Tensor], text_margins: list[Tensor]
) -> Tensor:
    """One slot: eq. (9), (12) pair by pair, negatives of another identity only."""
    total, size = torch.zeros((), dtype=torch.float64), len(pids)
    for asking, answering, margins in ((image, text, image_margins), (text, image, text_margins)):
        for k in range(size):
            others = [j for j in range(size) if pids[j] != pids[k]]
            if not others:
                continue
            hardest = max((asking[k] * answering[j]).sum() for j in others)
            miss = margins[k] - (asking[k] * answering[k]).sum() + hardest
            total = total + (miss if miss > 0 else 0 * miss)
    return total


def slow_margins(probs: Tensor, margin: float) -> list[Tensor]:
    margins = []
    for row in probs:
        entropy = -sum((p * p.log() for p in row if p > 0), torch.zeros((), dtype=row.dtype))
        margins.append((margin * (1 - entropy / log(len(row)))).detach())
    return margins


@pytest.mark.parametrize("batch", [2, 6, 17])
@pytest.mark.parametrize("slots", [None, PARTS])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ranking_equals_the_slow_loop(batch: int, slots: int | None, reduction: str) -> None:
    pids = torch.arange(batch) % 4
    shape = (batch, 8) if slots is None else (batch, slots, 8)
    fast_inputs = [rows(*shape, seed=seed).requires_grad_() for seed in (1, 2)]
    slow_inputs = [rows(*shape, seed=seed).double().requires_grad_() for seed in (1, 2)]
    fast = ranking_loss(*fast_inputs, pids, margin=0.4, reduction=reduction)  # type: ignore[arg-type]
    image, text = (values if slots else values[:, None] for values in slow_inputs)
    margins = [torch.tensor(0.4)] * batch
    parts = [slow_ranking(image[:, k], text[:, k], pids, margins, margins) for k in range(slots or 1)]
    assert_same(fast, torch.stack(parts).sum() / (1 if reduction == "sum" else batch), fast_inputs, slow_inputs)


@pytest.mark.parametrize("batch", [2, 6, 17])
@pytest.mark.parametrize("parts", [None, PARTS])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_cmr_equals_the_slow_loop(batch: int, parts: int | None, reduction: str) -> None:
    pids = torch.arange(batch) % 4
    shape = (batch,) if parts is None else (batch, parts)
    fast_inputs = [rows(*shape, 8, seed=seed).requires_grad_() for seed in (1, 2)]
    slow_inputs = [rows(*shape, 8, seed=seed).double().requires_grad_() for seed in (1, 2)]
    probs = [scores(*shape, CLASSES, seed=seed) for seed in (3, 4)]
    fast = cmr_loss(*fast_inputs, pids, *probs, margin=0.9, reduction=reduction)  # type: ignore[arg-type]
    image, text, of_image, of_text = (
        values if parts else values[:, None] for values in (*slow_inputs, *(p.double() for p in probs))
    )
    each = [
        slow_ranking(image[:, k], text[:, k], pids, slow_margins(of_image[:, k], 0.9), slow_margins(of_text[:, k], 0.9))
        for k in range(parts or 1)
    ]
    assert_same(fast, torch.stack(each).sum() / (1 if reduction == "sum" else batch), fast_inputs, slow_inputs)


def assert_same(fast: Tensor, slow: Tensor, fast_inputs: list[Tensor], slow_inputs: list[Tensor]) -> None:
    assert slow > 0
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, of) for loss, of in ((fast, fast_inputs), (slow, slow_inputs))]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)


def test_cmr_is_the_ranking_loss_where_nothing_is_common_and_has_no_margin_where_all_is() -> None:
    image, text = rows(6, PARTS, 8, seed=1), rows(6, PARTS, 8, seed=2)
    sure = F.one_hot(torch.arange(6 * PARTS).view(6, PARTS) % CLASSES, CLASSES).float()
    torch.testing.assert_close(commonality(sure), torch.zeros(6, PARTS))
    torch.testing.assert_close(cmr_loss(image, text, PIDS, sure, sure), ranking_loss(image, text, PIDS))
    even = torch.full((6, PARTS, CLASSES), 1 / CLASSES)
    torch.testing.assert_close(commonality(even), torch.ones(6, PARTS))
    without = ranking_loss(image, text, PIDS, margin=0.0)
    torch.testing.assert_close(cmr_loss(image, text, PIDS, even, even), without)


def test_the_image_is_common_in_one_direction_and_the_caption_in_the_other() -> None:
    image, text = rows(6, 8, seed=1), rows(6, 8, seed=2)
    sure, even = F.one_hot(PIDS, CLASSES).float(), torch.full((6, CLASSES), 1 / CLASSES)
    none = [torch.tensor(0.0)] * 6
    margins = [torch.tensor(0.5)] * 6
    for probs, expected in (((sure, even), (margins, none)), ((even, sure), (none, margins))):
        slow = slow_ranking(image.double(), text.double(), PIDS, *expected)
        torch.testing.assert_close(cmr_loss(image, text, PIDS, *probs, margin=0.5).double(), slow)


def test_the_hardest_negative_never_shows_the_same_person() -> None:
    image = rows(4, 8, seed=1).requires_grad_()
    text = image.detach().clone()  # the captions of a person's other images are as close as can be
    with torch.no_grad():
        image[1], text[1] = image[0], text[0]
    pids = torch.tensor([3, 3, 1, 2])
    assert ranking_loss(image, text, pids, margin=0.0) == 0
    assert ranking_loss(image, text, torch.arange(4), margin=0.1) >= 0.4 - 1e-6
    (gradient,) = torch.autograd.grad(cmr_loss(image, text, torch.zeros(4), *[scores(4, 5, seed=1)] * 2), image)
    assert (gradient == 0).all()


def test_no_gradient_passes_the_margin() -> None:
    logits = [torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (3, 4)]
    image, text = rows(6, 8, seed=1).requires_grad_(), rows(6, 8, seed=2)
    loss = cmr_loss(image, text, PIDS, *(values.softmax(dim=1) for values in logits))
    loss.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(values.grad is None for values in logits)


def test_commonality_of_extreme_scores_stays_between_0_and_1() -> None:
    assert commonality(torch.ones(3, 1)).tolist() == [0, 0, 0]
    assert commonality(torch.full((2, 11003), 1 / 11003)).max() <= 1
    assert commonality(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == [0, 1]


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_negatives_is_a_connected_zero(batch: int) -> None:
    image, text = (rows(max(1, batch), 8, seed=seed)[:1].requires_grad_() for seed in (1, 2))
    loss = ranking_loss(image, text, torch.zeros(1, dtype=torch.int64))
    assert loss == 0
    loss.backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_half_precision_rows_are_compared_in_fp32() -> None:
    image, text = rows(6, 8, seed=1).bfloat16(), rows(6, 8, seed=2).bfloat16()
    loss = ranking_loss(image, text, PIDS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ranking_loss(image.float(), text.float(), PIDS))


@pytest.fixture
def features(make_features: MakeFeatures, part_encoder: nn.Module) -> Features:
    return make_features(PIDS, encoder=part_encoder)


def blocks(features: Features, view: str, levels: str) -> Tensor:
    """The unit slots of `part_encoder`, whose levels are g, c, c, f, f, f."""
    slots = F.normalize(features.slots(view), dim=-1)
    return slots[:, [place for place, level in enumerate("gccfff") if level in levels]]


@pytest.mark.parametrize(("skip", "levels"), [((), "gcf"), (("fine",), "gc"), (("coarse", "fine"), "g")])
def test_ranking_takes_the_levels_that_are_left(
    skip: tuple[str, ...], levels: str, part_spec: ModelSpec, features: Features
) -> None:
    loss, stats = make_term(Ranking, part_spec, skip=skip, margin=0.3)(features)
    image, text = (blocks(features, view, levels) for view in ("image", "text"))
    torch.testing.assert_close(loss, ranking_loss(image, text, PIDS, margin=0.3))
    assert 0 < stats()["active"] <= 1


@pytest.mark.parametrize(("levels", "letters"), [(["fine"], "f"), (["coarse", "fine"], "cf")])
def test_cmr_reads_the_scores_of_the_id_term(
    levels: list[str], letters: str, part_spec: ModelSpec, features: Features
) -> None:
    torch.manual_seed(0)
    term, identity = make_term(CMR, part_spec, levels=levels, margin=0.3), make_term(ID, part_spec)
    nn.init.normal_(identity.classifier.weight)
    report = Objective({"cmr": term, "id": identity})(features)
    places = [place for place, level in enumerate("gccfff") if level in letters]
    probs = [features.shared("id_logits", view)[:, places].softmax(dim=2) for view in ("image", "text")]
    image, text = (blocks(features, view, letters) for view in ("image", "text"))
    torch.testing.assert_close(report.raw["cmr"], cmr_loss(image, text, PIDS, *probs, margin=0.3).detach())
    every = ["coarse_1", "coarse_2", "fine_1", "fine_2", "fine_3"]
    names = [name for name in every if name.split("_")[0] in levels]
    expected = {f"{m}_commonality_{name}" for m in ("image", "text") for name in names} | {"active"}
    assert set(report.stats["cmr"]) == expected
    assert report.stats["cmr"]["text_commonality_fine_2"] == commonality(probs[1]).mean(dim=0)[-2]


def test_a_head_without_fine_embeddings_leaves_cmr_a_connected_zero(
    make_features: MakeFeatures, part_encoder: nn.Module, part_spec: ModelSpec
) -> None:
    few = ModelSpec(48, 8, num_classes=6, vocab_size=32, slots={"global": 1, "coarse": 5, "fine": 0})
    objective = Objective({"cmr": make_term(CMR, few), "id": make_term(ID, few)})
    report = objective(make_features(PIDS, encoder=part_encoder))
    assert report.raw["cmr"] == 0
    report.total.backward()


def test_without_a_part_head_or_classifiers_training_does_not_start(spec: ModelSpec, part_spec: ModelSpec) -> None:
    provided = {"image", "text", "pids"}
    with pytest.raises(UserError, match=r"loss.terms.cmr needs 'parts', which this run lacks: set head=part"):
        check_needs(Objective({"cmr": make_term(CMR, spec), "id": make_term(ID, spec)}), provided)
    with pytest.raises(UserError, match=r"loss.terms.cmr needs 'id_logits', .*: set \+loss/term@loss.terms.id=id"):
        check_needs(Objective({"cmr": make_term(CMR, part_spec)}), {*provided, "parts"})
    check_needs(Objective({"cmr": make_term(CMR, part_spec), "id": make_term(ID, part_spec)}), {*provided, "parts"})


@pytest.mark.parametrize(
    ("override", "ranked"),
    [
        ("loss.terms.cmr.levels=[fine]", ["fine"]),
        ("loss.terms.cmr.levels=[coarse,fine]", ["coarse", "fine"]),
        ("~loss.terms.cmr", []),
    ],
)
def test_what_cmr_does_not_rank_ranking_does(
    override: str, ranked: list[str], compose_loss: ComposeLoss, part_spec: ModelSpec
) -> None:
    loss = compose_loss("loss=part_cmr", override).loss
    assert loss.terms.ranking.skip == ranked
    assert set(build_objective(loss.terms, part_spec).terms) == set(loss.terms)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"margin": -1}, "margin: -1 given"),
        ({"reduction": "median"}, r"reduction=median is unknown; expected sum or mean\."),
        ({"levels": ["fin"]}, r"levels=fin is unknown; expected global or coarse or fine\. Did you mean 'fine'"),
    ],
)
def test_misspelt_options_stop_before_training(options: dict, sentence: str, part_spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=sentence):
        make_term(CMR, part_spec, **options)
