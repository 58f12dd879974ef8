"""Contrastive losses against per-pair loops on float64 scalars."""

from collections.abc import Callable

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from model.objectives import citc, itc, nitc, ritc
from tests.small_models import small_model

DIM = 16
SCALE, BIAS = 12.0, -3.0
SOFT_RATIO = 0.3


def unit_rows(batch: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(batch, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def identities(batch: int, repeated: bool) -> Tensor:
    return torch.arange(batch) // 2 * 2 + 7 if repeated else torch.arange(batch) + 7


def leaves(*tensors: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def table(a: Tensor, b: Tensor) -> list[list[Tensor]]:
    """All inner products of the rows of `a` and `b`, one by one."""
    return [[(u * v).sum() for v in b] for u in a]


def transposed(rows: list[list[Tensor]]) -> list[list[Tensor]]:
    return [list(column) for column in zip(*rows, strict=True)]


def softmax_of(row: list[Tensor]) -> list[Tensor]:
    exponentials = [value.exp() for value in row]
    return [value / sum(exponentials) for value in exponentials]


def detached(row: list[Tensor]) -> list[float]:
    return [value.item() for value in row]


def logits_table(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | float = 0.0) -> list[list[Tensor]]:
    return [[scale * s + bias for s in row] for row in table(image, text)]


def slow_itc(image: Tensor, text: Tensor, pids: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows = logits_table(image, text, scale)
    total = 0 * (scale + bias)
    for direction in (rows, transposed(rows)):
        for i, row in enumerate(direction):
            total = total - softmax_of(row)[i].log() / (2 * len(rows))
    return total


def slow_softmax_nitc(ratio: float, image: Tensor, text: Tensor, pids: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows = logits_table(image, text, scale, bias)
    total = 0 * (scale + bias)
    for direction in (rows, transposed(rows)):
        for i, row in enumerate(direction):
            positives = [float(pids[i] == pids[j]) for j in range(len(row))]
            believed = detached(softmax_of(row))
            for j, p in enumerate(softmax_of(row)):
                target = (1 - ratio) * positives[j] / sum(positives) + ratio * believed[j]
                total = total - target * p.log() / (2 * len(rows))
    return total


def slow_sigmoid_nitc(ratio: float, image: Tensor, text: Tensor, pids: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows = logits_table(image, text, scale, bias)
    total = 0 * (scale + bias)
    for i, row in enumerate(rows):
        for j, logit in enumerate(row):
            p = 1 / (1 + (-logit).exp())
            target = (1 - ratio) * float(pids[i] == pids[j]) + ratio * p.item()
            total = total - (target * p.log() + (1 - target) * (1 - p).log()) / len(rows)
    return total


def slow_ritc(image: Tensor, text: Tensor, pids: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows = logits_table(image, text, scale, bias)
    total = 0 * (scale + bias)
    for direction in (rows, transposed(rows)):
        for i, row in enumerate(direction):
            positives = [float(pids[i] == pids[j]) for j in range(len(row))]
            for j, p in enumerate(softmax_of(row)):
                target = torch.tensor(positives[j] / sum(positives) + 1e-2, dtype=p.dtype)
                total = total + p * (p.log() - target.log()) / (2 * len(rows))
    return total


def slow_citc(image: Tensor, text: Tensor, pids: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    ii, tt, it = table(image, image), table(text, text), table(image, text)
    total = 0 * (scale + bias)
    for i in range(len(image)):
        for j in range(len(image)):
            total = total + (0.25 * (ii[i][j] - tt[i][j]) ** 2 + 0.5 * (it[i][j] - it[j][i]) ** 2) / len(image) ** 2
    return total


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

FAST: dict[str, Loss] = {
    "itc": lambda i, t, pids, scale, bias: itc(i, t, scale) + 0 * bias,
    "nitc-softmax": lambda i, t, pids, s, b: nitc(i, t, pids, s, b, sigmoid=False),
    "nitc-softmax-soft": lambda i, t, pids, s, b: nitc(i, t, pids, s, b, sigmoid=False, softlabel_ratio=SOFT_RATIO),
    "nitc-sigmoid": lambda i, t, pids, s, b: nitc(i, t, pids, s, b, sigmoid=True),
    "nitc-sigmoid-soft": lambda i, t, pids, s, b: nitc(i, t, pids, s, b, sigmoid=True, softlabel_ratio=SOFT_RATIO),
    "ritc": lambda i, t, pids, s, b: ritc(i, t, pids, s, b),
    "citc": lambda i, t, pids, s, b: citc(i, t, inmodal_weight=0.25, intermodal_weight=0.5) + 0 * (s + b),
}
SLOW: dict[str, Loss] = {
    "itc": slow_itc,
    "nitc-softmax": lambda *a: slow_softmax_nitc(0.0, *a),
    "nitc-softmax-soft": lambda *a: slow_softmax_nitc(SOFT_RATIO, *a),
    "nitc-sigmoid": lambda *a: slow_sigmoid_nitc(0.0, *a),
    "nitc-sigmoid-soft": lambda *a: slow_sigmoid_nitc(SOFT_RATIO, *a),
    "ritc": slow_ritc,
    "citc": slow_citc,
}


def call(loss: Loss, inputs: list[Tensor], pids: Tensor) -> Tensor:
    image, text, scale, bias = inputs
    return loss(image, text, pids, scale, bias)


@pytest.mark.parametrize("repeated", [True, False], ids=["repeated-pids", "distinct-pids"])
@pytest.mark.parametrize("batch", [2, 5, 24])
@pytest.mark.parametrize("name", FAST)
def test_equals_the_slow_loop_in_value_and_gradient(name: str, batch: int, repeated: bool) -> None:
    image, text, pids = unit_rows(batch, 1), unit_rows(batch, 2), identities(batch, repeated)
    scale, bias = torch.tensor(SCALE), torch.tensor(BIAS)
    fast_inputs = leaves(image, text, scale, bias, dtype=torch.float32)
    slow_inputs = leaves(image, text, scale, bias, dtype=torch.float64)
    fast = call(FAST[name], fast_inputs, pids)
    slow = call(SLOW[name], slow_inputs, pids)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    for got, expected in zip(
        torch.autograd.grad(fast, fast_inputs), torch.autograd.grad(slow, slow_inputs), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_itc_equals_that_of_open_clip_and_transformers_in_value_and_gradient(batch: int) -> None:
    own, theirs, others = (leaves(unit_rows(batch, 0), unit_rows(batch, 1), dtype=torch.float64) for _ in range(3))
    losses = [
        itc(*own, SCALE),
        ClipLoss()(*theirs, SCALE),
        image_text_contrastive_loss(SCALE * others[1] @ others[0].T),
    ]
    for loss in losses:
        loss.backward()
        torch.testing.assert_close(loss.double(), losses[0].double(), rtol=1e-6, atol=1e-6)
    for rows, *same in zip(own, theirs, others, strict=True):
        for other in same:
            torch.testing.assert_close(rows.grad, other.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_sigmoid_nitc_of_distinct_identities_equals_that_of_open_clip_and_transformers(batch: int) -> None:
    own, theirs = (leaves(unit_rows(batch, 0), unit_rows(batch, 1), dtype=torch.float32) for _ in range(2))
    loss = nitc(*own, identities(batch, repeated=False), SCALE, BIAS, sigmoid=True)
    expected = SigLipLoss()(*theirs, SCALE, BIAS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for rows, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(rows.grad, other.grad, rtol=1e-4, atol=1e-5)

    model = small_model("siglip").eval()
    pixels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(4, 40, (batch, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels, return_loss=True)
        scale, bias = model.logit_scale.exp(), model.logit_bias
        loss = nitc(
            output.image_embeds, output.text_embeds, identities(batch, repeated=False), scale, bias, sigmoid=True
        )
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=1e-5)


def test_hard_sigmoid_nitc_is_the_sum_of_logsigmoid_over_rows() -> None:
    image, text, pids = unit_rows(5, 1), unit_rows(5, 2), identities(5, repeated=True)
    signs = torch.where(pids[:, None] == pids, 1.0, -1.0)
    expected = -F.logsigmoid(signs * (SCALE * image @ text.T + BIAS)).sum() / 5
    torch.testing.assert_close(nitc(image, text, pids, SCALE, BIAS, sigmoid=True), expected)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_soft_targets_replace_the_inputs_get_no_gradient_and_vanish_at_ratio_zero(sigmoid: bool) -> None:
    image, text = leaves(unit_rows(5, 1), unit_rows(5, 2), dtype=torch.float32)
    others = leaves(unit_rows(5, 3), unit_rows(5, 4), dtype=torch.float32)
    pids = identities(5, repeated=True)

    def loss(soft_targets: tuple[Tensor, Tensor] | None, ratio: float) -> Tensor:
        return nitc(image, text, pids, SCALE, BIAS, sigmoid=sigmoid, soft_targets=soft_targets, softlabel_ratio=ratio)

    soft_targets = (others[0], others[1])
    loss(soft_targets, 0.5).backward()
    assert others[0].grad is None
    assert others[1].grad is None
    assert loss(soft_targets, 0.5) != loss(None, 0.5)
    assert torch.equal(loss((image.detach(), text.detach()), 0.5), loss(None, 0.5))
    assert torch.equal(loss(soft_targets, 0.0), loss(None, 0.0))


def test_a_target_that_equals_the_prediction_leaves_nothing_to_learn() -> None:
    image, text = leaves(unit_rows(5, 1), unit_rows(5, 2), dtype=torch.float32)
    for sigmoid in (True, False):
        loss = nitc(image, text, torch.arange(5), SCALE, BIAS, sigmoid=sigmoid, softlabel_ratio=1.0)
        for gradient in torch.autograd.grad(loss, (image, text)):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def test_citc_does_not_depend_on_the_scale() -> None:
    image, text = unit_rows(5, 1), unit_rows(5, 2)
    unscaled = citc(image, text, inmodal_weight=0.25, intermodal_weight=0.25)
    within = (image @ image.T - text @ text.T) * 50
    between = (image @ text.T - text @ image.T) * 50
    divided_out = 0.25 * (within.square().mean() + between.square().mean()) / 50**2
    torch.testing.assert_close(unscaled, divided_out)
    assert torch.equal(citc(image, text, 50.0, 0.25, 0.25), unscaled)
    assert torch.equal(citc(image, text, torch.tensor(100.0), 0.25, 0.25), unscaled)


@pytest.mark.parametrize("name", FAST)
def test_finite_at_the_largest_scale_on_opposite_and_equal_rows(name: str) -> None:
    rows = torch.cat([unit_rows(3, 1)] * 2)
    image, text = leaves(rows, -rows, dtype=torch.float32)
    loss = FAST[name](image, text, torch.arange(6), torch.tensor(300.0), torch.tensor(-20.0))
    loss.backward()
    assert loss.isfinite()
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("name", FAST)
def test_half_precision_embeddings_are_compared_in_fp32(name: str) -> None:
    image, text, pids = unit_rows(5, 1).bfloat16(), unit_rows(5, 2).bfloat16(), identities(5, repeated=True)
    scale, bias = torch.tensor(SCALE), torch.tensor(BIAS)
    loss = FAST[name](image, text, pids, scale, bias)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, FAST[name](image.float(), text.float(), pids, scale, bias))


CHOSEN = torch.tensor([True, False, True, True, False, False])


def test_itc_of_chosen_pairs_is_that_of_a_batch_without_the_others() -> None:
    image, text = leaves(unit_rows(6, 1), unit_rows(6, 2), dtype=torch.float64)
    some, alone = itc(image, text, SCALE, CHOSEN), itc(image[CHOSEN], text[CHOSEN], SCALE)
    torch.testing.assert_close(some, alone)
    gradients = (torch.autograd.grad(loss, (image, text)) for loss in (some, alone))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)
        assert torch.equal(got[~CHOSEN], torch.zeros_like(got[~CHOSEN]))


def test_itc_of_no_chosen_pair_is_a_connected_zero() -> None:
    image, scale = unit_rows(6, 1).requires_grad_(), torch.tensor(SCALE, requires_grad=True)
    loss = itc(image, unit_rows(6, 2), scale, torch.zeros(6, dtype=torch.bool))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (image, scale)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_itc_of_all_pairs_chosen_is_itc() -> None:
    image, text = unit_rows(6, 1), unit_rows(6, 2)
    torch.testing.assert_close(itc(image, text, SCALE, torch.ones(6, dtype=torch.bool)), itc(image, text, SCALE))
