"""The token selection head against a direct transcription, its batch normalisation, and its refusals."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.heads import TokenSelectionHead
from model.heads.selection_head import MaskedBatchNorm, SelectedTokens
from utils.errors import UserError

BATCH, DIM, WIDTH, GRID, LENGTH = 4, 8, 12, (4, 3), 20
WORDS = (18, 5, 1, 0)  # of each caption; 5 are selected


def draw(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def attention_on(content: Tensor, seed: int) -> Tensor:
    """Random attention to all tokens, with -1 where there is no content."""
    return draw(*content.shape, seed=seed).softmax(dim=1).masked_fill(~content, -1.0)


def image_output() -> BackboneOutput:
    tokens = draw(BATCH, 1 + GRID[0] * GRID[1], DIM, seed=1)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    mask[:, 0] = False
    return BackboneOutput(draw(BATCH, DIM, seed=2), tokens, mask, attention_on(mask, seed=3))


def text_output() -> BackboneOutput:
    place = torch.arange(LENGTH)
    words = torch.tensor(WORDS)[:, None]
    content = (place >= 1) & (place <= words)
    return BackboneOutput(
        draw(BATCH, DIM, seed=4), draw(BATCH, LENGTH, DIM, seed=5), place < words + 2, attention_on(content, seed=6)
    )


def made() -> TokenSelectionHead:
    torch.manual_seed(0)
    head = TokenSelectionHead(DIM, GRID, text_length=LENGTH, width=WIDTH)
    for norm in (module for module in head.modules() if isinstance(module, MaskedBatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return head


def transcribed(part: SelectedTokens, tokens: Tensor, attention: Tensor, count: int) -> Tensor:
    """One sample of the released code in evaluation mode: its most attended tokens ``(L, D)``, one by one."""
    order = sorted(range(len(attention)), key=lambda place: -attention[place].item())
    chosen = [place for place in order[:count] if attention[place] >= 0]
    rows = []
    for place in chosen:
        token = tokens[place] / tokens[place].norm()
        hidden = part.mlp.hidden.weight @ token + part.mlp.hidden.bias
        norm = part.mlp.norm
        hidden = (hidden - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
        mlp = part.mlp.output.weight @ hidden.clamp(min=0) + part.mlp.output.bias
        rows.append(part.linear.weight @ token + part.linear.bias + mlp)
    return torch.stack(rows).max(dim=0).values


def test_images_and_captions_also_short_ones_are_those_of_the_transcription() -> None:
    head = made().eval()
    for part, encode, output, count, samples in (
        (head.image_selection, head.image, image_output(), 3, range(BATCH)),  # int(0.3 * 12)
        (head.text_selection, head.text, text_output(), 5, range(3)),  # int(0.3 * 18)
    ):
        encoded = encode(output)
        assert encoded.embedding.shape == (BATCH, DIM + WIDTH)
        for sample in samples:
            selected = transcribed(part, output.tokens[sample], output.attention[sample], count)
            torch.testing.assert_close(encoded.raw[sample, DIM:], selected, rtol=1e-5, atol=1e-5)
            expected = torch.cat([F.normalize(output.pooled[sample], dim=0), F.normalize(selected, dim=0)])
            torch.testing.assert_close(encoded.embedding[sample], expected, rtol=1e-5, atol=1e-5)


def test_a_caption_without_words_is_finite_and_padding_never_counts() -> None:
    head, output = made().train(), text_output()
    encoded = head.text(output)
    assert encoded.embedding.isfinite().all()
    assert (encoded.embedding[3, DIM:] == 0).all()
    elsewhere = output._replace(tokens=output.tokens.where(output.mask[:, :, None], 7.0))
    torch.testing.assert_close(made().train().text(elsewhere).embedding, encoded.embedding)
    encoded.embedding.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.text_selection.parameters())


def test_gradients_reach_the_selected_tokens_and_no_others() -> None:
    head, output = made().eval(), image_output()
    tokens = output.tokens.clone().requires_grad_()
    head.image(output._replace(tokens=tokens)).embedding.square().sum().backward()
    head.image(output._replace(tokens=tokens)).embedding[:, DIM:].sum().backward()
    chosen = torch.zeros(tokens.shape[:2], dtype=torch.bool).scatter(1, output.attention.topk(3).indices, True)
    assert (tokens.grad.abs().sum(dim=2)[~chosen] == 0).all()
    assert (tokens.grad.abs().sum(dim=2)[chosen] > 0).any()


def test_batch_normalisation_is_torch_s_over_the_selected_tokens() -> None:
    own, other = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    for step in range(3):
        tokens = draw(5, 4, 6, seed=step).requires_grad_()
        mask = draw(5, 4, seed=10 + step) > -0.5
        found, expected = own(tokens, mask)[mask], other(tokens[mask])
        torch.testing.assert_close(found, expected)
        weights = draw(*found.shape, seed=20)
        torch.testing.assert_close(*(torch.autograd.grad((o * weights).sum(), tokens)[0] for o in (found, expected)))
    torch.testing.assert_close(own.running_mean, other.running_mean)
    torch.testing.assert_close(own.running_var, other.running_var)
    own.eval()
    other.eval()
    torch.testing.assert_close(own(tokens, mask)[mask], other(tokens[mask]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"^head\.ratio: 0\.0 given, expected a share up to 1 that selects one of 12 patches"),
        ({"ratio": 1.5}, r"^head\.ratio: 1\.5"),
        ({"ratio": 0.05}, r"^head\.ratio: 0\.05"),
        ({"width": 7}, r"^head\.width: 7 given, expected an even number"),
    ],
)
def test_sizes_that_select_nothing_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenSelectionHead(DIM, GRID, text_length=LENGTH, **options)
