"""Circle losses against per-pair loops on float64 scalars, with plain exponentials and sums."""

from collections.abc import Callable, Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.objectives import cross_modal_circle, in_modal_circle, nc_itc
from utils.errors import UserError

DIM = 16
MARGIN, GAMMA = 0.25, 32.0


def unit_rows(batch: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(batch, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def identities(batch: int, repeated: bool) -> Tensor:
    return torch.arange(batch) // 2 * 2 + 7 if repeated else torch.arange(batch) + 7


def positive_logit(s: Tensor, margin: float, gamma: float) -> Tensor:
    return gamma * max(1 + margin - s.item(), 0.0) * (s - (1 - margin))


def negative_logit(s: Tensor, margin: float, gamma: float) -> Tensor:
    return gamma * max(s.item() + margin, 0.0) * (s - margin)


def slow_circle(positives: list[Tensor], negatives: list[Tensor], zero: Tensor) -> Tensor:
    if not positives or not negatives:
        return zero
    pull = sum(((-positive_logit(s, MARGIN, GAMMA)).exp() for s in positives), zero)
    push = sum((negative_logit(s, MARGIN, GAMMA).exp() for s in negatives), zero)
    return (1 + push * pull).log()


def split(pairs: Iterable[tuple[int, int]], a: Tensor, b: Tensor, pids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    positives: list[Tensor] = []
    negatives: list[Tensor] = []
    for i, j in pairs:
        (positives if pids[i] == pids[j] else negatives).append((a[i] * b[j]).sum())
    return positives, negatives


def mean_of_complete_anchors(
    pairs_of: Callable[[int], Iterable[tuple[int, int]]], a: Tensor, b: Tensor, pids: Tensor
) -> Tensor:
    anchors = [split(pairs_of(i), a, b, pids) for i in range(len(pids))]
    zero = 0 * (a.sum() + b.sum())
    complete = [slow_circle(p, n, zero) for p, n in anchors if p and n]
    return sum(complete, zero) / max(len(complete), 1)


def slow_in_modal_batch(a: Tensor, _: Tensor, pids: Tensor) -> Tensor:
    pairs = [(i, j) for i in range(len(a)) for j in range(i + 1, len(a))]
    return slow_circle(*split(pairs, a, a, pids), 0 * a.sum())


def slow_in_modal_anchor(a: Tensor, _: Tensor, pids: Tensor) -> Tensor:
    return mean_of_complete_anchors(lambda i: [(i, j) for j in range(len(a)) if j != i], a, a, pids)


def slow_cross_modal_batch(image: Tensor, text: Tensor, pids: Tensor) -> Tensor:
    pairs = [(i, j) for i in range(len(image)) for j in range(len(text))]
    return slow_circle(*split(pairs, image, text, pids), 0 * (image.sum() + text.sum()))


def slow_cross_modal_anchor(image: Tensor, text: Tensor, pids: Tensor) -> Tensor:
    to_text = mean_of_complete_anchors(lambda i: [(i, j) for j in range(len(text))], image, text, pids)
    to_image = mean_of_complete_anchors(lambda i: [(j, i) for j in range(len(image))], image, text, pids)
    return (to_text + to_image) / 2


def slow_nc_itc(image: Tensor, text: Tensor, pids: Tensor, entries_per_mean: int) -> Tensor:
    total = 0 * (image.sum() + text.sum())
    for i in range(len(image)):
        for j in range(len(text)):
            s = (image[i] * text[j]).sum()
            if pids[i] == pids[j]:
                total = total + (1 + (-positive_logit(s, 0.35, GAMMA)).exp()).log()
            else:
                total = total + (1 + negative_logit(s, 0.35, GAMMA).exp()).log()
    return total / entries_per_mean


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

FAST: dict[str, Loss] = {
    "in-modal-batch": lambda a, b, pids: in_modal_circle(a, pids, MARGIN, GAMMA),
    "in-modal-anchor": lambda a, b, pids: in_modal_circle(a, pids, MARGIN, GAMMA, scope="anchor"),
    "cross-modal-batch": lambda a, b, pids: cross_modal_circle(a, b, pids, MARGIN, GAMMA),
    "cross-modal-anchor": lambda a, b, pids: cross_modal_circle(a, b, pids, MARGIN, GAMMA, scope="anchor"),
    "nc-itc-mean": lambda a, b, pids: nc_itc(a, b, pids, 0.35, GAMMA),
    "nc-itc-row": lambda a, b, pids: nc_itc(a, b, pids, 0.35, GAMMA, reduction="row"),
}
SLOW: dict[str, Loss] = {
    "in-modal-batch": slow_in_modal_batch,
    "in-modal-anchor": slow_in_modal_anchor,
    "cross-modal-batch": slow_cross_modal_batch,
    "cross-modal-anchor": slow_cross_modal_anchor,
    "nc-itc-mean": lambda a, b, pids: slow_nc_itc(a, b, pids, len(a) ** 2),
    "nc-itc-row": lambda a, b, pids: slow_nc_itc(a, b, pids, len(a)),
}
CIRCLES = [name for name in FAST if "modal" in name]


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("repeated", [True, False], ids=["repeated-pids", "distinct-pids"])
@pytest.mark.parametrize("batch", [2, 5, 24])
@pytest.mark.parametrize("name", FAST)
def test_equals_the_slow_loop_in_value_and_gradient(name: str, batch: int, repeated: bool) -> None:
    pids = identities(batch, repeated)
    fast_inputs = [unit_rows(batch, seed).requires_grad_() for seed in (1, 2)]
    slow_inputs = [unit_rows(batch, seed).double().requires_grad_() for seed in (1, 2)]
    fast = FAST[name](fast_inputs[0], fast_inputs[1], pids)
    slow = SLOW[name](slow_inputs[0], slow_inputs[1], pids)
    assert fast.dtype == torch.float32
    assert fast.requires_grad
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    for got, expected in zip(gradients(fast, fast_inputs), gradients(slow, slow_inputs), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CIRCLES)
@pytest.mark.parametrize(
    "pids",
    [pytest.param(torch.zeros(6), id="no-negatives"), pytest.param(torch.zeros(1), id="one-sample")],
)
def test_without_negatives_a_zero_that_is_connected(name: str, pids: Tensor) -> None:
    assert_connected_zero(FAST[name], pids)


@pytest.mark.parametrize("name", [name for name in CIRCLES if "in-modal" in name])
def test_without_positives_a_zero_that_is_connected(name: str) -> None:
    assert_connected_zero(FAST[name], torch.arange(6))


def assert_connected_zero(loss_of: Loss, pids: Tensor) -> None:
    image, text = (unit_rows(len(pids), seed).requires_grad_() for seed in (1, 2))
    with torch.autograd.set_detect_anomaly(True):
        loss = loss_of(image, text, pids)
        loss.backward()
    assert loss == 0
    assert image.grad is not None
    assert torch.equal(image.grad, torch.zeros_like(image))


@pytest.mark.parametrize("scope", ["batch", "anchor"])
@pytest.mark.parametrize("worst", [True, False], ids=["every-pair-wrong", "every-pair-right"])
def test_gamma_300_does_not_overflow(scope: Literal["batch", "anchor"], worst: bool) -> None:
    center = unit_rows(1, 1)
    image = torch.cat([center, center, -center, -center]).requires_grad_()
    pids = torch.tensor([0, 1, 0, 1] if worst else [0, 0, 1, 1])
    text = image.detach().clone().requires_grad_()
    losses = [
        in_modal_circle(image, pids, 0.25, 300.0, scope=scope),
        cross_modal_circle(image, text, pids, 0.25, 300.0, scope=scope),
        nc_itc(image, text, pids, 0.35, 300.0),
    ]
    for loss in losses:
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in gradients(loss, [image, text]))
    assert (losses[0] > 300) == worst


def test_weights_get_no_gradient() -> None:
    """The gradient written out by hand for one positive and two negatives, with every alpha as a constant."""
    s_p, s_n = torch.tensor(0.6), torch.tensor(0.2)
    image = torch.tensor([[1.0, 0.0]])
    texts = torch.stack([torch.stack([s, (1 - s**2).sqrt()]) for s in (s_p, s_n)])
    embeddings = torch.cat([image, texts]).requires_grad_()
    pids = torch.tensor([0, 0, 1])
    loss = in_modal_circle(embeddings[:3], pids, MARGIN, GAMMA)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    s_other = (texts[0] * texts[1]).sum()
    logits = [GAMMA * (s + MARGIN) * (s - MARGIN) for s in (s_n, s_other)]
    pull = -GAMMA * (1 + MARGIN - s_p) * (s_p - (1 - MARGIN))
    total = torch.sigmoid(torch.logsumexp(torch.stack(logits), 0) + pull)
    share = torch.softmax(torch.stack(logits), 0)
    expected = -total * GAMMA * (1 + MARGIN - s_p) * texts[0] + total * share[0] * GAMMA * (s_n + MARGIN) * texts[1]
    torch.testing.assert_close(gradient[0], expected)


def test_value_at_the_optimum() -> None:
    """At s_p = 1 and two s_n = 0 the loss is at its optimum, log(1 + 2 exp(-2 gamma m^2))."""
    embeddings = torch.eye(4)[[0, 0, 1]]
    expected = F.softplus(torch.tensor(2.0).log() - 2 * GAMMA * MARGIN**2)
    torch.testing.assert_close(in_modal_circle(embeddings, torch.tensor([0, 0, 1]), MARGIN, GAMMA), expected)


def test_misspelt_options_are_named() -> None:
    rows, pids = unit_rows(2, 1), torch.arange(2)
    with pytest.raises(UserError, match=r"scope=anchors is unknown; expected batch or anchor. Did you mean 'anchor'"):
        in_modal_circle(rows, pids, scope="anchors")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="scope"):
        cross_modal_circle(rows, rows, pids, scope="row")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reduction=sum is unknown; expected mean or row"):
        nc_itc(rows, rows, pids, reduction="sum")  # type: ignore[arg-type]
