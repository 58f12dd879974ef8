"""Contrastive losses over the whole similarity matrix: ITC, N-ITC, R-ITC and C-ITC.

`image` and `text` are unit-norm ``(B, D)``, row i of both is one pair; `pids` is int64 ``(B,)``. Every
function returns a scalar in fp32 or wider.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import ModelSpec, Stats
from model.objectives.pairs import PairTerm, masked_mean, same_identity, similarities
from utils.errors import UserError

Pairs = Literal["all", "outliers"]
PAIRS: Final = get_args(Pairs)


def itc(image: Tensor, text: Tensor, logit_scale: float | Tensor, chosen: Tensor | None = None) -> Tensor:
    """Returns the image-text contrastive loss: InfoNCE with the diagonal as target, mean of both directions.

    Source: CLIP (ICML 2021), Fig. 3.

    Args:
        chosen: bool ``(B,)``, true for the pairs that count; the others are no negatives either. All, if not
            given; a zero that is connected to the graph, if none is chosen.
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
) -> Tensor:
    """Returns the normalised ITC loss: every pair of one identity is a positive.

    With logits l = scale * S + bias, y_ij = [pid_i = pid_j] and soft-label ratio a:
    softmax (TBPS-CLIP, AAAI 2024): cross-entropy with targets (1-a) y / sum_j y + a softmax(l'), mean of both
    directions; sigmoid (SigLIP, ICCV 2023): binary cross-entropy with targets (1-a) y + a sigmoid(l'), summed
    over a row, mean over rows; at a = 0 this is -logsigmoid(z l) with z = 2y - 1.
    Decision: soft labels mix into 0/1 targets, never into -1/+1 signs, and l' gets no gradient at all.

    Args:
        sigmoid: pairwise sigmoid instead of softmax.
        soft_targets: (image', text') that l' is computed from; `image` and `text` themselves when None.
        softlabel_ratio: a, from 0 to 1.
    """
    logits = logit_scale * similarities(image, text) + logit_bias
    soft = logits if soft_targets is None else logit_scale * similarities(*soft_targets) + logit_bias
    soft = soft.detach()
    hard = same_identity(pids).to(logits.dtype)
    if sigmoid:
        targets = torch.lerp(hard, soft.sigmoid(), softlabel_ratio)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
    hard = hard / hard.sum(dim=1, keepdim=True)
    to_text = torch.lerp(hard, soft.softmax(dim=1), softlabel_ratio)
    to_image = torch.lerp(hard, soft.T.softmax(dim=1), softlabel_ratio)
    return (F.cross_entropy(logits, to_text) + F.cross_entropy(logits.T, to_image)) / 2


def ritc(
    image: Tensor,
    text: Tensor,
    pids: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor = 0.0,
    eps: float = 1e-2,
) -> Tensor:
    """Returns the reverse ITC loss KL(p || q'), mean over rows and of both directions.

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
    """Returns the cyclic ITC loss: both modalities see the same geometry, and S is symmetric.

    inmodal_weight * mean((image image^T - text text^T)^2) + intermodal_weight * mean((S - S^T)^2)
    (CyCLIP, NeurIPS 2022). The source multiplies logit_scale into the similarities and divides its square out
    of the loss. Decision: the loss is computed on cosines, which is the same; `logit_scale` has no influence.
    """
    between = similarities(image, text)
    within = similarities(image, image) - similarities(text, text)
    return inmodal_weight * within.square().mean() + intermodal_weight * (between - between.T).square().mean()


class ITC(PairTerm):
    """`itc` under the temperature of the backbone.

    Args:
        pairs: "all", or "outliers": those of which a side is in no cluster (CPCL, supplementary learning stage).
    """

    reads_pids = False

    def __init__(
        self, *, spec: ModelSpec, weight: float = 1.0, views: Sequence[str] = ("image",), pairs: Pairs = "all"
    ) -> None:
        super().__init__(spec=spec, weight=weight, views=views)
        if pairs not in PAIRS:
            raise UserError(f"pairs: {pairs!r} given, expected one of {', '.join(PAIRS)}")
        self.pairs = pairs
        if pairs == "outliers":
            self.needs |= {"image_labels", "text_labels"}

    def pair_loss(self, image: Tensor, text: Tensor, features: Features) -> Tensor:
        scale, _ = features.logit_scale_and_bias()
        if self.pairs == "all":
            return itc(image, text, scale)
        outliers = (features.labels("image_labels") < 0) | (features.labels("text_labels") < 0)
        return itc(image, text, scale, outliers)


class NITC(PairTerm):
    """`nitc` under the temperature of the backbone; the soft-label ratio ramps up over the first epoch.

    Args:
        sigmoid: pairwise sigmoid instead of softmax.
        softlabel_ratio: share of the model's own prediction in the targets once the first epoch is over.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        sigmoid: bool,
        weight: float = 1.0,
        views: Sequence[str] = ("image",),
        softlabel_ratio: float = 0.0,
    ) -> None:
        super().__init__(spec=spec, weight=weight, views=views)
        if not 0 <= softlabel_ratio <= 1:
            raise UserError(f"softlabel_ratio: {softlabel_ratio} given, expected a number from 0 to 1")
        self.sigmoid = sigmoid
        self.softlabel_ratio = softlabel_ratio

    def pair_loss(self, image: Tensor, text: Tensor, features: Features) -> Tensor:
        scale, bias = features.logit_scale_and_bias()
        ratio = self.softlabel_ratio * min(features.epoch, 1.0)
        return nitc(image, text, features.pids, scale, bias, sigmoid=self.sigmoid, softlabel_ratio=ratio)

    def pair_stats(self, image: Tensor, text: Tensor, features: Features) -> Stats:
        cosines, same = similarities(image, text), same_identity(features.pids)
        return {"positive_cosine": masked_mean(cosines, same), "negative_cosine": masked_mean(cosines, ~same)}


class RITC(PairTerm):
    """`ritc` under the temperature of the backbone.

    Args:
        eps: added to the targets before their logarithm.
    """

    def __init__(
        self, *, spec: ModelSpec, weight: float = 1.0, views: Sequence[str] = ("image",), eps: float = 1e-2
    ) -> None:
        super().__init__(spec=spec, weight=weight, views=views)
        self.eps = eps

    def pair_loss(self, image: Tensor, text: Tensor, features: Features) -> Tensor:
        return ritc(image, text, features.pids, *features.logit_scale_and_bias(), eps=self.eps)


class CITC(PairTerm):
    """`citc`.

    Args:
        inmodal_weight: of the difference between the two in-modal geometries.
        intermodal_weight: of the asymmetry of S.
    """

    reads_pids = False

    def __init__(
        self,
        *,
        spec: ModelSpec,
        weight: float = 1.0,
        views: Sequence[str] = ("image",),
        inmodal_weight: float = 0.25,
        intermodal_weight: float = 0.25,
    ) -> None:
        super().__init__(spec=spec, weight=weight, views=views)
        self.inmodal_weight = inmodal_weight
        self.intermodal_weight = intermodal_weight

    def pair_loss(self, image: Tensor, text: Tensor, features: Features) -> Tensor:
        return citc(image, text, inmodal_weight=self.inmodal_weight, intermodal_weight=self.intermodal_weight)
