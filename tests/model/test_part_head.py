"""The part head: slots against the paper's equations step by step, eq. (14), stripes, padding, ablations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.heads import PartHead
from utils.errors import UserError

BATCH, DIM, GRID, LENGTH = 3, 16, (6, 2), 7


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def image_output(cls: bool = False) -> BackboneOutput:
    tokens = draw(BATCH, GRID[0] * GRID[1] + cls, DIM, seed=1)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    mask[:, :cls] = False
    return BackboneOutput(draw(BATCH, DIM, seed=2), tokens, mask)


def text_output() -> BackboneOutput:
    mask = torch.arange(LENGTH) < torch.tensor([[7], [4], [2]])
    return BackboneOutput(draw(BATCH, DIM, seed=3), draw(BATCH, LENGTH, DIM, seed=4), mask)


def head(coarse: int = 4, fine: int = 3, *, separate_decoders: bool = False) -> PartHead:
    torch.manual_seed(0)
    made = PartHead(DIM, GRID, coarse=coarse, fine=fine, separate_decoders=separate_decoders)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return made


def slow_attention(attention: nn.MultiheadAttention, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. (1)-(2) of one sample with one head of width DIM: embeddings ``(Q, D)`` and weights ``(Q, L)``."""
    assert attention.num_heads == 1
    project = zip(attention.in_proj_weight.split(DIM), attention.in_proj_bias.split(DIM), strict=True)
    q, k, v = (F.linear(rows, *weights) for rows, weights in zip((query, memory, memory), project, strict=True))
    weights = torch.stack([torch.stack([a @ b / DIM**0.5 for b in k]).softmax(dim=0) for a in q])
    return attention.out_proj(weights @ v), weights


def test_an_image_follows_the_equations() -> None:
    part, output = head(), image_output()
    slots = part.image(output).slots
    for sample in range(BATCH):
        patches = output.tokens[sample] + part.pos_embed
        memory = patches + slow_attention(part.image_encoder, patches, patches)[0]  # (3)
        coarse, weights = slow_attention(part.decoder.attention, part.decoder.tokens, memory)  # (4)
        foreground = weights.mean(dim=0)
        emphasised = memory + foreground[:, None] * memory  # (5)
        columns = GRID[1]
        stripes = [emphasised[2 * s * columns : 2 * (s + 1) * columns].max(dim=0).values for s in range(3)]
        expected = torch.stack([output.pooled[sample], *coarse, *stripes])
        torch.testing.assert_close(slots[sample], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(part.image_attention(output)[sample], foreground)


def test_a_caption_follows_the_equations_and_ignores_its_padding() -> None:
    part, output = head(), text_output()
    slots, attention = part.text(output).slots, part.text_attention(output)
    for sample, length in enumerate(output.mask.sum(dim=1).tolist()):
        words = output.tokens[sample, :length]
        memory = words + slow_attention(part.text_encoder, words, words)[0]
        coarse, shared = slow_attention(part.decoder.attention, part.decoder.tokens, memory)
        fine, own = slow_attention(part.decoder.attention, part.text_tokens, memory)  # (6)
        torch.testing.assert_close(
            slots[sample], torch.stack([output.pooled[sample], *coarse, *fine]), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(attention[sample, :, :length], torch.cat([shared.mean(dim=0)[None], own]))
        assert (attention[sample, :, length:] == 0).all()


@pytest.mark.parametrize("cls", [False, True])
def test_a_cls_token_is_no_patch(cls: bool) -> None:
    part, output = head(), image_output(cls)
    patches = BackboneOutput(output.pooled, output.tokens[:, cls:], output.mask[:, cls:])
    assert torch.equal(part.image(output).embedding, part.image(patches).embedding)


@pytest.mark.parametrize(("coarse", "fine"), [(4, 3), (2, 6), (4, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("separate_decoders", [False, True])
def test_the_inner_product_is_the_sum_of_cosines(coarse: int, fine: int, separate_decoders: bool) -> None:
    part = head(coarse, fine, separate_decoders=separate_decoders)
    image, text = part.image(image_output()), part.text(text_output())
    assert part.slots == {"global": 1, "coarse": coarse, "fine": fine}
    assert image.embedding.shape == text.embedding.shape == (BATCH, part.embed_dim)
    assert image.slots.shape == text.slots.shape == (BATCH, 1 + coarse + fine, DIM)
    expected = torch.zeros(BATCH, BATCH)  # (14)
    for i in range(BATCH):
        for j in range(BATCH):
            for v, t in zip(image.slots[i], text.slots[j], strict=True):
                expected[i, j] += F.cosine_similarity(v, t, dim=0)
    torch.testing.assert_close(image.embedding @ text.embedding.T, expected)


@pytest.mark.parametrize(("coarse", "fine"), [(4, 3), (4, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("separate_decoders", [False, True])
def test_every_trainable_parameter_is_used(coarse: int, fine: int, separate_decoders: bool) -> None:
    part = head(coarse, fine, separate_decoders=separate_decoders)
    weights = draw(BATCH, part.embed_dim, seed=9)
    outputs = [BackboneOutput(o.pooled.requires_grad_(), o.tokens, o.mask) for o in (image_output(), text_output())]
    ((part.image(outputs[0]).embedding + part.text(outputs[1]).embedding) * weights).sum().backward()
    unused = {name for name, p in part.named_parameters() if p.requires_grad and p.grad is None and p.numel()}
    assert unused == set()


def test_separate_decoders_share_nothing_across_modalities() -> None:
    shared, separate = head(), head(separate_decoders=True)
    assert shared.text_decoder is None
    extra = sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in shared.parameters())
    assert extra == sum(p.numel() for p in shared.decoder.parameters())
    separate.text(text_output()).embedding.sum().backward()
    assert all(p.grad is None for p in separate.decoder.parameters())


def test_24_rows_make_4_stripes_of_6() -> None:
    torch.manual_seed(0)
    part = PartHead(DIM, (24, 8), coarse=0, fine=4)
    nn.init.zeros_(part.pos_embed)
    nn.init.zeros_(part.image_encoder.out_proj.weight)
    tokens = torch.arange(24.0).repeat_interleave(8)[None, :, None].expand(1, -1, DIM)  # each patch: its row
    slots = part.image(BackboneOutput(draw(1, DIM), tokens, torch.ones(1, 192, dtype=torch.bool))).slots
    assert slots[0, 1:, 0].tolist() == [5, 11, 17, 23]


def test_rows_that_the_stripes_do_not_divide_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"head.fine: 24 rows of patches do not divide into 5 stripes .* 1, 2, 3, 4, 6"):
        PartHead(DIM, (24, 8), fine=5)
    with pytest.raises(UserError, match=r"head.coarse: -1 given"):
        PartHead(DIM, (24, 8), coarse=-1)


def test_embeddings_are_normalised_in_fp32_under_amp() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        image = head().image(image_output())
    assert image.embedding.dtype == image.slots.dtype == torch.float32
    norms = image.embedding.unflatten(1, (-1, DIM)).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))
