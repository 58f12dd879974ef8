"""Part-level correspondence (Park et al., ECCV 2024): global, coarse and fine embeddings of a sample."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.features import Encoded, PartEncoded, at_least_fp32
from utils.errors import UserError


class Decoder(nn.Module):
    """Multi-head cross-attention in which learned tokens ask and the features of a modality answer (eq. (4)).

    Args:
        dim: width of the features; there are dim / 64 heads, at least one.
        tokens: how many learned tokens it has.
    """

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(dim**-0.5 * torch.randn(tokens, dim))
        self.attention = _attention(dim)

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns an embedding for each query ``(B, Q, D)``, and what it attends to ``(B, Q, L)``, heads averaged.

        Args:
            queries: ``(Q, D)``.
            memory: ``(B, L, D)``.
            padding: bool ``(B, L)``, true where nobody may look.
        """
        return self.attention(queries.expand(len(memory), -1, -1), memory, memory, key_padding_mask=padding)


class PartHead(nn.Module):
    """Compares a global, D coarse and P fine embeddings: the similarity is the sum of 1 + D + P cosines (eq. (14)).

    Source: sections 3.1, 3.2 and 3.4 of the paper. Features pass a self-attention encoder of their modality, with a
    residual (eq. (3)). Coarse embeddings are what D tokens gather in a decoder; tokens and decoder are shared by
    both modalities (eq. (4)). The mean of the tokens' attention over the patches is the foreground map A_avg.
    Fine embeddings of an image are the maxima of M + A_avg * M (eq. (5)) over P horizontal stripes; those of a
    caption are what P further tokens gather in the same decoder (eq. (6)).

    Decisions: the global embedding is what the backbone pools, for `BertBackbone` the maximum of the paper, for
    SigLIP and CLIP what they were pre-trained to compare. Separate decoders have tokens of their own. With no coarse
    tokens there is no foreground map, and stripes see M itself. A loss whose scale or margin was chosen for one
    cosine (N-ITC, SDM, Circle) meets a similarity between -(1 + D + P) and 1 + D + P here.

    Args:
        dim: width of the backbone's tokens and of each embedding.
        grid: (rows, columns) of patches.
        coarse: D, the number of shared tokens.
        fine: P, the number of stripes and text tokens.
        separate_decoders: one decoder for each modality instead of a shared one (the paper's ablation).

    Raises:
        UserError: a negative number, or rows that the stripes do not divide.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], *, coarse: int = 4, fine: int = 4, separate_decoders: bool = False
    ) -> None:
        super().__init__()
        rows, columns = grid
        for option, value in (("coarse", coarse), ("fine", fine)):
            if value < 0:
                raise UserError(f"head.{option}: {value} given, expected 0 or more embeddings")
        if fine and rows % fine:
            raise UserError(
                f"head.fine: {rows} rows of patches do not divide into {fine} stripes of equal height; choose one of "
                f"{', '.join(str(n) for n in range(1, rows + 1) if rows % n == 0)}, or another img_size_str"
            )
        self.slots = {"global": 1, "coarse": coarse, "fine": fine}
        self.embed_dim = (1 + coarse + fine) * dim
        self.pos_embed = nn.Parameter(0.02 * torch.randn(rows * columns, dim))
        self.image_encoder = _attention(dim)
        self.text_encoder = _attention(dim)
        self.decoder = Decoder(dim, coarse)
        self.text_decoder = Decoder(dim, coarse) if separate_decoders and coarse else None
        self.text_tokens = nn.Parameter(torch.randn(fine, dim))
        if not self.parts:
            self.requires_grad_(False)  # nothing of it is used

    @property
    def parts(self) -> int:
        """How many embeddings there are beside the global one."""
        return self.slots["coarse"] + self.slots["fine"]

    def image(self, output: BackboneOutput) -> Encoded:
        return self._image(output)[0]

    def text(self, output: BackboneOutput) -> Encoded:
        return self._text(output)[0]

    def image_attention(self, output: BackboneOutput) -> Tensor:
        """Returns the foreground map A_avg ``(B, N)`` over the patches; it sums to 1, or is 0 without shared tokens."""
        return self._image(output)[1]

    def text_attention(self, output: BackboneOutput) -> Tensor:
        """Returns ``(B, 1 + P, L)``: the mean attention of the shared tokens, then that of each text token.

        Each sums to 1 over the words; without shared tokens the first is 0.
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
            return _encoded(output, [output.pooled[:, None]]), memory.new_zeros(len(memory), 1, memory.shape[1])
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
