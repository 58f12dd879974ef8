"""The head of part-level correspondence (Park et al., ECCV 2024): global, coarse and fine embeddings per sample."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.features import Encoded, PartEncoded, at_least_fp32
from utils.errors import UserError


class Decoder(nn.Module):
    """Multi-head cross-attention from learned tokens (queries) to the features of a modality (eq. (4)).

    Args:
        dim: width of the features. There are dim / 64 attention heads, at least one.
        tokens: number of learned tokens.
    """

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(dim**-0.5 * torch.randn(tokens, dim))
        self.attention = _attention(dim)

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns an embedding per query ``(B, Q, D)`` and its attention ``(B, Q, L)``, averaged over heads.

        Args:
            queries: ``(Q, D)``.
            memory: ``(B, L, D)``.
            padding: bool ``(B, L)``, true on positions to ignore.
        """
        return self.attention(queries.expand(memory.shape[0], -1, -1), memory, memory, key_padding_mask=padding)


class PartHead(nn.Module):
    """A head with one global, D coarse and P fine embeddings. The score is a sum of 1 + D + P cosines (eq. (14)).

    Source: sections 3.1, 3.2 and 3.4 of the paper. Features go through a self-attention encoder of their modality with
    a residual (eq. (3)); its output is M. D learned tokens and a decoder, both shared by the modalities, give the
    coarse embeddings (eq. (4)). The mean attention of the tokens over the patches is the foreground map A_avg. The fine
    embeddings of an image are the maxima of M + A_avg * M (eq. (5)) over P horizontal stripes. The fine embeddings of
    a caption are the output of the same decoder for P more tokens (eq. (6)).

    Decisions: the global embedding is the backbone's pooled feature: the maximum for `BertBackbone`, as in the paper,
    and the pre-trained pooling for SigLIP and CLIP. Separate decoders have separate tokens. Without coarse tokens
    there is no foreground map, and stripes are taken from M. With this head the similarity lies between -(1 + D + P)
    and 1 + D + P, while the scale or margin of N-ITC, SDM and Circle was chosen for one cosine.

    Args:
        dim: width of the backbone's tokens and of each embedding.
        grid: (rows, columns) of patches.
        coarse: D, the number of shared tokens.
        fine: P, the number of stripes and text tokens.
        separate_decoders: whether each modality has its own decoder (the paper's ablation).

    Raises:
        UserError: `coarse` or `fine` is negative, the rows do not divide into `fine` stripes, or there are no patches.
    """

    reads_attention = False

    def __init__(
        self, dim: int, grid: tuple[int, int], *, coarse: int = 4, fine: int = 4, separate_decoders: bool = False
    ) -> None:
        super().__init__()
        rows, columns = grid
        if not rows * columns:
            raise UserError(
                "head=part needs the patches of an image, but the image tower of this backbone has none (it is a "
                "ConvNet): choose a backbone with a vision transformer, or head=global"
            )
        for option, value in (("coarse", coarse), ("fine", fine)):
            if value < 0:
                raise UserError(f"head.{option}: {value} given, expected 0 or more embeddings")
        if fine and rows % fine:
            raise UserError(
                f"head.fine: {rows} rows of patches do not divide into {fine} stripes of equal height; choose one of "
                f"{', '.join(str(n) for n in range(1, rows + 1) if rows % n == 0)}, or another img_size_str"
            )
        self.slots = {"global": 1, "coarse": coarse, "fine": fine}
        self.widths = (dim,) * (1 + coarse + fine)
        self.embed_dim = sum(self.widths)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(rows * columns, dim))
        self.image_encoder = _attention(dim)
        self.text_encoder = _attention(dim)
        self.decoder = Decoder(dim, coarse)
        self.text_decoder = Decoder(dim, coarse) if separate_decoders and coarse else None
        self.text_tokens = nn.Parameter(torch.randn(fine, dim))
        if not self.parts:
            self.requires_grad_(False)  # without parts, none of these parameters is used

    @property
    def parts(self) -> int:
        """Number of embeddings per sample besides the global one."""
        return self.slots["coarse"] + self.slots["fine"]

    def image(self, output: BackboneOutput) -> Encoded:
        return self._image(output)[0]

    def text(self, output: BackboneOutput) -> Encoded:
        return self._text(output)[0]

    def image_attention(self, output: BackboneOutput) -> Tensor:
        """Returns the foreground map A_avg ``(B, N)`` over patches. Rows sum to 1, or are 0 without coarse tokens."""
        return self._image(output)[1]

    def text_attention(self, output: BackboneOutput) -> Tensor:
        """Returns ``(B, 1 + P, L)``: the mean attention of the coarse tokens, then the attention of each text token.

        Each row sums to 1 over the words. Without coarse tokens the first row is 0.
        """
        return self._text(output)[1]

    def _image(self, output: BackboneOutput) -> tuple[Encoded, Tensor]:
        patches = output.tokens[:, -len(self.pos_embed) :] + self.pos_embed
        memory = patches + self.image_encoder(patches, patches, patches, need_weights=False)[0]  # (B, N, D)
        slots = [output.pooled[:, None]]
        foreground = torch.zeros_like(memory[:, :, 0])
        if self.slots["coarse"]:
            coarse, attention = self.decoder(self.decoder.tokens, memory)
            slots.append(coarse)
            foreground = attention.mean(dim=1)
        if self.slots["fine"]:
            emphasised = memory + foreground[:, :, None] * memory
            slots.append(emphasised.unflatten(1, (self.slots["fine"], -1)).amax(dim=2))
        return _encoded(output, slots), foreground

    def _text(self, output: BackboneOutput) -> tuple[Encoded, Tensor]:
        words, padding = output.tokens, ~output.mask
        memory = words + self.text_encoder(words, words, words, key_padding_mask=padding, need_weights=False)[0]
        if not self.parts:
            return _encoded(output, [output.pooled[:, None]]), memory.new_zeros(memory.shape[0], 1, memory.shape[1])
        decoder = self.decoder if self.text_decoder is None else self.text_decoder
        parts, attention = decoder(torch.cat([decoder.tokens, self.text_tokens]), memory, padding)
        coarse, fine = attention.split((self.slots["coarse"], self.slots["fine"]), dim=1)
        shared = coarse.sum(dim=1, keepdim=True) / max(1, self.slots["coarse"])
        return _encoded(output, [output.pooled[:, None], parts]), torch.cat([shared, fine], dim=1)


def _attention(dim: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(dim, max(1, dim // 64), batch_first=True)


def _encoded(output: BackboneOutput, slots: list[Tensor]) -> PartEncoded:
    raw = torch.cat([at_least_fp32(slot) for slot in slots], dim=1)  # (B, 1 + D + P, D)
    embedding = F.normalize(raw, dim=-1).flatten(1)
    return PartEncoded(at_least_fp32(output.pooled), embedding, output.tokens, output.mask, raw)
