"""EFA against a loop over words, patches and pairs on float64, chunked and whole, and its term."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.features import Encoded, Encoder, Features
from model.objectives import EFA, ModelSpec, Objective, efa
from model.objectives.efa import patch_weights, relative_similarities, released_efa
from tests.memory import LargestTensor
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

LENGTH, PATCHES, WIDTH = 6, 7, 16
MARGINS = (0.1, 0.8)
WHOLE = None

MakeFeatures = Callable[..., Features]


def tokens(batch: int, length: int, seed: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def leaves(batch: int, patches: int = PATCHES, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Text and image tokens that want a gradient."""
    text, image = tokens(batch, LENGTH, 1).to(dtype), tokens(batch, patches, 2).to(dtype)
    return text.requires_grad_(), image.requires_grad_()


def words_of(batch: int) -> Tensor:
    """A mask ``(B, L)`` of captions of 2, 3, ... words."""
    return torch.arange(LENGTH) < (2 + torch.arange(batch)[:, None] % (LENGTH - 1))


def slow_joint(words: list[Tensor], patches: list[Tensor], sigma: float) -> list[Tensor]:
    joint = []
    for word in words:
        inner = [(word * patch).sum() for patch in patches]
        low, high = min(inner), max(inner)
        relative = [(s - low) / (high - low) for s in inner]
        kept = [(s, patch) for s, patch in zip(relative, patches, strict=True) if s >= sigma]
        total = sum(s for s, _ in kept)
        joint.append(sum((s / total * patch for s, patch in kept), torch.zeros_like(word)))
    return joint


def slow_hard(a: list[Tensor], b: list[Tensor], lambda_: float) -> Tensor:
    pooled = torch.zeros((), dtype=torch.float64)
    for u in a:
        closest = max((u * v).sum() / (u.norm() * v.norm()) for v in b)
        pooled = pooled + (lambda_ * closest).exp()
    return pooled.log() / lambda_


def slow_efa(
    text: Tensor,
    image: Tensor,
    mask: Tensor,
    margin_text: float,
    margin_image: float,
    lambda_: float = 1.0,
    tau: float = 1.0,
    sigma: float | None = None,
) -> Tensor:
    captions = [[row[k] for k in range(len(row)) if mask[i, k]] for i, row in enumerate(text)]
    images = [list(row) for row in image]
    threshold = 1 / image.shape[1] if sigma is None else sigma
    joints = [slow_joint(words, patches, threshold) for words, patches in zip(captions, images, strict=True)]
    directions = [
        (captions, joints, margin_text),
        (joints, captions, margin_text),
        (images, joints, margin_image),
        (joints, images, margin_image),
    ]
    total = torch.zeros((), dtype=torch.float64)
    for anchors, others, margin in directions:
        for i, anchor in enumerate(anchors):
            own = slow_hard(anchor, others[i], lambda_)
            negatives = [
                ((slow_hard(anchor, other, lambda_) - own + margin) / tau).exp()
                for j, other in enumerate(others)
                if j != i
            ]
            total = total + sum(negatives).log() / len(anchors)  # type: ignore[union-attr]
    return total


@pytest.mark.parametrize("options", [{}, {"lambda_": 3.0, "tau": 0.5, "sigma": 0.4}], ids=["paper", "other"])
@pytest.mark.parametrize("chunk_size", [WHOLE, 1, 2, 8])
@pytest.mark.parametrize("batch", [2, 5])
def test_equals_the_slow_loop_in_value_and_gradient(
    batch: int, chunk_size: int | None, options: dict[str, Any]
) -> None:
    mask = words_of(batch)
    fast_inputs, slow_inputs = leaves(batch), leaves(batch, dtype=torch.float64)
    fast = efa(*fast_inputs, mask, *MARGINS, **options, chunk_size=chunk_size)
    slow = slow_efa(*slow_inputs, mask, *MARGINS, **options)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    for got, expected in zip(
        torch.autograd.grad(fast, fast_inputs), torch.autograd.grad(slow, slow_inputs), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def slow_released_efa(text: Tensor, image: Tensor) -> Tensor:
    """All tokens count. H_ij of i against the joint embeddings of j, rows of H at unit norm; 1 where i = j."""
    joints = [slow_joint(list(t), list(v), 1 / image.shape[1]) for t, v in zip(text, image, strict=True)]
    total, batch = torch.zeros((), dtype=torch.float64), len(text)
    for anchors, margin in ((text, 0.1), (image, 0.9)):
        hard = []
        for anchor in anchors:
            row = [slow_hard(list(anchor), joint, 1.0) for joint in joints]
            norm = sum((h * h for h in row), torch.zeros((), dtype=torch.float64)).sqrt()
            hard.append([h / norm for h in row])
        for j in range(batch):
            others = [i for i in range(batch) if i != j]
            from_rows = 1 + sum((hard[i][j] - hard[i][i] + margin).exp() for i in others)
            from_columns = 1 + sum((hard[i][j] - hard[j][j] + margin).exp() for i in others)
            total = total + (from_rows.log() + from_columns.log()) / batch  # type: ignore[union-attr]
    return total


@pytest.mark.parametrize("chunk_size", [WHOLE, 1, 2, 8])
@pytest.mark.parametrize("batch", [2, 5])
def test_the_released_form_equals_its_slow_loop_in_value_and_gradient(batch: int, chunk_size: int | None) -> None:
    inputs = leaves(batch, dtype=torch.float64)
    fast, slow = released_efa(*inputs, chunk_size=chunk_size), slow_released_efa(*inputs)
    torch.testing.assert_close(fast, slow)
    for got, expected in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_released_form_of_one_pair_is_zero_and_connected() -> None:
    inputs = leaves(1)
    loss = released_efa(*inputs)
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, inputs))


def test_the_released_form_has_its_own_constants(spec: ModelSpec, make_features: MakeFeatures) -> None:
    features = make_features(torch.arange(4))
    term = make_term(EFA, spec, form="released", margin_text=5.0, margin_image=6.0, lambda_=2.0, tau=0.5, sigma=0.3)
    text, image = features.text(), features.image()
    torch.testing.assert_close(term(features)[0], released_efa(text.tokens, image.tokens))
    after = term.similarity_maps(text, image)[1]
    weights = patch_weights(text.tokens, image.tokens).masked_fill(~text.mask[:, :, None], 0)
    torch.testing.assert_close(after / after.sum(dim=2, keepdim=True).clamp_min(1e-12), weights)
    with pytest.raises(UserError, match=r"^form=published is unknown; expected paper or released"):
        make_term(EFA, spec, form="published", margin_text=0.1, margin_image=0.1)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 9, 20])
def test_chunks_equal_the_plain_form_in_value_and_gradient(chunk_size: int) -> None:
    inputs = leaves(9, dtype=torch.float64)
    plain = efa(*inputs, words_of(9), *MARGINS, chunk_size=WHOLE)
    chunked = efa(*inputs, words_of(9), *MARGINS, chunk_size=chunk_size)
    torch.testing.assert_close(chunked, plain)
    for got, expected in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("chunk_size", "held"), [(1, 1), (4, 4), (WHOLE, 12)])
def test_no_tensor_is_larger_than_a_chunk_of_similarities_forward_or_backward(
    chunk_size: int | None, held: int
) -> None:
    batch = 12
    inputs = leaves(batch, patches=10 * PATCHES)
    largest = LargestTensor()
    with largest:
        efa(*inputs, words_of(batch), *MARGINS, chunk_size=chunk_size).backward()
    assert inputs[1].grad is not None
    similarities = held * batch * LENGTH * 10 * PATCHES
    assert largest.numel == max(similarities, inputs[1].numel())


def test_padding_changes_neither_value_nor_gradient() -> None:
    mask, image = words_of(5), tokens(5, PATCHES, 2)
    text = tokens(5, LENGTH, 1).requires_grad_()
    padded = torch.cat([text.detach(), 100 * tokens(5, 4, 3)], dim=1)
    padded[:, :LENGTH][~mask] = tokens(5, LENGTH, 4)[~mask]
    padded.requires_grad_()
    padded_mask = torch.cat([mask, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
    loss, padded_loss = efa(text, image, mask, *MARGINS), efa(padded, image, padded_mask, *MARGINS)
    torch.testing.assert_close(padded_loss, loss)
    (gradient,), (padded_gradient,) = (
        torch.autograd.grad(loss, [text]),
        torch.autograd.grad(padded_loss, [padded]),
    )
    torch.testing.assert_close(padded_gradient[padded_mask], gradient[mask])
    assert torch.equal(padded_gradient[~padded_mask], torch.zeros_like(padded_gradient[~padded_mask]))


def test_the_order_of_pairs_words_and_patches_does_not_matter() -> None:
    text, image, mask = tokens(5, LENGTH, 1), tokens(5, PATCHES, 2), words_of(5)
    loss = efa(text, image, mask, *MARGINS, chunk_size=2)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(efa(text[order], image[order], mask[order], *MARGINS, chunk_size=2), loss)
    torch.testing.assert_close(efa(text.flip(1), image, mask.flip(1), *MARGINS), loss)
    torch.testing.assert_close(efa(text, image.flip(1), mask, *MARGINS), loss)


def test_patches_are_scaled_cut_and_shared_out_per_word() -> None:
    patches = torch.tensor([[[0.0], [1.0], [3.0], [4.0], [10.0]]])
    words = torch.tensor([[[1.0], [-2.0]]])
    relative = torch.tensor([[[0.0, 0.1, 0.3, 0.4, 1.0], [1.0, 0.9, 0.7, 0.6, 0.0]]])
    torch.testing.assert_close(relative_similarities(words, patches), relative)
    at_one_fifth = torch.tensor([[[0.0, 0.0, 3 / 17, 4 / 17, 10 / 17], [10 / 32, 9 / 32, 7 / 32, 6 / 32, 0.0]]])
    torch.testing.assert_close(patch_weights(words, patches), at_one_fifth)
    at_two_thirds = torch.tensor([[[0.0, 0.0, 0.0, 0.0, 1.0], [10 / 26, 9 / 26, 7 / 26, 0.0, 0.0]]])
    torch.testing.assert_close(patch_weights(words, patches, sigma=2 / 3), at_two_thirds)


def of_images(spec: ModelSpec) -> ModelSpec:
    """Those of images as `encoded_pairs` has them."""
    return replace(spec, patches=PATCHES)


def encoded_pairs(batch: int) -> tuple[Encoded, Encoded]:
    """Texts and images with a [CLS] in front of their patches."""
    text, image, mask = tokens(batch, LENGTH, 1), tokens(batch, 1 + PATCHES, 2), words_of(batch)
    patches = (torch.arange(1 + PATCHES) > 0).expand(batch, -1)
    return Encoded(text[:, 0], text[:, 0], text, mask), Encoded(image[:, 0], image[:, 0], image, patches)


@pytest.mark.parametrize("sigma", [None, 0.6])
def test_the_loss_of_patches_mixed_by_the_maps_is_the_loss(
    sigma: float | None, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, image = encoded_pairs(5)
    maps = make_term(EFA, of_images(spec), margin_text=0.1, margin_image=0.8, sigma=sigma).similarity_maps(text, image)
    inputs = (text.tokens, image.tokens[:, 1:], text.mask, *MARGINS)
    loss = efa(*inputs, sigma=sigma)
    other = efa(*inputs, sigma=0.9)

    def from_map(*_: Any) -> Tensor:
        return maps[1] / maps[1].sum(dim=2, keepdim=True).clamp_min(1e-12)

    monkeypatch.setattr(sys.modules[EFA.__module__], "patch_weights", from_map)
    torch.testing.assert_close(efa(*inputs, sigma=sigma), loss)
    assert abs(other - loss) > 1e-3


@pytest.mark.parametrize(("sigma", "threshold"), [(None, 1 / PATCHES), (0.6, 0.6)])
def test_maps_are_scaled_per_word_then_cut_and_blank_for_padding(
    sigma: float | None, threshold: float, spec: ModelSpec
) -> None:
    text, image = encoded_pairs(5)
    before, after = make_term(EFA, of_images(spec), margin_text=0.1, margin_image=0.8, sigma=sigma).similarity_maps(
        text, image
    )
    assert before.shape == after.shape == (5, LENGTH, PATCHES)
    for i, k in [(i, k) for i in range(5) for k in range(LENGTH)]:
        inner = [float(text.tokens[i, k] @ patch) for patch in image.tokens[i, 1:]]
        relative = [(s - min(inner)) / (max(inner) - min(inner)) for s in inner]
        if not text.mask[i, k]:
            relative = [0.0] * PATCHES
        torch.testing.assert_close(before[i, k], torch.tensor(relative), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            after[i, k], torch.tensor([s if s >= threshold else 0.0 for s in relative]), rtol=1e-4, atol=1e-5
        )


def test_a_map_is_of_its_own_pair_and_moves_with_words_and_patches(spec: ModelSpec) -> None:
    term = make_term(EFA, of_images(spec), margin_text=0.1, margin_image=0.8, sigma=0.6)
    text, image = encoded_pairs(4)
    maps = term.similarity_maps(text, image)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = (
        replace(text, tokens=text.tokens[order], mask=text.mask[order]),
        replace(image, tokens=image.tokens[order], mask=image.mask[order]),
    )
    turned = replace(text, tokens=text.tokens.flip(1), mask=text.mask.flip(1))
    moved = replace(image, tokens=torch.cat([image.tokens[:, :1], image.tokens[:, 1:].flip(1)], dim=1))
    for found, of_shuffled, of_moved in zip(
        maps, term.similarity_maps(*shuffled), term.similarity_maps(turned, moved), strict=True
    ):
        torch.testing.assert_close(of_shuffled, found[order])
        torch.testing.assert_close(of_moved, found.flip(1, 2))


@pytest.mark.parametrize("constant", ["equal patches", "blank word", "one patch"])
def test_a_word_to_which_all_patches_are_alike_takes_them_all(constant: str) -> None:
    text, image, mask = tokens(3, LENGTH, 1), tokens(3, PATCHES, 2), words_of(3)
    if constant == "equal patches":
        image[0] = image[0, 0]
    elif constant == "blank word":
        text[0, 0] = 0
    else:
        image = image[:, :1].clone()
    weights = patch_weights(text, image)
    torch.testing.assert_close(weights[0, 0], torch.full((image.shape[1],), 1 / image.shape[1]))
    inputs = (text.requires_grad_(), image.requires_grad_())
    with torch.autograd.set_detect_anomaly(True):
        loss = efa(*inputs, mask, *MARGINS)
        gradients = torch.autograd.grad(loss, inputs)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_one_pair_has_no_negatives() -> None:
    inputs = leaves(1)
    with torch.autograd.set_detect_anomaly(True):
        loss = efa(*inputs, words_of(1), *MARGINS)
        gradients = torch.autograd.grad(loss, inputs)
    assert loss == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_a_margin_moves_its_own_two_directions_by_itself_over_tau() -> None:
    text, image, mask = tokens(5, LENGTH, 1), tokens(5, PATCHES, 2), words_of(5)
    without = efa(text, image, mask, 0.0, 0.0, tau=0.5)
    torch.testing.assert_close(efa(text, image, mask, 0.2, 0.7, tau=0.5), without + 2 * (0.2 + 0.7) / 0.5)


def test_the_term_gives_each_margin_to_its_own_two_directions(
    spec: ModelSpec, make_features: MakeFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the same with both exchanged: a margin is added to it whatever the direction."""
    ranked: list[tuple[Tensor, float]] = []

    def watched(hard: Tensor, margin: float, tau: float) -> Tensor:
        ranked.append((hard, margin))
        return hard.sum()

    monkeypatch.setattr(sys.modules[EFA.__module__], "_ranking", watched)
    features = make_features(torch.arange(3))
    make_term(EFA, spec, margin_text=0.1, margin_image=0.8)(features)
    text, image = features.text(), features.image()
    captions = [list(words[mask].double()) for words, mask in zip(text.tokens, text.mask, strict=True)]
    images = [list(patches.double()) for patches in image.tokens]
    joints = [slow_joint(*pair, 1 / image.tokens.shape[1]) for pair in zip(captions, images, strict=True)]
    directions = [(captions, joints, 0.1), (joints, captions, 0.1), (images, joints, 0.8), (joints, images, 0.8)]
    for (hard, given), (anchors, others, margin) in zip(ranked, directions, strict=True):
        expected = [[slow_hard(anchor, other, 1.0) for other in others] for anchor in anchors]
        torch.testing.assert_close(
            hard.double(), torch.stack([torch.stack(row) for row in expected]), rtol=0, atol=1e-5
        )
        assert given == margin


def test_half_precision_tokens_are_compared_in_fp32() -> None:
    text, image, mask = tokens(5, LENGTH, 1).half(), tokens(5, PATCHES, 2).half(), words_of(5)
    loss = efa(text, image, mask, *MARGINS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, efa(text.float(), image.float(), mask, *MARGINS))


def test_the_term_leaves_out_cls_and_counts_patches(
    spec: ModelSpec, make_features: MakeFeatures, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = torch.arange(4)
    term = make_term(EFA, replace(spec, patches=2), margin_text=0.1, margin_image=0.8, lambda_=2.0, tau=0.5, sigma=0.3)
    features = make_features(pids)
    image, text = features.image(), features.text()
    expected = efa(text.tokens, image.tokens, text.mask, 0.1, 0.8, 2.0, 0.5, 0.3)
    kept = (patch_weights(text.tokens, image.tokens, 0.3) > 0).sum(dim=2)[text.mask]
    encode_image = encoder.encode_image

    def with_cls(pixels: Tensor) -> Encoded:
        encoded = encode_image(pixels)
        cls = torch.full_like(encoded.tokens[:, :1], 9.0)
        mask = torch.cat([torch.zeros_like(encoded.mask[:, :1]), encoded.mask], dim=1)
        return replace(encoded, tokens=torch.cat([cls, encoded.tokens], dim=1), mask=mask)

    monkeypatch.setattr(encoder, "encode_image", with_cls)
    loss, stats = term(make_features(pids))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(stats()["patches_per_word"], kept.float().mean())


def test_amp_recomputes_in_fp32(spec: ModelSpec, make_features: MakeFeatures) -> None:
    term = make_term(EFA, spec, margin_text=0.1, margin_image=0.1, chunk_size=1)
    with torch.autocast("cpu", torch.bfloat16):
        features = make_features(torch.arange(4))
        report = Objective({"efa": term})(features)
        inputs = [features.image().tokens, features.text().tokens]
        gradients = torch.autograd.grad(report.total, inputs)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = efa(exact[1], exact[0], features.text().mask, 0.1, 0.1)
    torch.testing.assert_close(report.total, expected)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(got.float(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "value"), [("sigma", 1.5), ("sigma", -0.1), ("tau", 0.0), ("lambda_", -1.0), ("chunk_size", 0)]
)
def test_settings_that_cannot_be_are_refused(option: str, value: float, spec: ModelSpec) -> None:
    settings: dict[str, Any] = {"margin_text": 0.1, "margin_image": 0.1, option: value}
    with pytest.raises(UserError, match=rf"^{option}: {value} given, expected a number"):
        make_term(EFA, spec, **settings)
