"""GradCache: contrastive losses over a large batch with the memory of a micro-batch."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.features import Encoded, Encoder
from model.heads.selection_head import MaskedBatchNorm
from model.objectives.base import Objective
from utils.errors import UserError


class GradCache:
    """An encoder that keeps the activations of one micro-batch at a time. Gradients equal those of the plain step.

    Source: Gao et al., RepL4NLP 2021. The forward pass encodes one micro-batch after the other and keeps only their
    embeddings, which the losses compare over the whole batch. The backward pass first computes the gradients at the
    embeddings. Then it encodes each micro-batch again, with the random state and AMP mode of the first time, and
    propagates the gradients to the weights. `torch.utils.checkpoint` around each micro-batch does all of this: autograd
    runs backward in reverse order, so only one micro-batch is in memory at a time. It adds up the gradients of a
    weight before it passes them on, as DDP and GradScaler expect.

    The result has no tokens, ``(B, 0, D)``, because their memory would grow with the batch. See `refuse_unlike`.

    Args:
        encoder: the encoder of a micro-batch.
        micro_batch: number of images, or captions, that are encoded at a time.
        observe_images: is called once with each micro-batch of images, in order, with tokens and without gradient.
    """

    def __init__(
        self, encoder: Encoder, micro_batch: int, observe_images: Callable[[Encoded], None] | None = None
    ) -> None:
        self._encoder = encoder
        self._micro_batch = micro_batch
        self._observe_images = observe_images

    def encode_image(self, pixels: Tensor) -> Encoded:
        """Returns the encoded view of uint8 pixels ``(B, 3, H, W)``."""
        return self._encode(self._encoder.encode_image, pixels, observe=self._observe_images)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Returns the encoded view of token ids ``(B, L)`` with their mask ``(B, L)``."""
        return self._encode(self._encoder.encode_text, ids, mask)

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Returns (logit_scale, logit_bias) of the encoder."""
        return self._encoder.logit_scale_and_bias()

    def _encode(
        self, encode: Callable[..., Encoded], *inputs: Tensor, observe: Callable[[Encoded], None] | None = None
    ) -> Encoded:
        def without_tokens(*rows: Tensor) -> tuple[Encoded, Encoded]:
            encoded = encode(*rows)
            batch, _, width = encoded.tokens.shape
            tokens, mask = encoded.tokens.new_empty(batch, 0, width), encoded.mask.new_empty(batch, 0)
            detached = replace(encoded, **{name: part.detach() for name, part in vars(encoded).items()})
            return replace(encoded, tokens=tokens, mask=mask), detached

        device = inputs[0].device.type
        # No cast cache: a cast of the weights that all micro-batches share would add up gradients in 16 bits.
        with torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            parts = []
            for rows in zip(*(batch.split(self._micro_batch) for batch in inputs), strict=True):
                part, whole = checkpoint(without_tokens, *rows, use_reentrant=False)
                parts.append(part)
                if observe is not None:
                    observe(whole)
        return type(parts[0])(*(torch.cat(rows) for rows in zip(*(vars(part).values() for part in parts), strict=True)))


def refuse_unlike(encoder: nn.Module, objective: Objective) -> None:
    """Raises `UserError` if `GradCache` would not give the plain step.

    It keeps no tokens, and computes statistics of batch normalisation over a micro-batch.
    """
    if any(isinstance(module, MaskedBatchNorm) for module in encoder.modules()):
        raise UserError(
            "head=token_selection normalises over the whole batch, which grad_cache.micro_batch does not hold: choose "
            "another head, or set grad_cache.micro_batch=null"
        )
    for name, term in objective.terms.items():
        if term.reads_tokens:
            raise UserError(
                f"loss.terms.{name} reads tokens, which grad_cache.micro_batch does not keep: leave the term out "
                f"with ~loss.terms.{name}, or set grad_cache.micro_batch=null"
            )
