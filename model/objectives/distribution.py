"""Losses that match the distribution of similarities in a batch to the distribution of identities: SDM, A-SDM, CMPM.

The logits l ``(B, B)`` compare one modality with the other. p = softmax(l) over a row, and q = y / sum_j y with
y_ij = [pid_i = pid_j]. The loss of a row is KL(p || q) = sum_j p_j (log p_j - log(q_j + eps)). The loss is the mean
over rows, summed over both directions.

Row i of `image` and `text`, both ``(B, D)``, is one pair; `pids` is int64 ``(B,)``. A loss is a scalar in
fp32 or wider.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import EmbeddedPairs, LossTerm, ModelSpec, Stats
from model.objectives.pairs import (
    FORMS,
    at_least_fp32,
    checked_text_view,
    checked_views,
    mean_over_views,
    same_identity,
    similarities,
    weighted_mean,
)
from utils.errors import UserError, check_choice

RELEASED_ALPHA: Final = 0.1


def sdm(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    logit_scale: float | Tensor = 50.0,
    eps: float = 1e-8,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the similarity distribution matching loss of unit-norm rows, with l = logit_scale * cosines.

    Source: IRRA (CVPR 2023), eqs. (4)-(6), where logit_scale is 1 / tau and tau = 0.02.

    Args:
        weights: a weight of each pair in both means ``(B,)``. None: all have weight 1.
    """
    logits = logit_scale * similarities(image, text)
    directions = [weighted_mean(divergences(rows, pids, eps), weights) for rows in (logits, logits.T)]
    return directions[0] + directions[1]


def a_sdm(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    logit_scale: float | Tensor = 50.0,
    alpha: float = 10.0,
    eps: float = 1e-8,
) -> Tensor:
    """Returns adaptive SDM: `sdm` with each row multiplied by its weight from `adaptive_weights`.

    Source: FMFA (2025), eqs. (1)-(4). Each direction computes the weights from its own p. At alpha = 0 it is `sdm`.
    """
    logits = logit_scale * similarities(image, text)
    directions = [
        (adaptive_weights(rows.softmax(dim=1), alpha) * divergences(rows, pids, eps)).mean()
        for rows in (logits, logits.T)
    ]
    return torch.stack(directions).sum()


def adaptive_weights(probabilities: Tensor, alpha: float) -> Tensor:
    """Returns w_i = alpha * (max_k p_ik - p_ii) + 1 ``(B,)`` of `probabilities` ``(B, B)``, without gradient.

    Source: FMFA, eq. (2). The weight is exactly 1 where the row's own pair has the highest probability.
    """
    p = probabilities.detach()
    return alpha * (p.amax(dim=1) - p.diagonal()) + 1


def released_a_sdm(
    image: Tensor, text: Tensor, pids: Tensor, logit_scale: float | Tensor = 50.0, eps: float = 1e-8
) -> Tensor:
    """Returns adaptive SDM as in FMFA's released code: `sdm` with each row multiplied by its `released_weights`.

    Source: the authors' code, not eqs. (1)-(4) of the paper.
    """
    cosines = similarities(image, text)
    directions = [
        (released_weights(rows, pids) * divergences(logit_scale * rows, pids, eps)).mean()
        for rows in (cosines, cosines.T)
    ]
    return torch.stack(directions).sum()


def released_weights(cosines: Tensor, pids: Tensor) -> Tensor:
    """Returns w_i = 0.1 * (max_k cos_ik - cos_if) + 1 ``(B,)`` of `cosines` ``(B, B)``, with gradient.

    f is the first row of the batch that has the identity of row i.
    """
    first = same_identity(pids).int().argmax(dim=1, keepdim=True)  # argmax returns the first of equal values
    return RELEASED_ALPHA * (cosines.max(dim=1).values - cosines.gather(1, first).squeeze(1)) + 1


def cmpm(image: Tensor, text: Tensor, pids: Tensor, eps: float = 1e-8) -> Tensor:
    """Returns the cross-modal projection matching loss of rows of any norm.

    The logits are the projections of each row onto the unit rows of the other modality: image @ unit(text).T, and
    text @ unit(image).T in the other direction. Source: Zhang and Lu (ECCV 2018).
    """
    return torch.stack([divergences(rows, pids, eps).mean() for rows in _projections(image, text)]).sum()


def _projections(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two matrices ``(B, B)``: images projected onto texts, and texts projected onto images."""
    image, text = at_least_fp32(image), at_least_fp32(text)
    return image @ F.normalize(text, dim=1).T, text @ F.normalize(image, dim=1).T


def divergences(logits: Tensor, pids: Tensor, eps: float) -> Tensor:
    """Returns KL(p || q) ``(B,)`` of each row of `logits` ``(B, B)``."""
    same = same_identity(pids).to(logits.dtype)
    log_target = (same / same.sum(dim=1, keepdim=True) + eps).log()
    return F.kl_div(log_target, logits.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)


def _unmatched_shares(image_logits: Tensor, text_logits: Tensor) -> dict[str, Tensor]:
    """Returns the share of images, and of texts, for which another pair's row scores higher than their own."""
    shares = [(rows.amax(dim=1) > rows.diagonal()).float().mean() for rows in (image_logits, text_logits)]
    return {"unmatched_images": shares[0], "unmatched_texts": shares[1]}


class SDM(LossTerm):
    """`sdm`, averaged over image views.

    Args:
        text_view: the captions: "text", or "text_masked", in which words are masked.
        logit_scale: a fixed number, 1 / tau.
        weighted: whether pairs have the weights of a labelling.
    """

    def __init__(
        self, *, spec: ModelSpec, views: Sequence[str], text_view: str, logit_scale: float, weighted: bool
    ) -> None:
        super().__init__(spec=spec)
        self.views, self.text_view = checked_views(views), checked_text_view(text_view)
        self.weighted = weighted
        self.needs = frozenset({*self.views, self.text_view, "pids"} | self.weight_needs)
        self.logit_scale = logit_scale

    def pair_losses(self, pairs: EmbeddedPairs) -> Tensor:
        logits = self.logit_scale * similarities(pairs.image, pairs.text)
        directions = [divergences(rows, pairs.pids, eps=1e-8) for rows in (logits, logits.T)]
        return torch.stack(directions).sum(dim=0)[:, None]

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        weights = self.weights_of(features)
        loss = partial(sdm, pids=features.pids, logit_scale=self.logit_scale, weights=weights)

        def stats() -> dict[str, Tensor]:
            cosines = similarities(features.embedding(self.views[0]), features.embedding(self.text_view))
            return _unmatched_shares(cosines, cosines.T)

        return mean_over_views(loss, features, self.views, self.text_view), stats


class ASDM(LossTerm):
    """`a_sdm` or `released_a_sdm`, averaged over image views.

    Args:
        logit_scale: a fixed number, 1 / tau.
        form: ``paper`` (`a_sdm`) or ``released`` (`released_a_sdm`).
        alpha: extra weight, in form ``paper``, of rows whose own pair is not the closest. FMFA: 10; on RSTPReid 1.
    """

    def __init__(self, *, spec: ModelSpec, views: Sequence[str], logit_scale: float, form: str, alpha: float) -> None:
        super().__init__(spec=spec)
        check_choice("form", form, FORMS)
        if alpha < 0:
            raise UserError(f"alpha: {alpha} given, expected 0 or more; 0 is plain SDM")
        self.views = checked_views(views)
        self.needs = frozenset({*self.views, "text", "pids"})
        self.logit_scale = logit_scale
        self.form = form
        self.alpha = alpha

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        chosen = released_a_sdm if self.form == "released" else partial(a_sdm, alpha=self.alpha)
        loss = partial(chosen, pids=features.pids, logit_scale=self.logit_scale)

        def stats() -> dict[str, Tensor]:
            cosines = similarities(features.embedding(self.views[0]), features.embedding("text"))
            directions = (cosines, cosines.T)
            if self.form == "released":
                weights = [released_weights(rows, features.pids) for rows in directions]
            else:
                weights = [
                    adaptive_weights((self.logit_scale * rows).softmax(dim=1), self.alpha) for rows in directions
                ]
            return {**_unmatched_shares(*directions), "mean_weight": torch.cat(weights).mean()}

        return mean_over_views(loss, features, self.views), stats


class CMPM(LossTerm):
    """`cmpm` of the pooled features, which are not normalised."""

    needs = frozenset({"image", "text", "pids"})

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = features.pooled("image"), features.pooled("text")
        loss = features.checkpointed(partial(cmpm, pids=features.pids), image, text)
        return loss, lambda: _unmatched_shares(*_projections(image, text))
