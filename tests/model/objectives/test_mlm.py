"""Masked language modelling: the loss and the interaction encoder against loops on float64, and the term."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.batch import NOT_PREDICTED as MARKED_IN_BATCHES
from model.features import Encoded, Encoder, Features
from model.objectives import MLM, ModelSpec, Objective, mlm, mlm_loss
from model.objectives.mlm import NOT_PREDICTED, InteractionEncoder
from tests.model.objectives.make_term import make_term

VOCABULARY, LENGTH, PATCHES, WIDTH = 11, 5, 3, 128
PIDS = torch.tensor([0, 0, 1, 1, 2])

MakeFeatures = Callable[..., Features]


def noise(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def labels_of(batch: int) -> Tensor:
    labels = torch.randint(VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(3))
    return labels.masked_fill(torch.arange(batch * LENGTH).view(batch, LENGTH) % 3 > 0, -100)


def slow_mlm_loss(scores: Tensor, labels: Tensor) -> Tensor:
    losses = []
    for i in range(labels.shape[0]):
        for position in range(labels.shape[1]):
            if labels[i, position] != -100:
                exponentials = [score.exp() for score in scores[i, position]]
                losses.append(-(exponentials[int(labels[i, position])] / sum(exponentials)).log())
    return torch.stack(losses).sum() / len(losses)


def test_what_batches_mark_is_what_the_loss_leaves_out() -> None:
    assert NOT_PREDICTED == MARKED_IN_BATCHES == nn.CrossEntropyLoss().ignore_index


@pytest.mark.parametrize("batch", [2, 5])
def test_the_loss_equals_the_slow_loop_in_value_and_gradient(batch: int) -> None:
    labels = labels_of(batch)
    fast_scores = (3 * noise(batch, LENGTH, VOCABULARY, seed=1)).requires_grad_()
    slow_scores = fast_scores.detach().double().requires_grad_()
    fast, slow = mlm_loss(fast_scores, labels), slow_mlm_loss(slow_scores, labels)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    fast.backward()
    slow.backward()
    assert fast_scores.grad is not None
    torch.testing.assert_close(fast_scores.grad.double(), slow_scores.grad, rtol=1e-4, atol=1e-6)


def test_unmasked_positions_have_no_say() -> None:
    labels = labels_of(4)
    scores = noise(4, LENGTH, VOCABULARY, seed=1).requires_grad_()
    loss = mlm_loss(scores, labels)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.equal(gradient[labels == -100], torch.zeros_like(gradient[labels == -100]))
    assert gradient[labels != -100].abs().sum(dim=1).min() > 0
    other = torch.where((labels == -100)[..., None], 100 * noise(4, LENGTH, VOCABULARY, seed=2), scores)
    assert torch.equal(mlm_loss(other, labels), loss)
    assert torch.equal(mlm_loss(scores[labels != -100], labels[labels != -100]), loss)


def test_half_precision_scores_are_compared_in_fp32() -> None:
    scores, labels = (300 * noise(4, LENGTH, VOCABULARY, seed=1)).half(), labels_of(4)
    loss = mlm_loss(scores, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mlm_loss(scores.float(), labels))


def slow_norm(norm: Any, token: Tensor) -> Tensor:
    centered = token - token.mean()
    return centered / (centered.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def slow_attention(attention: nn.MultiheadAttention, queries: list[Tensor], keys: list[Tensor]) -> list[Tensor]:
    """Every query and every head on its own."""
    weight_q, weight_k, weight_v = attention.in_proj_weight.chunk(3)
    bias_q, bias_k, bias_v = attention.in_proj_bias.chunk(3)
    size = WIDTH // attention.num_heads
    answers = []
    for query in queries:
        heads = []
        for head in range(attention.num_heads):
            rows = slice(head * size, (head + 1) * size)
            q = weight_q[rows] @ query + bias_q[rows]
            agreement = [(q @ (weight_k[rows] @ key + bias_k[rows]) / size**0.5).exp() for key in keys]
            values = [weight_v[rows] @ key + bias_v[rows] for key in keys]
            mixed = sum(a * v for a, v in zip(agreement, values, strict=True))
            heads.append(mixed / sum(agreement))
        answers.append(attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias)
    return answers


def slow_interaction(encoder: InteractionEncoder, words: list[Tensor], image: list[Tensor]) -> Tensor:
    """The words of one caption, without padding, before one image."""
    image = [slow_norm(encoder.image_norm, token) for token in image]
    words = slow_attention(encoder.cross_attention, [slow_norm(encoder.text_norm, word) for word in words], image)
    for block in encoder.blocks.layers:
        normed = [slow_norm(block.norm1, word) for word in words]
        attended = slow_attention(block.self_attn, normed, normed)
        words = [word + extra for word, extra in zip(words, attended, strict=True)]
        hidden = [block.linear1.weight @ slow_norm(block.norm2, w) + block.linear1.bias for w in words]
        hidden = [h / (1 + (-1.702 * h).exp()) for h in hidden]
        words = [word + block.linear2.weight @ h + block.linear2.bias for word, h in zip(words, hidden, strict=True)]
    return torch.stack([slow_norm(encoder.blocks.norm, word) for word in words])


@pytest.fixture
def interaction() -> InteractionEncoder:
    """Two heads, two blocks, float64; no parameter is zero or one."""
    torch.manual_seed(0)
    encoder = InteractionEncoder(WIDTH, depth=2).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.1)
    return encoder


@pytest.mark.parametrize("batch", [2, 5])
def test_interaction_equals_the_slow_loop_in_value_and_gradient(batch: int, interaction: InteractionEncoder) -> None:
    text = noise(batch, LENGTH, WIDTH, seed=1).double().requires_grad_()
    image = noise(batch, PATCHES, WIDTH, seed=2).double().requires_grad_()
    mask = torch.arange(LENGTH) < torch.arange(2, 2 + batch)[:, None]
    toward = noise(batch, LENGTH, WIDTH, seed=4).double()
    fast = interaction(text, image, mask)
    rows = [slow_interaction(interaction, list(text[i][mask[i]]), list(image[i])) for i in range(batch)]
    torch.testing.assert_close(fast[mask], torch.cat(rows))
    inputs = [text, image, *interaction.parameters()]
    assert len(inputs) == 2 + 4 + 4 + 2 * 12 + 2
    for got, expected in zip(
        torch.autograd.grad((fast * toward)[mask].sum(), inputs),
        torch.autograd.grad((torch.cat(rows) * toward[mask]).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_padding_never_matters(interaction: InteractionEncoder) -> None:
    text, image = noise(3, LENGTH, WIDTH, seed=1).double(), noise(3, PATCHES, WIDTH, seed=2).double()
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    padded = torch.cat([text, 50 * noise(3, 4, WIDTH, seed=5).double()], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    words = interaction(padded, image, padded_mask)[:, :LENGTH]
    torch.testing.assert_close(words, interaction(text, image, mask))


def test_every_weight_starts_as_in_the_released_code() -> None:
    """Std of a normal, bound of a uniform, or constant, of the 64 tensors of width 512 and depth 4."""
    torch.manual_seed(0)
    term = make_term(MLM, ModelSpec(embed_dim=512, pooled_dim=512, num_classes=1, vocab_size=2_000))
    assert term.interaction.cross_attention.num_heads == 8
    normals = {
        "in_proj_weight": 512**-0.5,
        "out_proj.weight": (2 * 4 * 512) ** -0.5,
        "linear1.weight": (2 * 512) ** -0.5,
        "linear2.weight": (2 * 4 * 512) ** -0.5,
        "head.dense.weight": (2 * 512) ** -0.5,
        "head.scores.weight": (2 * 4 * 512) ** -0.5,
    }
    bounds = {"linear1.bias": 512**-0.5, "linear2.bias": 2048**-0.5, "dense.bias": 512**-0.5, "scores.bias": 512**-0.5}
    zeros = ("in_proj_bias", "out_proj.bias")
    parameters = dict(term.named_parameters())
    norms = {f"{name}." for name, module in term.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(parameters) == 4 + 4 + 4 * 12 + 2 + 6
    for name, parameter in parameters.items():
        if name.startswith(tuple(norms)):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith(zeros):
            assert not parameter.any(), name
        elif name.endswith("weight"):
            std = next(std for end, std in normals.items() if name.endswith(end))
            assert parameter.std().item() == pytest.approx(std, rel=0.01), name
            assert abs(parameter.mean().item()) < 0.01 * std, name
            assert 4 * std < parameter.abs().max().item() < 6.5 * std, f"{name} is no normal"
        else:
            bound = next(bound for end, bound in bounds.items() if name.endswith(end))
            assert 0.98 * bound < parameter.abs().max().item() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
    drawn = [value for name, value in parameters.items() if value.std() > 0]
    assert not any(a.shape == b.shape and torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])


@pytest.fixture
def term(spec: ModelSpec) -> MLM:
    torch.manual_seed(0)
    return make_term(MLM, spec)


def features_with(labels: Tensor, encoder: Encoder, padding: int = 0) -> Features:
    """Features of noise images and captions with these labels ``(B, L)``, then padded."""
    batch, length = labels.shape
    draw = torch.Generator().manual_seed(1)
    images = {"image": torch.randint(256, (batch, 3, 8, 4), generator=draw, dtype=torch.uint8)}
    ids = F.pad(torch.randint(VOCABULARY, labels.shape, generator=draw), (0, padding))
    mask = torch.arange(length + padding).expand(batch, -1) < length
    labels = F.pad(labels, (0, padding), value=-100)
    positions = (labels != -100).flatten().nonzero()[:, 0]
    return Features(encoder, images, {"text_masked": (ids, mask)}, {"mlm_labels": labels, "mlm_positions": positions})


def test_only_masked_positions_reach_the_vocabulary_and_nothing_changes(term: MLM, encoder: Encoder) -> None:
    labels = labels_of(4)
    features = features_with(labels, encoder)
    image, text = features.image(), features.text("text_masked")
    everywhere = mlm_loss(term.head(term.interaction(text.tokens, image.tokens, text.mask)), labels)
    inputs = [image.tokens, text.tokens, *term.parameters()]
    expected = torch.autograd.grad(everywhere, inputs)
    scored: list[int] = []
    term.head[-1].register_forward_hook(lambda *call: scored.append(len(call[2])))
    loss, _ = term(features)
    assert scored == [(labels != -100).sum()]
    torch.testing.assert_close(loss, everywhere)
    for got, wanted in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_scores_in_chunks_change_neither_loss_nor_gradient_nor_statistics(
    term: MLM, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for scores in (2**25, 3 * VOCABULARY):
        monkeypatch.setattr(mlm, "SCORES", scores)
        features = features_with(labels_of(4), encoder)
        loss, stats = term(features)
        inputs = [features.image().tokens, features.text("text_masked").tokens, *term.parameters()]
        found.append((loss, stats(), torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(*found)


def test_no_more_scores_than_a_chunk_are_kept(term: MLM, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlm, "SCORES", 3 * VOCABULARY)
    features = features_with(labels_of(5), encoder)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(tuple(saved.shape)) or saved, lambda s: s):
        term(features)
    assert not [shape for shape in kept if shape[-1:] == (VOCABULARY,)]


def test_longer_padding_changes_nothing(term: MLM, encoder: Encoder) -> None:
    short, padded = (term(features_with(labels_of(4), encoder, padding))[0] for padding in (0, 3))
    torch.testing.assert_close(padded, short)


def test_words_attend_to_padding_where_that_is_asked_for(term: MLM, encoder: Encoder) -> None:
    term.attend_padding = True
    short, padded = (term(features_with(labels_of(4), encoder, padding))[0] for padding in (0, 3))
    assert abs(padded - short) > 1e-4
    term.attend_padding = False
    assert torch.equal(term(features_with(labels_of(4), encoder))[0], short)


def test_every_image_token_answers_cls_included(term: MLM, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_of(4)
    expected, _ = term(features_with(labels, encoder))
    encode_image = encoder.encode_image

    def with_cls(pixels: Tensor) -> Encoded:
        encoded = encode_image(pixels)
        encoded.mask[:, 0] = False
        return encoded

    monkeypatch.setattr(encoder, "encode_image", with_cls)
    assert torch.equal(term(features_with(labels, encoder))[0], expected)


def test_a_batch_without_a_masked_word_gives_a_zero_that_is_connected(term: MLM, encoder: Encoder) -> None:
    features = features_with(torch.full((3, LENGTH), -100), encoder)
    inputs = [features.image().tokens, features.text("text_masked").tokens, *term.parameters()]
    with torch.autograd.set_detect_anomaly(True):
        loss, stats = term(features)
        gradients = torch.autograd.grad(loss, inputs)
    assert loss == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
    assert stats() == {"accuracy": 0, "captions_left_out": 3}


def test_statistics_count_hits_and_captions_without_a_masked_word(term: MLM, encoder: Encoder) -> None:
    labels = labels_of(5)
    labels[2] = -100
    features = features_with(labels, encoder)
    image, text = features.image(), features.text("text_masked")
    best = term.head(term.interaction(text.tokens, image.tokens, text.mask)).argmax(dim=2)
    labels[0, 0] = best[0, 0]
    masked = [(i, j) for i in range(5) for j in range(LENGTH) if labels[i, j] != -100]
    hits = [bool(best[i, j] == labels[i, j]) for i, j in masked]
    _, stats = term(features_with(labels, encoder))
    assert 0 < sum(hits) < len(hits)
    assert stats()["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert stats()["captions_left_out"] == 1


def test_runs_under_amp_and_compares_in_fp32(term: MLM, make_features: MakeFeatures) -> None:
    scored: list[torch.dtype] = []
    term.head[-1].register_forward_hook(lambda *call: scored.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        features = make_features(PIDS)
    report = Objective({"mlm": term})(features)
    assert set(scored) == {torch.bfloat16}
    assert report.total.dtype == torch.float32
    assert report.total.isfinite()
