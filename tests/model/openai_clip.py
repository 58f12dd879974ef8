"""The architecture of CLIP ViT and of the heads of IRRA and RDE, written out plainly in their layouts of weights."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, TEXT_WIDTH, EMBED, PATCH, LAYERS, LENGTH, VOCABULARY = 64, 128, 128, 4, 2, 12, 50


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.ln_2 = nn.LayerNorm(width)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)

    def last_attention(self, x: Tensor) -> Tensor:
        """The attention of the last block ``(B, L, L)``, mean over heads."""
        y = self.resblocks[-1].ln_1(self.resblocks[:-1](x))
        return self.resblocks[-1].attn(y, y, y, need_weights=True, attn_mask=self.resblocks[-1].mask)[1]


class Vision(nn.Module):
    def __init__(self, patches: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, LAYERS)
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED) / 8)

    def embedded(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        return self.ln_pre(
            torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.ln_post(self.transformer(self.embedded(pixels))) @ self.proj


class OpenAIClip(nn.Module):
    """Image tokens ``(B, 1 + patches, E)``, [CLS] first; text tokens ``(B, L, E)``, pooled at the largest id."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.visual = Vision(patches)
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, TEXT_WIDTH))
        self.transformer = Transformer(TEXT_WIDTH, LAYERS, torch.full((LENGTH, LENGTH), -torch.inf).triu(1))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, EMBED) / 8)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        return self.ln_final(self.transformer(x)) @ self.text_projection


class Irra(nn.Module):
    """IRRA: the towers under `base_model`, the heads beside them; scores ``(B, L, V)`` of masked words."""

    def __init__(self, patches: int, identities: int) -> None:
        super().__init__()
        self.base_model = OpenAIClip(patches)
        self.classifier = nn.Linear(EMBED, identities)
        self.cross_attn = nn.MultiheadAttention(EMBED, EMBED // 64, batch_first=True)
        self.cross_modal_transformer = Transformer(EMBED, 4)
        self.ln_pre_t, self.ln_pre_i, self.ln_post = (nn.LayerNorm(EMBED) for _ in range(3))
        head = [
            ("dense", nn.Linear(EMBED, EMBED)),
            ("gelu", QuickGELU()),
            ("ln", nn.LayerNorm(EMBED)),
            ("fc", nn.Linear(EMBED, VOCABULARY)),
        ]
        self.mlm_head = nn.Sequential(OrderedDict(head))

    def scores(self, pixels: Tensor, ids: Tensor) -> Tensor:
        image, text = self.base_model.encode_image(pixels), self.base_model.encode_text(ids)
        answers = self.ln_pre_i(image)
        words = self.cross_attn(self.ln_pre_t(text), answers, answers, need_weights=False)[0]
        return self.mlm_head(self.ln_post(self.cross_modal_transformer(words)))


class SelectionMlp(nn.Module):
    """RDE's; its second norm is there, but never used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(EMBED, width // 2), nn.Linear(width // 2, width)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(width // 2), nn.BatchNorm1d(width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.bns[0](self.layers[0](x)).relu())


class Selection(nn.Module):
    """One of RDE's heads, after selection: of ``(tokens, E)``; that of images reads `fc` instead of `linear`."""

    def __init__(self, width: int, *, of_images: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(EMBED, width)
        if of_images:
            self.fc = nn.Linear(EMBED, width)
        self.mlp = SelectionMlp(width)
        self.read = "fc" if of_images else "linear"

    def forward(self, tokens: Tensor) -> Tensor:
        return (getattr(self, self.read)(tokens) + self.mlp(tokens)).amax(dim=0)


class Rde(nn.Module):
    """RDE: the towers under `base_model`, a head for the selected tokens of each modality."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.base_model = OpenAIClip(patches)
        self.visul_emb_layer = Selection(2 * EMBED, of_images=True)
        self.texual_emb_layer = Selection(2 * EMBED, of_images=False)

    def ranked(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [global unit | selected unit] of images and captions: their inner product is twice RDE's score."""
        clip = self.base_model
        image, text = clip.encode_image(pixels), clip.encode_text(ids)
        seen = clip.visual.transformer.last_attention(clip.visual.embedded(pixels))[:, 0, 1:]
        read = clip.transformer.last_attention(clip.token_embedding(ids) + clip.positional_embedding)
        ends = ids.argmax(dim=1)
        images, texts = [], []
        for tokens, attention in zip(image, seen, strict=True):
            chosen = attention.topk(int(0.3 * len(attention))).indices + 1
            images.append(_both(tokens[0], self.visul_emb_layer(F.normalize(tokens[chosen], dim=1))))
        for tokens, attention, end in zip(text, read, ends.tolist(), strict=True):
            words = attention[end, 1:end]  # without the first token, the last one and padding
            chosen = words.topk(min(len(words), int(0.3 * (LENGTH - 2)))).indices + 1
            texts.append(_both(tokens[end], self.texual_emb_layer(F.normalize(tokens[chosen], dim=1))))
        return torch.stack(images), torch.stack(texts)


def _both(pooled: Tensor, selected: Tensor) -> Tensor:
    return torch.cat([F.normalize(pooled, dim=0), F.normalize(selected, dim=0)])
