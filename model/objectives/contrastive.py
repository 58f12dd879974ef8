"""Contrastive losses over the whole similarity matrix: ITC, N-ITC, R-ITC and C-ITC.

`image` and `text` are unit-norm ``(B, D)``, row i of both is one pair; `pids` is int64 ``(B,)``. Every
function returns a scalar in fp32 or wider.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import EmbeddedPairs, LossTerm, ModelSpec, Stats
from model.objectives.pairs import (
    checked_text_view,
    checked_views,
    masked_mean,
    mean_over_views,
    same_identity,
    similarities,
    weighted_mean,
)
from utils.errors import UserError, check_choice

Pairs = Literal["all", "outliers"]
PAIRS: Final = get_args(Pairs)


def itc(image: Tensor, text: Tensor, logit_scale: float | Tensor, chosen: Tensor | None = None) -> Tensor:
    """Returns the image-text contrastive loss: InfoNCE with the diagonal as target, mean of both directions.

    Source: CLIP (ICML 2021), Fig. 3.

    Args:
        chosen: bool ``(B,)``, true for the pairs to use. The others are not used as negatives either. None: all pairs
            are used. If no pair is chosen, the loss is a zero that is connected to the graph.
    """
    logits = logit_scale * similarities(image, text)
    pair = torch.arange(len(logits), device=logits.device)
    if chosen is None:
        return (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2
    logits = logits.masked_fill(~((chosen[:, None] & chosen) | (pair[:, None] == pair)), -torch.inf)
    losses = [F.cross_entropy(rows, pair, reduction="none") for rows in (logits, logits.T)]
    return masked_mean(torch.stack(losses).mean(dim=0), chosen)


def nitc(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor = 0.0,
    *,
    sigmoid: bool,
    soft_targets: tuple[Tensor, Tensor] | None = None,
    softlabel_ratio: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the normalised ITC loss: every pair of one identity is a positive.

    Symbols: logits l = scale * S + bias, y_ij = [pid_i = pid_j], soft-label ratio a.
    Softmax (TBPS-CLIP, AAAI 2024): cross-entropy with targets (1-a) y / sum_j y + a softmax(l'), mean of both
    directions. Sigmoid (SigLIP, ICCV 2023): binary cross-entropy with targets (1-a) y + a sigmoid(l'), summed over
    each row, mean over rows. At a = 0 the sigmoid form is -logsigmoid(z l) with z = 2y - 1.
    Decision: soft labels are mixed into 0/1 targets, not into -1/+1 signs. l' gets no gradient.

    Args:
        sigmoid: whether to use the pairwise sigmoid instead of softmax.
        soft_targets: (image', text'), from which l' is computed. None: `image` and `text`.
        softlabel_ratio: a, from 0 to 1.
        weights: a weight of each pair in the means over rows ``(B,)``. None: all have weight 1.
    """
    logits, to_text, to_image = _targets(
        image, text, pids, logit_scale, logit_bias, sigmoid, soft_targets, softlabel_ratio
    )
    if weights is not None:
        return weighted_mean(_losses_of_pairs(logits, to_text, to_image, sigmoid), weights)
    if sigmoid:
        return F.binary_cross_entropy_with_logits(logits, to_text, reduction="sum") / len(logits)
    return (F.cross_entropy(logits, to_text) + F.cross_entropy(logits.T, to_image)) / 2


def _targets(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    sigmoid: bool,
    soft_targets: tuple[Tensor, Tensor] | None = None,
    softlabel_ratio: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the logits of `nitc` with its targets from image to text and from text to image, each ``(B, B)``."""
    logits = logit_scale * similarities(image, text) + logit_bias
    soft = logits if soft_targets is None else logit_scale * similarities(*soft_targets) + logit_bias
    soft = soft.detach()
    hard = same_identity(pids).to(logits.dtype)
    if sigmoid:
        targets = torch.lerp(hard, soft.sigmoid(), softlabel_ratio)
        return logits, targets, targets.T
    hard = hard / hard.sum(dim=1, keepdim=True)
    to_text = torch.lerp(hard, soft.softmax(dim=1), softlabel_ratio)
    return logits, to_text, torch.lerp(hard, soft.T.softmax(dim=1), softlabel_ratio)


def _losses_of_pairs(logits: Tensor, to_text: Tensor, to_image: Tensor, sigmoid: bool) -> Tensor:
    """Returns the loss of `nitc` of each pair, mean of both directions ``(B,)``. Their mean is `nitc`."""
    if sigmoid:
        entropy = F.binary_cross_entropy_with_logits(logits, to_text, reduction="none")
        return (entropy.sum(dim=1) + entropy.sum(dim=0)) / 2
    directions = ((logits, to_text), (logits.T, to_image))
    return torch.stack([F.cross_entropy(*both, reduction="none") for both in directions]).mean(dim=0)


def ritc(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor = 0.0,
    eps: float = 1e-2,
) -> Tensor:
    """Returns the reverse ITC loss KL(p || q'), averaged over rows and over both directions.

    p = softmax(scale * S + bias) and q' = y / sum_j y + eps (TBPS-CLIP, AAAI 2024).
    Decision: q' is not renormalised, as in the authors' code.
    """
    logits = logit_scale * similarities(image, text) + logit_bias
    same = same_identity(pids).to(logits.dtype)
    log_target = (same / same.sum(dim=1, keepdim=True) + eps).log()

    def reverse_kl(rows: Tensor) -> Tensor:
        return F.kl_div(log_target, rows.log_softmax(dim=1), reduction="batchmean", log_target=True)

    return (reverse_kl(logits) + reverse_kl(logits.T)) / 2


def citc(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor = 1.0,
    inmodal_weight: float = 0.25,
    intermodal_weight: float = 0.25,
) -> Tensor:
    """Returns the cyclic ITC loss. It is 0 if images and texts have the same similarity matrix and S is symmetric.

    inmodal_weight * mean((image image^T - text text^T)^2) + intermodal_weight * mean((S - S^T)^2)
    (CyCLIP, NeurIPS 2022). The source multiplies the similarities by logit_scale and divides the loss by its square.
    Decision: this code computes the same loss on cosines, so `logit_scale` has no influence.
    """
    between = similarities(image, text)
    within = similarities(image, image) - similarities(text, text)
    return inmodal_weight * within.square().mean() + intermodal_weight * (between - between.T).square().mean()


class ITC(LossTerm):
    """`itc` with the logit scale of the backbone, averaged over image views.

    Args:
        pairs: "all", or "outliers": pairs whose image or text is in no cluster (CPCL, supplementary learning stage).
    """

    def __init__(self, *, spec: ModelSpec, views: Sequence[str], pairs: Pairs) -> None:
        super().__init__(spec=spec)
        check_choice("pairs", pairs, PAIRS)
        self.pairs = pairs
        self.views = checked_views(views)
        labels = {"image_labels", "text_labels"} if pairs == "outliers" else set()
        self.needs = frozenset({*self.views, "text"} | labels)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        scale, _ = features.logit_scale_and_bias()
        outliers = None
        if self.pairs == "outliers":
            outliers = (features.labels("image_labels") < 0) | (features.labels("text_labels") < 0)
        loss = partial(itc, logit_scale=scale, chosen=outliers)
        return mean_over_views(loss, features, self.views), dict


class NITC(LossTerm):
    """`nitc` with the logit scale and bias of the backbone, averaged over image views.

    Args:
        text_view: the captions: "text", or "text_masked", in which words are masked.
        sigmoid: whether to use the pairwise sigmoid instead of softmax.
        softlabel_ratio: share of the model's own prediction in the targets. It rises from 0 during the first epoch.
        weighted: whether pairs have the weights of a labelling.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        views: Sequence[str],
        text_view: str,
        sigmoid: bool,
        softlabel_ratio: float,
        weighted: bool,
    ) -> None:
        super().__init__(spec=spec)
        if not 0 <= softlabel_ratio <= 1:
            raise UserError(f"softlabel_ratio: {softlabel_ratio} given, expected a number from 0 to 1")
        self.views, self.text_view = checked_views(views), checked_text_view(text_view)
        self.weighted = weighted
        self.needs = frozenset({*self.views, self.text_view, "pids"} | self.weight_needs)
        self.sigmoid = sigmoid
        self.softlabel_ratio = softlabel_ratio

    def pair_losses(self, pairs: EmbeddedPairs) -> Tensor:
        return _losses_of_pairs(*_targets(*pairs, self.sigmoid), self.sigmoid)[:, None]

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        scale, bias = features.logit_scale_and_bias()
        loss = partial(
            nitc,
            pids=features.pids,
            logit_scale=scale,
            logit_bias=bias,
            sigmoid=self.sigmoid,
            softlabel_ratio=self.softlabel_ratio * min(features.epoch, 1.0),
            weights=self.weights_of(features),
        )

        def stats() -> dict[str, Tensor]:
            cosines = similarities(features.embedding(self.views[0]), features.embedding(self.text_view))
            same = same_identity(features.pids)
            return {"positive_cosine": masked_mean(cosines, same), "negative_cosine": masked_mean(cosines, ~same)}

        return mean_over_views(loss, features, self.views, self.text_view), stats


class RITC(LossTerm):
    """`ritc` with the logit scale and bias of the backbone, averaged over image views.

    Args:
        eps: added to the targets before their logarithm.
    """

    def __init__(self, *, spec: ModelSpec, views: Sequence[str], eps: float) -> None:
        super().__init__(spec=spec)
        self.views = checked_views(views)
        self.needs = frozenset({*self.views, "text", "pids"})
        self.eps = eps

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        scale, bias = features.logit_scale_and_bias()
        loss = partial(ritc, pids=features.pids, logit_scale=scale, logit_bias=bias, eps=self.eps)
        return mean_over_views(loss, features, self.views), dict


class CITC(LossTerm):
    """`citc`, averaged over image views.

    Args:
        inmodal_weight: weight of the difference between the similarities of images and those of texts.
        intermodal_weight: weight of the asymmetry of S.
    """

    def __init__(
        self, *, spec: ModelSpec, views: Sequence[str], inmodal_weight: float, intermodal_weight: float
    ) -> None:
        super().__init__(spec=spec)
        self.views = checked_views(views)
        self.needs = frozenset({*self.views, "text"})
        self._loss = partial(citc, inmodal_weight=inmodal_weight, intermodal_weight=intermodal_weight)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        return mean_over_views(self._loss, features, self.views), dict
