"""Implicit relation reasoning (IRRA, CVPR 2023): prediction of masked words from caption and image."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.activations import QuickGELUActivation

from model.features import Features
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.pairs import at_least_fp32

NOT_PREDICTED: Final = -100  # the label that PyTorch's cross-entropy ignores
DEPTH: Final = 4  # blocks of the interaction encoder
SCORES: Final = 2**25  # scores over the vocabulary that are in memory at a time: 128 MiB in fp32


def mlm_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy over masked positions, a scalar in fp32 or wider.

    Source: IRRA, eq. (3). Decision: this is the mean over masked positions, without the paper's factor 1 / V.
    Without a masked position: zero, connected to the graph.

    Args:
        scores: ``(..., V)``, one score for each of the V ids of the vocabulary.
        labels: int64 ``(...)``, the id of the masked token; `NOT_PREDICTED` at all other positions.
    """
    return _entropy(scores, labels) / (labels != NOT_PREDICTED).sum().clamp_min(1)


def _entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy, summed over masked positions."""
    return F.cross_entropy(
        at_least_fp32(scores).flatten(0, -2), labels.flatten(), ignore_index=NOT_PREDICTED, reduction="sum"
    )


class InteractionEncoder(nn.Module):
    """Cross-attention from words to image tokens, followed by transformer blocks over the words.

    Source: IRRA, eqs. (1)-(2): layer norms of words and image tokens, cross-attention without a residual (words are
    the queries, image tokens the keys and values), pre-norm blocks, layer norm. Decisions: the blocks are CLIP's, with
    QuickGELU. Weights are initialised as in the authors' code: matrices normal, with a std computed from `width` and
    `depth`; biases of attention zero; biases of the other linear layers as in PyTorch.

    Args:
        width: width of words and image tokens. There are width / 64 attention heads, at least one.
        depth: number of blocks.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        heads = max(1, width // 64)
        self.text_norm = nn.LayerNorm(width)
        self.image_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        block = nn.TransformerEncoderLayer(
            width,
            heads,
            dim_feedforward=4 * width,
            dropout=0.0,
            activation=QuickGELUActivation(),
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        for module in self.blocks.modules():  # nn.TransformerEncoder makes all blocks copies of the first
            if type(module) is nn.Linear:
                module.reset_parameters()
        for name, parameter in self.named_parameters():
            if name.endswith("in_proj_weight"):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith(("out_proj.weight", "linear2.weight")):
                nn.init.normal_(parameter, std=(2 * depth * width) ** -0.5)
            elif name.endswith("linear1.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)

    def forward(self, text: Tensor, image: Tensor, text_mask: Tensor | None) -> Tensor:
        """Returns the words ``(B, L, D)`` after they attended to the image and to each other.

        Args:
            text: masked words ``(B, L, D)``.
            image: image tokens ``(B, N, D)``.
            text_mask: bool ``(B, L)``, true on tokens that words may attend to. None: all tokens.
        """
        image = self.image_norm(image)
        words, _ = self.cross_attention(self.text_norm(text), image, image, need_weights=False)
        return self.blocks(words, src_key_padding_mask=None if text_mask is None else ~text_mask)


class MLM(LossTerm):
    """`mlm_loss` of the view "text_masked". An interaction encoder and a head over the vocabulary give the scores.

    Words attend to all image tokens, [CLS] included. Only masked positions go through the head, because scores over
    the whole vocabulary take much memory. Each process encodes its own tokens; the mean is over the masked positions
    of all processes.

    Args:
        attend_padding: whether words attend to padding in the interaction encoder, as in IRRA's released code. If
            false, the length of the padding has no influence. None: true if the head starts from a published one
            (`model.published.converted.load_heads`), because that one was trained so.
    """

    needs = frozenset({"image", "text_masked", "mlm_labels", "mlm_positions"})
    reads_tokens = True

    def __init__(self, *, spec: ModelSpec, attend_padding: bool | None) -> None:
        super().__init__(spec=spec)
        self.attend_padding = attend_padding
        self._vocabulary = spec.vocab_size
        width = spec.pooled_dim
        self.interaction = InteractionEncoder(width, DEPTH)
        dense, scores = nn.Linear(width, width), nn.Linear(width, spec.vocab_size)
        nn.init.normal_(dense.weight, std=(2 * width) ** -0.5)  # both as in the authors' code
        nn.init.normal_(scores.weight, std=(2 * DEPTH * width) ** -0.5)
        self.head = nn.Sequential(
            OrderedDict(dense=dense, activation=QuickGELUActivation(), norm=nn.LayerNorm(width), scores=scores)
        )

    @property
    def fixed_length(self) -> bool:  # type: ignore[override]
        return bool(self.attend_padding)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = features.image("image"), features.text("text_masked")
        labels, positions = features.label("mlm_labels"), features.label("mlm_positions")
        with features.amp():
            words = self.interaction(text.tokens, image.tokens, None if self.attend_padding else text.mask)
        words = words.flatten(0, 1)[positions]  # (masked positions, D)
        wanted = labels.flatten()[positions]
        masked = labels != NOT_PREDICTED

        def entropy(words: Tensor, wanted: Tensor) -> Tensor:
            with features.amp():
                scores = self.head(words)
            return _entropy(scores, wanted)

        def right(words: Tensor, wanted: Tensor) -> Tensor:
            with features.amp():
                return (self.head(words).argmax(dim=1) == wanted).sum()

        own = torch.stack([self._summed(entropy, words, wanted), masked.sum()])
        total, predicted = features.gather(own[None]).sum(dim=0)
        predicted = predicted.clamp_min(1)

        def stats() -> dict[str, Tensor]:
            counts = torch.stack([self._summed(right, words, wanted), (~masked.any(dim=1)).sum()]).float()
            right_ones, left_out = features.gather(counts[None]).sum(dim=0)
            return {"accuracy": right_ones / predicted.detach(), "captions_left_out": left_out}

        return total / predicted, stats

    def _summed(self, work: Callable[[Tensor, Tensor], Tensor], words: Tensor, wanted: Tensor) -> Tensor:
        """Returns the sum of `work` over chunks of the masked positions.

        If there are several chunks, their scores are computed again in the backward pass and not kept.
        """
        size = max(1, SCORES // self._vocabulary)
        if len(words) <= size:
            return work(words, wanted)
        chunks = zip(words.split(size), wanted.split(size), strict=True)
        return torch.stack([checkpoint(work, *chunk, use_reentrant=False) for chunk in chunks]).sum()
