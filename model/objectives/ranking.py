"""Triplet ranking losses against the hardest negative, with a fixed margin or one that depends on commonality."""

from collections.abc import Sequence
from functools import partial
from itertools import compress
from math import log
from typing import Final, Literal

import torch
from torch import Tensor

from model.features import Features
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.pairs import at_least_fp32, same_identity
from utils.errors import UserError, check_choice

LEVELS: Final = ("global", "coarse", "fine")
REDUCTIONS: Final = ("sum", "mean")
Reduction = Literal["sum", "mean"]


def ranking_loss(
    image: Tensor, text: Tensor, pids: Tensor, margin: float = 0.2, reduction: Reduction = "sum"
) -> Tensor:
    """Returns the triplet ranking loss, a scalar in fp32 or wider.

    Source: Faghri et al. (BMVC 2018), as in eqs. (9)-(10) of Park et al. (ECCV 2024). The score of each pair has to
    exceed that of the hardest negative in the batch by `margin`, in both directions. Decision: a negative is a sample
    of another identity. A sample without a negative adds nothing.

    Args:
        image, text: unit rows ``(B, D)``, or ``(B, K, D)`` for K slots. Each slot has its own loss; losses are summed.
        pids: int64 ``(B,)``.
        margin: a difference of cosines.
        reduction: "sum" or "mean" over the batch.
    """
    return _reduced(_hinges(image, text, pids, margin, margin), reduction)


def cmr_loss(
    image_fine: Tensor,
    text_fine: Tensor,
    pids: Tensor,
    image_probs: Tensor,
    text_probs: Tensor,
    margin: float = 0.2,
    reduction: Reduction = "sum",
) -> Tensor:
    """Returns the commonality-based margin ranking loss, a scalar in fp32 or wider.

    Source: Park et al. (ECCV 2024), eqs. (11)-(12). It is `ranking_loss` with the margin `margin` * (1 - commonality)
    for each sample. The image's commonality is used from image to text, the caption's from text to image. The margin
    gets no gradient.

    Args:
        image_fine, text_fine: unit rows ``(B, D)`` of one part, or ``(B, P, D)`` for P parts, whose losses are summed.
        pids: int64 ``(B,)``.
        image_probs, text_probs: identity probabilities ``(B, C)`` or ``(B, P, C)``; each row sums to 1.
        margin: a difference of cosines: the margin at commonality 0.
        reduction: "sum" or "mean" over the batch.
    """
    margins = [margin * (1 - commonality(probs)) for probs in (image_probs, text_probs)]
    return _reduced(_hinges(image_fine, text_fine, pids, *margins), reduction)


@torch.no_grad()
def commonality(probs: Tensor) -> Tensor:
    """Returns ``(...)``, without gradient: 0 if one identity is certain, 1 if all are equally likely (eq. (11)).

    Args:
        probs: identity probabilities ``(..., C)``. For C = 1 the result is 0.
    """
    entropy = torch.special.entr(at_least_fp32(probs)).sum(dim=-1)
    return (entropy / log(max(2, probs.shape[-1]))).clamp(0, 1)


def _hinges(
    image: Tensor, text: Tensor, pids: Tensor, image_margin: Tensor | float, text_margin: Tensor | float
) -> Tensor:
    """Returns by how much pairs miss their margin ``(2, B, K)``: first image to text, then text to image.

    Args:
        image, text: unit rows ``(B, D)`` or ``(B, K, D)``.
        image_margin, text_margin: a number, ``(B,)`` or ``(B, K)``.
    """
    image, text = (at_least_fp32(rows if rows.ndim == 3 else rows[:, None]) for rows in (image, text))
    cosines = torch.einsum("ikd,jkd->kij", image, text)
    negatives = cosines.masked_fill(same_identity(pids), -torch.inf)
    own = cosines.diagonal(dim1=1, dim2=2).T  # (B, K)
    missed = []
    for margin, dim in ((image_margin, 2), (text_margin, 1)):
        hardest = negatives.max(dim=dim).values.T
        if isinstance(margin, Tensor) and margin.ndim == 1:
            margin = margin[:, None]
        missed.append((margin - own + hardest).relu())
    return torch.stack(missed)


def _reduced(hinges: Tensor, reduction: Reduction) -> Tensor:
    """Returns `hinges` ``(2, B, K)`` summed over directions and slots, and summed or averaged over the batch."""
    return hinges.sum() if reduction == "sum" else hinges.sum(dim=(0, 2)).mean()


class Ranking(LossTerm):
    """`ranking_loss` of the embeddings of a head.

    Args:
        margin, reduction: as in `ranking_loss`.
        skip: levels to leave out, because `CMR` ranks them.
    """

    needs = frozenset({"image", "text", "pids"})

    def __init__(self, *, spec: ModelSpec, margin: float, reduction: Reduction, skip: Sequence[str]) -> None:
        super().__init__(spec=spec)
        _check(margin, reduction)
        self.margin = margin
        self.reduction = reduction
        self.slots = Slots(spec, [level for level in LEVELS if level not in _checked("skip", skip)])

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = (self.slots.of(features.embedding(view)) for view in ("image", "text"))
        compare = partial(_hinges, image_margin=self.margin, text_margin=self.margin)
        hinges = features.checkpointed(compare, image, text, features.pids)
        return _reduced(hinges, self.reduction), lambda: {"active": _active(hinges)}


class CMR(LossTerm):
    """`cmr_loss` of the embeddings of some levels. The classifiers of the `ID` term give the identity probabilities.

    Args:
        margin, reduction: as in `cmr_loss`.
        levels: "fine", and "coarse" in the ablation of the paper's Table 3.
    """

    needs = frozenset({"image", "text", "pids", "parts", "id_logits"})

    def __init__(self, *, spec: ModelSpec, margin: float, reduction: Reduction, levels: Sequence[str]) -> None:
        super().__init__(spec=spec)
        _check(margin, reduction)
        self.margin = margin
        self.reduction = reduction
        self.slots = Slots(spec, _checked("levels", levels))

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = (self.slots.of(features.embedding(view)) for view in ("image", "text"))
        logits = (self.slots.of(features.shared("id_logits", view)) for view in ("image", "text"))
        common = [commonality(scores.softmax(dim=-1)) for scores in logits]
        hinges = features.checkpointed(_hinges, image, text, features.pids, *(self.margin * (1 - c) for c in common))
        return (
            _reduced(hinges, self.reduction),
            lambda: (
                {"active": _active(hinges)}
                | {
                    f"{modality}_commonality_{name}": share
                    for modality, of_modality in zip(("image", "text"), common, strict=True)
                    for name, share in zip(self.slots.names, of_modality.mean(dim=0), strict=True)
                }
            ),
        )


class Slots:
    """A selection of the head's embeddings by level.

    Args:
        spec: sizes of the composed model.
        levels: levels to select. Levels that the head does not have are ignored.

    names: names of the selected embeddings, "coarse_1", ..., in the order of `of`.
    """

    def __init__(self, spec: ModelSpec, levels: Sequence[str]) -> None:
        counts = {level: count for level, count in spec.slots.items() if level in levels}
        self.names = [f"{level}_{number + 1}" for level, count in counts.items() for number in range(count)]
        self._sizes = list(spec.slots.values())
        self._chosen = [level in levels for level in spec.slots]

    def of(self, rows: Tensor) -> Tensor:
        """Returns the K selected slots ``(B, K, D)`` of `rows` ``(B, slots, D)`` or ``(B, slots * D)``."""
        slots = rows if rows.ndim == 3 else rows.unflatten(1, (sum(self._sizes), -1))
        # slots[:, [indices]] would copy the list to the device and make the host wait.
        return torch.cat([slots[:, :0], *compress(slots.split(self._sizes, dim=1), self._chosen)], dim=1)


def _active(hinges: Tensor) -> Tensor:
    """Returns the share of `hinges` ``(2, B, K)`` above 0, or 0 if there are no slots."""
    return (hinges > 0).sum() / max(1, hinges.numel())


def _check(margin: float, reduction: str) -> None:
    if margin < 0:
        raise UserError(f"margin: {margin} given, expected a cosine of 0 or more")
    check_choice("reduction", reduction, REDUCTIONS)


def _checked(option: str, levels: Sequence[str]) -> Sequence[str]:
    for level in levels:
        check_choice(option, level, LEVELS)
    return levels
