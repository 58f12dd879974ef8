"""The weights of pairs in the losses that use them, and the losses of pairs from which a labelling finds weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Features
from model.objectives import (
    NITC,
    SDM,
    TAL,
    CrossModalCircle,
    EmbeddedPairs,
    LossTerm,
    ModelSpec,
    Objective,
    check_needs,
    cross_modal_circle,
    nitc,
    sdm,
)
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

PIDS = torch.tensor([0, 0, 1, 2, 2, 3])
WEIGHTS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
SCALE, BIAS = torch.tensor(10.0), torch.tensor(-2.0)

MakeFeatures = Callable[..., Features]


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


IMAGE, TEXT = unit(0), unit(1)


@pytest.mark.parametrize("loss", [sdm, lambda *a, **k: nitc(*a, SCALE, BIAS, sigmoid=False, **k)], ids=["sdm", "nitc"])
def test_a_pair_of_weight_0_is_left_out_of_the_mean_over_rows(loss: Callable[..., Tensor]) -> None:
    rows = torch.stack([loss(IMAGE, TEXT, PIDS, weights=one) for one in torch.eye(6, dtype=torch.float64)])
    torch.testing.assert_close(rows.mean(), loss(IMAGE, TEXT, PIDS))
    kept = rows[WEIGHTS > 0].mean()
    torch.testing.assert_close(loss(IMAGE, TEXT, PIDS, weights=WEIGHTS.double()), kept)
    assert loss(IMAGE, TEXT, PIDS, weights=torch.zeros(6, dtype=torch.float64)).item() == 0


def test_the_sigmoid_form_gives_each_pair_half_of_its_row_and_half_of_its_column() -> None:
    logits = SCALE * IMAGE @ TEXT.T + BIAS
    same = (PIDS[:, None] == PIDS).double()
    entropy = -(same * F.logsigmoid(logits) + (1 - same) * F.logsigmoid(-logits))
    expected = ((entropy.sum(dim=0) + entropy.sum(dim=1)) / 2)[WEIGHTS > 0].mean()
    found = nitc(IMAGE, TEXT, PIDS, SCALE, BIAS, sigmoid=True, weights=WEIGHTS.double())
    torch.testing.assert_close(found, expected)
    everything = nitc(IMAGE, TEXT, PIDS, SCALE, BIAS, sigmoid=True, weights=torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(everything, nitc(IMAGE, TEXT, PIDS, SCALE, BIAS, sigmoid=True))


@pytest.mark.parametrize("scope", ["batch", "anchor"])
def test_a_text_of_weight_0_is_a_positive_of_no_image_and_stays_a_negative(scope: str) -> None:
    found = cross_modal_circle(IMAGE, TEXT, PIDS, scope=scope, weights=WEIGHTS)
    similarity, same = IMAGE @ TEXT.T, PIDS[:, None] == PIDS
    positive = same & (WEIGHTS > 0)[None, :]

    def circle(s: Tensor, p: Tensor, n: Tensor) -> Tensor:
        ap, an = (1.25 - s).clamp_min(0), (s + 0.25).clamp_min(0)
        negatives, positives = 128 * an * (s - 0.25), -128 * ap * (s - 0.75)
        return F.softplus(negatives[n].logsumexp(0) + positives[p].logsumexp(0))

    if scope == "batch":
        expected = circle(similarity, positive, ~same)
    else:
        directions = []
        for s, p, y in ((similarity, positive, same), (similarity.T, positive.T, same.T)):
            rows = [circle(s[i], p[i], ~y[i]) for i in range(6) if p[i].any()]
            directions.append(torch.stack(rows).mean())
        expected = torch.stack(directions).mean()
    torch.testing.assert_close(found, expected)
    unweighted = cross_modal_circle(IMAGE, TEXT, PIDS, scope=scope)
    torch.testing.assert_close(cross_modal_circle(IMAGE, TEXT, PIDS, scope=scope, weights=torch.ones(6)), unweighted)


@pytest.mark.parametrize("cls", [TAL, SDM, NITC, CrossModalCircle])
def test_a_weighted_term_reads_the_weights_and_says_so(
    cls: type[LossTerm], spec: ModelSpec, make_features: MakeFeatures
) -> None:
    term, plain = make_term(cls, spec, weighted=True), make_term(cls, spec)
    assert term.needs - plain.needs == {"pair_weights"}
    with pytest.raises(UserError, match=r"loss\.terms\.tested needs 'pair_weights'.*set pseudo_label=consensus"):
        check_needs(Objective({"tested": term}), plain.needs)
    everything, nothing, some = torch.ones(6), torch.zeros(6), torch.eye(6)[5]
    losses = [term(make_features(PIDS, pair_weights=weights))[0] for weights in (everything, nothing, some)]
    torch.testing.assert_close(losses[0], plain(make_features(PIDS))[0])
    assert losses[1].item() == 0
    assert losses[1].requires_grad
    assert not torch.isclose(losses[2], losses[0])


def test_the_losses_of_pairs_are_those_of_the_weighted_terms(spec: ModelSpec) -> None:
    pairs = EmbeddedPairs(IMAGE, TEXT, PIDS, SCALE, BIAS)
    softmax = make_term(NITC, spec, weighted=True, sigmoid=False)
    terms = {"sdm": make_term(SDM, spec, weighted=True), "plain": make_term(SDM, spec), "nitc": softmax}
    losses = Objective(terms).pair_losses(pairs)
    assert losses.shape == (6, 2)
    torch.testing.assert_close(losses.mean(dim=0)[0], sdm(IMAGE, TEXT, PIDS))
    torch.testing.assert_close(losses.mean(dim=0)[1], nitc(IMAGE, TEXT, PIDS, SCALE, BIAS, sigmoid=False))
    circle = Objective({"circle": make_term(CrossModalCircle, spec, weighted=True), "sdm": make_term(SDM, spec)})
    with pytest.raises(UserError, match=r"^pseudo_label=consensus divides pairs by a loss of each pair, which no"):
        circle.pair_losses(pairs)
