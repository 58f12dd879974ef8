"""TAL against slow loops in fp64, with its gradients, its weights and its edges."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.objectives import TAL, EmbeddedPairs, ModelSpec, tal
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

TAU, MARGIN = 0.015, 0.1
REPEATED = torch.tensor([0, 1, 0, 2, 2, 3, 0])


def unit(count: int, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=1).to(dtype).requires_grad_()


def slow_tal(image: Tensor, text: Tensor, pids: Tensor, tau: float, margin: float, weights: list[float]) -> Tensor:
    """The equations of RDE, entry by entry; `a` is a number, so it has no gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for queries, gallery in ((text, image), (image, text)):
        for i, query in enumerate(queries):
            scores = [query @ row for row in gallery]
            same = [j for j in range(len(pids)) if pids[j] == pids[i]]
            other = [j for j in range(len(pids)) if pids[j] != pids[i]]
            if not other:
                continue
            powers = [math.exp(scores[j].item() / tau - max(s.item() for s in scores) / tau) for j in same]
            positive = sum(a / sum(powers) * scores[j] for a, j in zip(powers, same, strict=True))
            peak = max(scores[j].item() for j in other)
            negative = peak + tau * sum(((scores[j] - peak) / tau).exp() for j in other).log()
            row = margin - positive + negative
            total = total + weights[i] * (row if row > 0 else 0 * row)
    return total


@pytest.mark.parametrize("pids", [REPEATED, torch.arange(7), torch.tensor([0, 0, 0, 0, 0, 0, 1])], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("tau", "margin"), [(TAU, MARGIN), (0.2, 0.5), (0.05, -0.4)])
def test_values_and_gradients_are_those_of_the_loop(pids: Tensor, weighted: bool, tau: float, margin: float) -> None:
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 2.0, 1.0], dtype=torch.float64) if weighted else None
    image, text = unit(7), unit(7, seed=1)
    loss = tal(image, text, pids, tau, margin, weights)
    expected = slow_tal(image, text, pids, tau, margin, [1.0] * 7 if weights is None else weights.tolist())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(value, (image, text), retain_graph=True) for value in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert loss > 0 or margin < 0


def test_without_negatives_the_loss_is_a_zero_with_zero_gradients() -> None:
    image, text = unit(4), unit(4, seed=1)
    loss = tal(image, text, torch.zeros(4, dtype=torch.int64))
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (image, text)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_finite_in_half_precision_at_the_temperature_of_the_paper(dtype: torch.dtype) -> None:
    image, text = unit(7, dtype=dtype), unit(7, seed=1, dtype=dtype)
    loss = tal(image, text, REPEATED)
    exact = tal(image.double(), text.double(), REPEATED)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (image, text)))


def test_a_term_adds_up_the_blocks_of_the_embedding_and_tells_the_loss_of_each_pair() -> None:
    spec = ModelSpec(embed_dim=10, pooled_dim=6, num_classes=4, vocab_size=9, widths=(6, 4))
    blocks = [(unit(7, width, seed), unit(7, width, seed + 1)) for width, seed in ((6, 0), (4, 2))]
    image, text = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
    term = make_term(TAL, spec)
    scale = torch.ones(())
    losses = term.pair_losses(EmbeddedPairs(image, text, REPEATED, scale, scale))
    assert losses.shape == (7, 2)
    for column, block in zip(losses.T, blocks, strict=True):
        torch.testing.assert_close(column.sum(), tal(*block, REPEATED))
        weights = torch.zeros(7, dtype=torch.float64)
        weights[3] = 1
        torch.testing.assert_close(column[3], tal(*block, REPEATED, weights=weights))


def test_a_temperature_that_divides_by_zero_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"^tau: 0\.0 given, expected a temperature above 0"):
        make_term(TAL, spec, tau=0.0)
