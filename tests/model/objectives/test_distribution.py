"""SDM, A-SDM and CMPM against per-pair loops on float64 scalars, and their terms."""

import math
from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from model.features import Features
from model.objectives import ASDM, CMPM, SDM, ModelSpec, a_sdm, cmpm, sdm
from model.objectives.distribution import adaptive_weights, released_a_sdm
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

DIM = 16
SCALE, ALPHA, EPS = 20.0, 10.0, 1e-8

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
MakeFeatures = Callable[..., Features]


def rows(batch: int, seed: int) -> Tensor:
    return 2 * torch.randn(batch, DIM, generator=torch.Generator().manual_seed(seed))


def unit_rows(batch: int, seed: int) -> Tensor:
    return F.normalize(rows(batch, seed), dim=1)


def identities(batch: int, repeated: bool) -> Tensor:
    return torch.arange(batch) // 2 * 2 + 7 if repeated else torch.arange(batch) + 7


def slow(logits: list[list[Tensor]], pids: Tensor, alpha: float) -> Tensor:
    """One direction: the mean over rows of the weighted divergences, entry by entry."""
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(logits):
        exponentials = [logit.exp() for logit in row]
        p = [e / sum(exponentials) for e in exponentials]
        weight = alpha * (max(x.item() for x in p) - p[i].item()) + 1
        positives = [float(pids[i] == pids[j]) for j in range(len(row))]
        for j, p_j in enumerate(p):
            q_j = positives[j] / sum(positives)
            total = total + weight * p_j * (p_j.log() - math.log(q_j + EPS)) / len(logits)
    return total


def slow_a_sdm(image: Tensor, text: Tensor, pids: Tensor, alpha: float = ALPHA) -> Tensor:
    to_text = [[SCALE * (u * v).sum() for v in text] for u in image]
    to_image = [[SCALE * (u * v).sum() for v in image] for u in text]
    return slow(to_text, pids, alpha) + slow(to_image, pids, alpha)


def slow_released_a_sdm(image: Tensor, text: Tensor, pids: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for anchors, others in ((image, text), (text, image)):
        for i, anchor in enumerate(anchors):
            cosines = [(anchor * other).sum() for other in others]
            positives = [j for j in range(len(others)) if pids[j] == pids[i]]
            first = cosines[positives[0]]
            exponentials = [(SCALE * cosine).exp() for cosine in cosines]
            divergence = torch.zeros((), dtype=torch.float64)
            for j, e in enumerate(exponentials):
                p, q = e / sum(exponentials), (1 / len(positives) if j in positives else 0.0)
                divergence = divergence + p * (p.log() - math.log(q + EPS))
            total = total + (0.1 * (torch.stack(cosines).max() - first) + 1) * divergence / len(anchors)
    return total


def slow_cmpm(image: Tensor, text: Tensor, pids: Tensor) -> Tensor:
    to_text = [[(u * v).sum() / (v * v).sum().sqrt() for v in text] for u in image]
    to_image = [[(u * v).sum() / (v * v).sum().sqrt() for v in image] for u in text]
    return slow(to_text, pids, 0.0) + slow(to_image, pids, 0.0)


FAST: dict[str, Loss] = {
    "sdm": lambda i, t, pids: sdm(i, t, pids, SCALE),
    "a_sdm": lambda i, t, pids: a_sdm(i, t, pids, SCALE, ALPHA),
    "released_a_sdm": lambda i, t, pids: released_a_sdm(i, t, pids, SCALE),
    "cmpm": cmpm,
}
SLOW: dict[str, Loss] = {
    "sdm": lambda i, t, pids: slow_a_sdm(i, t, pids, alpha=0.0),
    "a_sdm": slow_a_sdm,
    "released_a_sdm": slow_released_a_sdm,
    "cmpm": slow_cmpm,
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("repeated", [True, False], ids=["repeated-pids", "distinct-pids"])
@pytest.mark.parametrize("batch", [2, 5, 24])
@pytest.mark.parametrize("name", FAST)
def test_equals_the_slow_loop_in_value_and_gradient(
    name: str, batch: int, repeated: bool, dtype: torch.dtype, tolerance: float
) -> None:
    draw = rows if name == "cmpm" else unit_rows
    pids = identities(batch, repeated)
    fast_inputs = [draw(batch, seed).to(dtype).requires_grad_() for seed in (1, 2)]
    slow_inputs = [draw(batch, seed).double().requires_grad_() for seed in (1, 2)]
    fast = FAST[name](fast_inputs[0], fast_inputs[1], pids)
    expected = SLOW[name](slow_inputs[0], slow_inputs[1], pids)
    assert fast.dtype == dtype
    torch.testing.assert_close(fast.double(), expected, rtol=tolerance, atol=tolerance)
    for got, wanted in zip(
        torch.autograd.grad(fast, fast_inputs), torch.autograd.grad(expected, slow_inputs), strict=True
    ):
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("repeated", [True, False])
def test_a_sdm_at_alpha_zero_is_sdm(repeated: bool) -> None:
    image, text, pids = unit_rows(5, 1), unit_rows(5, 2), identities(5, repeated)
    torch.testing.assert_close(a_sdm(image, text, pids, alpha=0.0), sdm(image, text, pids), rtol=0, atol=0)
    assert a_sdm(image, text, pids, alpha=1.0) > sdm(image, text, pids)


def test_a_matched_row_weighs_exactly_one_an_unmatched_one_more() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.4, 0.2, 0.4]], requires_grad=True)
    weights = adaptive_weights(p, alpha=10.0)
    assert weights[0] == 1
    assert weights[2] == 1
    torch.testing.assert_close(weights[1], torch.tensor(3.0))
    assert not weights.requires_grad


@pytest.mark.parametrize("name", FAST)
def test_swapping_the_modalities_or_the_order_of_the_batch_changes_nothing(name: str) -> None:
    image, text, pids = unit_rows(6, 1), unit_rows(6, 2), identities(6, repeated=True)
    order = torch.tensor([2, 0, 4, 3, 1, 5])  # of each person the same row stays first, for the released form
    loss = FAST[name](image, text, pids)
    torch.testing.assert_close(FAST[name](text, image, pids), loss)
    torch.testing.assert_close(FAST[name](image[order], text[order], pids[order]), loss)


def test_perfect_embeddings_leave_almost_nothing_to_learn() -> None:
    rows, pids = torch.eye(4)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2])
    assert sdm(rows, rows, pids).abs() < 1e-5
    assert a_sdm(rows, rows, pids).abs() < 1e-5
    assert cmpm(50 * rows, 50 * rows, pids).abs() < 1e-5


def test_a_learnt_scale_gets_a_gradient() -> None:
    scale = torch.tensor(SCALE, requires_grad=True)
    for loss in (sdm, a_sdm):
        (gradient,) = torch.autograd.grad(loss(unit_rows(5, 1), unit_rows(5, 2), torch.arange(5), scale), scale)
        assert gradient != 0


def test_cmpm_depends_on_the_norm_of_what_is_projected() -> None:
    image, text, pids = unit_rows(5, 1), unit_rows(5, 2), torch.arange(5)
    assert cmpm(image, text, pids) != cmpm(3 * image, text, pids)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("batch", [1, 6])
def test_one_identity_alone_stays_finite_and_connected(name: str, batch: int) -> None:
    image, text = (unit_rows(batch, seed).requires_grad_() for seed in (1, 2))
    loss = FAST[name](image, text, torch.zeros(batch))
    loss.backward()
    assert loss.isfinite()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert batch > 1 or loss.abs() < 1e-6


@pytest.mark.parametrize("name", FAST)
def test_finite_on_opposite_and_equal_rows_and_computed_in_fp32(name: str) -> None:
    half = torch.cat([rows(3, 1)] * 2)
    image, text = (100 * half).bfloat16().requires_grad_(), (-100 * half).bfloat16().requires_grad_()
    loss = FAST[name](image, text, torch.arange(6))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    torch.testing.assert_close(loss, FAST[name](image.float(), text.float(), torch.arange(6)))


def test_terms_count_pairs_that_are_closer_to_another(spec: ModelSpec, make_features: MakeFeatures) -> None:
    pids = torch.tensor([0, 0, 1, 1, 2])
    features = make_features(pids)
    cosines = (features.embedding("image") @ features.embedding("text").T).tolist()
    images = sum(max(cosines[i]) > cosines[i][i] for i in range(5)) / 5
    texts = sum(max(row[i] for row in cosines) > cosines[i][i] for i in range(5)) / 5
    _, stats = make_term(SDM, spec)(features)
    assert {name: value.item() for name, value in stats().items()} == pytest.approx(
        {"unmatched_images": images, "unmatched_texts": texts}
    )
    loss, stats = make_term(ASDM, spec, logit_scale=SCALE, alpha=2.0)(features)
    assert stats()["unmatched_images"].item() == pytest.approx(images)
    logits = SCALE * torch.tensor(cosines)
    weights = torch.cat([adaptive_weights(p.softmax(dim=1), 2.0) for p in (logits, logits.T)])
    torch.testing.assert_close(stats()["mean_weight"], weights.mean())
    torch.testing.assert_close(loss, a_sdm(features.embedding("image"), features.embedding("text"), pids, SCALE, 2.0))


def test_the_released_form_takes_the_first_of_a_persons_rows_and_no_alpha(
    spec: ModelSpec, make_features: MakeFeatures
) -> None:
    pids = torch.tensor([0, 0, 1, 1, 2])
    features = make_features(pids)
    image, text = features.embedding("image"), features.embedding("text")
    loss, stats = make_term(ASDM, spec, logit_scale=SCALE, form="released", alpha=7.0)(features)
    torch.testing.assert_close(loss, released_a_sdm(image, text, pids, SCALE))
    cosines = (image @ text.T).tolist()
    first = [0, 0, 2, 2, 4]
    weights = [0.1 * (max(cosines[i]) - cosines[i][first[i]]) + 1 for i in range(5)]
    weights += [0.1 * (max(row[i] for row in cosines) - cosines[first[i]][i]) + 1 for i in range(5)]
    assert stats()["mean_weight"].item() == pytest.approx(sum(weights) / 10)


def test_a_form_that_there_is_not_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"^form=papers is unknown; expected paper or released"):
        make_term(ASDM, spec, form="papers")


def test_cmpm_reads_pooled_features(spec: ModelSpec, make_features: MakeFeatures) -> None:
    pids = torch.tensor([0, 0, 1])
    features = make_features(pids)
    loss, _ = make_term(CMPM, spec)(features)
    torch.testing.assert_close(loss, cmpm(features.pooled("image"), features.pooled("text"), pids))


def test_a_negative_alpha_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"alpha: -1 given, expected 0 or more"):
        make_term(ASDM, spec, alpha=-1)


@pytest.mark.parametrize(
    ("preset", "terms"),
    [("irra", ["sdm", "id", "mlm"]), ("fmfa", ["a_sdm", "id", "mlm", "efa"])],
)
def test_presets_are_the_sums_of_the_papers(
    preset: str, terms: list[str], compose_loss: Callable[..., DictConfig]
) -> None:
    loss = compose_loss(f"loss={preset}", "loss.softlabel_ratio=0.0").loss
    assert {name: term.weight for name, term in loss.terms.items()} == dict.fromkeys(terms, 1.0)
    match = loss.terms[terms[0]]
    assert match.logit_scale == 50
    assert match.get("alpha", 10.0) == 10.0


def test_ablation_rows_are_single_overrides(compose_loss: Callable[..., DictConfig]) -> None:
    assert list(compose_loss("loss=irra", "~loss.terms.mlm").loss.terms) == ["sdm", "id"]
    assert list(compose_loss("loss=fmfa", "~loss.terms.efa").loss.terms) == ["a_sdm", "id", "mlm"]
    assert compose_loss("loss=fmfa", "loss.terms.a_sdm.alpha=0").loss.terms.a_sdm.alpha == 0
