"""Ranking against the hardest negative, with a margin that shrinks where a part is common to many persons."""

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

    Source: Faghri et al. (BMVC 2018), as in eqs. (9)-(10) of Park et al. (ECCV 2024): each pair is to be ahead of
    the hardest negative of the batch by `margin`, in both directions. Decision: a negative is a sample of another
    identity; a sample without one adds nothing.

    Args:
        image, text: unit rows ``(B, D)``, or of K slots ``(B, K, D)``, which are ranked apart and summed.
        pids: int64 ``(B,)``.
        margin: in cosines.
        reduction: over the batch.
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

    Source: Park et al. (ECCV 2024), eqs. (11)-(12). `ranking_loss`, in which a sample asks for `margin` times one
    minus its own `commonality`; that of the image in the image-to-text direction, that of the caption in the other.
    No gradient passes the margin.

    Args:
        image_fine, text_fine: unit rows ``(B, D)`` of a part, or of P parts ``(B, P, D)``, which are summed.
        pids: int64 ``(B,)``.
        image_probs, text_probs: identity classification scores ``(B, C)`` or ``(B, P, C)``, each row summing to 1.
        margin: in cosines, of a part that tells one identity from all others.
        reduction: over the batch.
    """
    margins = [margin * (1 - commonality(probs)) for probs in (image_probs, text_probs)]
    return _reduced(_hinges(image_fine, text_fine, pids, *margins), reduction)


@torch.no_grad()
def commonality(probs: Tensor) -> Tensor:
    """Returns ``(...)``, without gradient: from 0, one identity alone has the part, to 1, all of them may (eq. (11)).

    Args:
        probs: identity classification scores ``(..., C)``. With a single identity, nothing is common.
    """
    entropy = torch.special.entr(at_least_fp32(probs)).sum(dim=-1)
    return (entropy / log(max(2, probs.shape[-1]))).clamp(0, 1)


def _hinges(
    image: Tensor, text: Tensor, pids: Tensor, image_margin: Tensor | float, text_margin: Tensor | float
) -> Tensor:
    """Returns by how much pairs miss their margin ``(2, B, K)``: images asking, captions asking.

    Args:
        image, text: unit rows ``(B, D)`` or ``(B, K, D)``.
        image_margin, text_margin: numbers, or ``(B,)`` or ``(B, K)``.
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
    """Returns the sum over directions and slots, and over the batch as `reduction` says, of ``(2, B, K)``."""
    return hinges.sum() if reduction == "sum" else hinges.sum(dim=(0, 2)).mean()


class Ranking(LossTerm):
    """`ranking_loss` of the embeddings of a head, level by level.

    Args:
        margin, reduction: as in `ranking_loss`.
        skip: levels that are not ranked, because `CMR` ranks them.
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
    """`cmr_loss` of the embeddings of some levels; their scores are those of the `ID` term's classifiers.

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
    """Which of a head's embeddings belong to some levels.

    Args:
        spec: of the composed model.
        levels: those wanted; one that the head lacks has no embeddings.

    names: of the embeddings, "coarse_1", ..., in the order of `of`.
    """

    def __init__(self, spec: ModelSpec, levels: Sequence[str]) -> None:
        counts = {level: count for level, count in spec.slots.items() if level in levels}
        self.names = [f"{level}_{number + 1}" for level, count in counts.items() for number in range(count)]
        self._sizes = list(spec.slots.values())
        self._chosen = [level in levels for level in spec.slots]

    def of(self, rows: Tensor) -> Tensor:
        """Returns ``(B, K, D)``, the K slots of the levels, from all of them: ``(B, slots, D)`` or side by side."""
        slots = rows if rows.ndim == 3 else rows.unflatten(1, (sum(self._sizes), -1))
        # Not slots[:, places]: a list travels to the device, and the host waits for it.
        return torch.cat([slots[:, :0], *compress(slots.split(self._sizes, dim=1), self._chosen)], dim=1)


def _active(hinges: Tensor) -> Tensor:
    """Returns the share of ``(2, B, K)`` that still miss their margin, 0 where there is none."""
    return (hinges > 0).sum() / max(1, hinges.numel())


def _check(margin: float, reduction: str) -> None:
    if margin < 0:
        raise UserError(f"margin: {margin} given, expected a cosine of 0 or more")
    check_choice("reduction", reduction, REDUCTIONS)


def _checked(option: str, levels: Sequence[str]) -> Sequence[str]:
    for level in levels:
        check_choice(option, level, LEVELS)
    return levels
