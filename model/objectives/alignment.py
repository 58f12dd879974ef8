"""The triplet alignment loss of RDE, TAL (Qin et al., CVPR 2024)."""

from functools import partial

import torch
from torch import Tensor

from model.features import Features
from model.objectives.base import EmbeddedPairs, LossTerm, ModelSpec, Stats
from model.objectives.pairs import masked_mean, same_identity, similarities
from utils.errors import UserError


def tal(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    tau: float = 0.015,
    margin: float = 0.1,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the triplet alignment loss: the sum of `tal_of_pairs` over the batch, a scalar in fp32 or wider.

    Args:
        image, text: unit rows ``(B, D)``; row i of both is one pair.
        pids: int64 ``(B,)``.
        tau: temperature of the cosines.
        margin: a difference of cosines.
        weights: a weight of each pair ``(B,)``. None: all have weight 1.
    """
    losses = tal_of_pairs(image, text, pids, tau, margin)
    return losses.sum() if weights is None else (weights * losses).sum()


def tal_of_pairs(image: Tensor, text: Tensor, pids: Tensor, tau: float, margin: float) -> Tensor:
    """Returns the triplet alignment loss of each pair ``(B,)``, both directions summed.

    Source: RDE, section 3.4, and the authors' code. In a row of cosines s with positives P, which are the samples of
    the row's identity, a = softmax over P of s / tau, without gradient, and the loss of the row is
    [margin - sum_P a s + tau log sum_{not P} exp(s / tau)]_+. A row without negatives has the loss 0.
    """
    cosines, same = similarities(text, image), same_identity(pids)
    return _row_losses(cosines, same, tau, margin) + _row_losses(cosines.T, same, tau, margin)


def _row_losses(cosines: Tensor, same: Tensor, tau: float, margin: float) -> Tensor:
    logits = cosines / tau
    attention = logits.detach().masked_fill(~same, -torch.inf).softmax(dim=1)
    positive = (attention * cosines).sum(dim=1)
    # Not -inf: the gradient of a logsumexp over only -inf is NaN, and 0 * NaN would reach the weights.
    lowest = torch.finfo(logits.dtype).min
    negative = tau * logits.masked_fill(same, lowest).logsumexp(dim=1)
    return (margin - positive + negative).clamp_min(0)


class TAL(LossTerm):
    """`tal` of each block of the embedding, summed over blocks.

    Args:
        tau, margin: as in `tal`.
        weighted: whether pairs have the weights of a labelling.
    """

    def __init__(self, *, spec: ModelSpec, tau: float, margin: float, weighted: bool) -> None:
        super().__init__(spec=spec)
        if not tau > 0:
            raise UserError(f"tau: {tau} given, expected a temperature above 0, such as 0.015")
        self.weighted = weighted
        self.needs = frozenset({"image", "text", "pids"} | self.weight_needs)
        self.tau, self.margin = tau, margin
        self._widths = list(spec.widths or (spec.embed_dim,))

    def pair_losses(self, pairs: EmbeddedPairs) -> Tensor:
        of_pairs = partial(tal_of_pairs, pids=pairs.pids, tau=self.tau, margin=self.margin)
        return torch.stack([of_pairs(*block) for block in self._blocks(pairs.image, pairs.text)], dim=1)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = features.embedding("image"), features.embedding("text")
        weights = self.weights_of(features)
        loss = partial(tal, pids=features.pids, tau=self.tau, margin=self.margin, weights=weights)
        losses = [features.checkpointed(loss, *block) for block in self._blocks(image, text)]

        def stats() -> dict[str, Tensor]:
            cosines, same = similarities(image, text), same_identity(features.pids)
            hardest = cosines.masked_fill(same, -torch.inf).amax(dim=1)
            return {
                "positive_cosine": masked_mean(cosines, same),
                "beaten": (hardest > cosines.diagonal()).float().mean(),
            }

        return torch.stack(losses).sum(), stats

    def _blocks(self, image: Tensor, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the unit-norm blocks of both embeddings."""
        return list(zip(image.split(self._widths, dim=1), text.split(self._widths, dim=1), strict=True))
