"""Circle loss (Sun et al., CVPR 2020) within a modality, across modalities, and as the logits of N-ITC.

For a positive pair, alpha_p = [1 + m - s]_+ weights the similarity s, which is compared with 1 - m. For a negative
pair, alpha_n = [s + m]_+ weights s, which is compared with m. The weights get no gradient. Decision: this code keeps
the offsets 1 - m and m, as in the source; papers/circle_msiglip.md prints the loss without them.

Embeddings are unit-norm ``(B, D)``, `pids` int64 ``(B,)``. Every function returns a scalar in fp32 or wider.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.pairs import checked_views, masked_mean, mean_over_views, same_identity, similarities
from utils.errors import check_choice

Scope = Literal["batch", "anchor"]
Reduction = Literal["mean", "row"]
SCOPES: Final = ("batch", "anchor")
REDUCTIONS: Final = ("mean", "row")


def in_modal_circle(
    embeddings: Tensor, pids: Tensor, margin: float = 0.25, gamma: float = 128.0, scope: Scope = "batch"
) -> Tensor:
    """Returns the Circle loss of one modality.

    Decision: scope "batch" computes one softplus(LSE + LSE) over all unordered pairs i < j (the paper's "pairwise"
    loss). Scope "anchor" computes one per sample over the B - 1 other samples, then the mean over the samples that
    have both a positive and a negative. Without positives or without negatives: zero, connected to the graph.
    """
    check_choice("scope", scope, SCOPES)
    similarity = similarities(embeddings, embeddings)
    positive, negative = _others(pids)
    if scope == "batch":
        return _circle(similarity, positive.triu(1), negative.triu(1), margin, gamma, dims=(0, 1))
    return _per_anchor(similarity, positive, negative, margin, gamma)


def cross_modal_circle(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    margin: float = 0.25,
    gamma: float = 128.0,
    scope: Scope = "batch",
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the Circle loss between images and texts; row i of both is one pair.

    Decision: scope "batch" computes one softplus(LSE + LSE) over all B x B similarities. Scope "anchor" computes one
    per image over the texts and one per text over the images. It averages over the anchors that have both a positive
    and a negative, then over both directions. Without negatives: zero, connected to the graph.

    Args:
        weights: confidence in each pair ``(B,)``: a text of weight 0 is a positive of no image. None: all texts are
            positives of the images of their identity.
    """
    check_choice("scope", scope, SCOPES)
    similarity = similarities(image, text)
    same = same_identity(pids)
    positive = same if weights is None else same & (weights > 0)
    if scope == "batch":
        return _circle(similarity, positive, ~same, margin, gamma, dims=(0, 1))
    directions = [
        _per_anchor(s, p, ~same, margin, gamma) for s, p in ((similarity, positive), (similarity.T, positive.T))
    ]
    return torch.stack(directions).mean()


def nc_itc(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    margin: float = 0.35,
    gamma: float = 80.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the N-ITC loss with sigmoid logits that are re-weighted as in Circle loss.

    It is the binary cross-entropy with target y_ij = [pid_i = pid_j]. The logits are gamma alpha_p (s - (1 - m)) where
    y = 1 and gamma alpha_n (s - m) where y = 0 (papers/circle_msiglip.md, strategy 2). Decision: reduction "mean"
    averages over all B x B entries; "row" sums over each row and averages over rows, as N-ITC does.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    similarity = similarities(image, text)
    same = same_identity(pids)
    logits = torch.where(same, _positive_logits(similarity, margin, gamma), _negative_logits(similarity, margin, gamma))
    entropy = F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="none")
    return entropy.mean() if reduction == "mean" else entropy.sum(dim=1).mean()


def _positive_logits(similarity: Tensor, margin: float, gamma: float) -> Tensor:
    alpha = (1 + margin - similarity.detach()).clamp_min(0)
    return gamma * alpha * (similarity - (1 - margin))


def _negative_logits(similarity: Tensor, margin: float, gamma: float) -> Tensor:
    alpha = (similarity.detach() + margin).clamp_min(0)
    return gamma * alpha * (similarity - margin)


def _circle(
    similarity: Tensor, positive: Tensor, negative: Tensor, margin: float, gamma: float, dims: tuple[int, ...]
) -> Tensor:
    """Returns softplus(LSE over negatives + LSE over positives), both over `dims` of ``(B, B)``.

    Entries outside a mask are set to the lowest finite number, not to -inf: the gradient of a logsumexp over only
    -inf is NaN. An empty mask then gives softplus(lowest), an exact zero with zero gradients.
    """
    lowest = torch.finfo(similarity.dtype).min
    positives = (-_positive_logits(similarity, margin, gamma)).masked_fill(~positive, lowest)
    negatives = _negative_logits(similarity, margin, gamma).masked_fill(~negative, lowest)
    return F.softplus(negatives.logsumexp(dims) + positives.logsumexp(dims))


def _per_anchor(similarity: Tensor, positive: Tensor, negative: Tensor, margin: float, gamma: float) -> Tensor:
    """Returns the mean loss of the rows that have both a positive and a negative."""
    losses = _circle(similarity, positive, negative, margin, gamma, dims=(1,))
    return masked_mean(losses, positive.any(dim=1) & negative.any(dim=1))


def _others(pids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two bool masks ``(B, B)``: other samples of the same identity, and samples of another identity."""
    same = same_identity(pids)
    return same & ~torch.eye(len(pids), dtype=torch.bool, device=pids.device), ~same


def _hard_shares(similarity: Tensor, positive: Tensor, negative: Tensor, margin: float) -> dict[str, Tensor]:
    """Returns the share of positive pairs below 1 - margin and of negative pairs above margin."""
    return {
        "hard_positives": masked_mean((similarity < 1 - margin).float(), positive),
        "hard_negatives": masked_mean((similarity > margin).float(), negative),
    }


class _OverViews(LossTerm):
    """A term that compares views of images with captions, by identity."""

    def __init__(self, loss: Callable[..., Tensor], views: Sequence[str], margin: float, *, spec: ModelSpec) -> None:
        super().__init__(spec=spec)
        self.views = checked_views(views)
        self.needs = frozenset({*self.views, "text", "pids"})
        self.margin = margin
        self._loss = partial(loss, margin=margin)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        options = {"weights": self.weights_of(features)} if self.weighted else {}
        loss = mean_over_views(partial(self._loss, pids=features.pids, **options), features, self.views)
        return loss, lambda: self._hard_shares(features, features.embedding(self.views[0]))

    def _hard_shares(self, features: Features, image: Tensor) -> dict[str, Tensor]:
        same = same_identity(features.pids)
        return _hard_shares(similarities(image, features.embedding("text")), same, ~same, self.margin)


class InModalCircle(_OverViews):
    """The mean of `in_modal_circle` of images and of texts, averaged over image views.

    Args:
        margin, gamma, scope: as in `in_modal_circle`.
    """

    def __init__(self, *, spec: ModelSpec, views: Sequence[str], margin: float, gamma: float, scope: Scope) -> None:
        check_choice("scope", scope, SCOPES)
        super().__init__(partial(_of_both, gamma=gamma, scope=scope), views, margin, spec=spec)

    def _hard_shares(self, features: Features, image: Tensor) -> dict[str, Tensor]:
        return _hard_shares(similarities(image, image), *_others(features.pids), self.margin)


def _of_both(image: Tensor, text: Tensor, **options: Any) -> Tensor:
    return torch.stack([in_modal_circle(branch, **options) for branch in (image, text)]).mean()


class CrossModalCircle(_OverViews):
    """`cross_modal_circle`, averaged over image views.

    Args:
        margin, gamma, scope: as in `cross_modal_circle`.
        weighted: whether pairs have the weights of a labelling.
    """

    def __init__(
        self, *, spec: ModelSpec, views: Sequence[str], margin: float, gamma: float, scope: Scope, weighted: bool
    ) -> None:
        check_choice("scope", scope, SCOPES)
        super().__init__(partial(cross_modal_circle, gamma=gamma, scope=scope), views, margin, spec=spec)
        self.weighted = weighted
        self.needs |= self.weight_needs


class NCITC(_OverViews):
    """`nc_itc`, averaged over image views.

    Args:
        margin, gamma, reduction: as in `nc_itc`.
    """

    def __init__(
        self, *, spec: ModelSpec, views: Sequence[str], margin: float, gamma: float, reduction: Reduction
    ) -> None:
        check_choice("reduction", reduction, REDUCTIONS)
        super().__init__(partial(nc_itc, gamma=gamma, reduction=reduction), views, margin, spec=spec)
