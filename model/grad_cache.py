"""Contrastive losses over a large batch at the memory of a micro-batch: GradCache."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.features import Encoded, Encoder
from model.objectives.base import Objective
from utils.errors import UserError


class GradCache:
    """An encoder that holds the activations of one micro-batch at a time; the gradients are those of the plain step.

    Source: Gao et al., RepL4NLP 2021. Micro-batches are encoded one after the other and keep nothing but their
    embeddings, which the losses compare over the whole batch. In the backward pass, once the gradients at the
    embeddings are known, each micro-batch is encoded again, under the random state and the AMP mode of its first
    time, and takes its gradients from there to the weights. All of this is `torch.utils.checkpoint` around a
    micro-batch: autograd runs what was computed last first, so that no two micro-batches are alive together, and
    adds up the gradients of a weight before it hands them on, as DDP and GradScaler expect.

    What it returns has zero tokens, ``(B, 0, D)``: they would grow with the batch. See `refuse_tokens`.

    Args:
        encoder: what encodes a micro-batch.
        micro_batch: images, and captions, that are encoded at a time.
    """

    def __init__(self, encoder: Encoder, micro_batch: int) -> None:
        self._encoder = encoder
        self._micro_batch = micro_batch

    def encode_image(self, pixels: Tensor) -> Encoded:
        """Encodes uint8 pixels ``(B, 3, H, W)``."""
        return self._encode(self._encoder.encode_image, pixels)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Encodes token ids ``(B, L)`` with their mask ``(B, L)``."""
        return self._encode(self._encoder.encode_text, ids, mask)

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """(logit_scale, logit_bias) of the encoder."""
        return self._encoder.logit_scale_and_bias()

    def _encode(self, encode: Callable[..., Encoded], *inputs: Tensor) -> Encoded:
        def without_tokens(*rows: Tensor) -> Encoded:
            encoded = encode(*rows)
            batch, _, width = encoded.tokens.shape
            return replace(
                encoded, tokens=encoded.tokens.new_empty(batch, 0, width), mask=encoded.mask.new_empty(batch, 0)
            )

        device = inputs[0].device.type
        # Every micro-batch casts the weights itself: a cast that they share would add up gradients in 16 bits.
        with torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            parts = [
                checkpoint(without_tokens, *rows, use_reentrant=False)
                for rows in zip(*(whole.split(self._micro_batch) for whole in inputs), strict=True)
            ]
        return type(parts[0])(*(torch.cat(rows) for rows in zip(*(vars(part).values() for part in parts), strict=True)))


def refuse_tokens(objective: Objective) -> None:
    """Passes an objective that compares embeddings alone, as it has to under `GradCache`.

    Raises:
        UserError: naming a term that reads tokens.
    """
    for name, term in objective.terms.items():
        if term.reads_tokens:
            raise UserError(
                f"loss.terms.{name} reads tokens, which grad_cache.micro_batch does not keep: leave the term out "
                f"with ~loss.terms.{name}, or set grad_cache.micro_batch=null"
            )
