"""Functions that losses over image-text pairs share: similarities, identity masks, multi-view supervision."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from model.features import Features, at_least_fp32
from utils.errors import UserError, check_choice

FORMS: Final = ("paper", "released")  # a loss as in the paper | as in the authors' released code
TEXT_VIEWS: Final = ("text", "text_masked")


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """Returns inner products ``(A, B)`` of rows of `a` ``(A, D)`` and `b` ``(B, D)``, in fp32 or wider."""
    return at_least_fp32(a) @ at_least_fp32(b).T


def same_identity(pids: Tensor) -> Tensor:
    """Returns bool ``(B, B)``, true where two samples have the same identity; `pids` is ``(B,)``."""
    return pids[:, None] == pids[None, :]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of `values` where the bool `mask`, of the same shape, is true. It is 0 for an empty mask."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Returns the mean of `values` ``(B,)`` under `weights` ``(B,)``. It is 0 if all weights are 0. None: all are 1."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


def checked_views(views: Sequence[str]) -> tuple[str, ...]:
    """Returns the image views of a loss as a tuple. Raises `UserError` if `views` is not a list of names."""
    if isinstance(views, str) or not views:
        raise UserError(f"views: {views!r} given, expected a list of image views such as [image, image_aug]")
    return tuple(views)


def checked_text_view(view: str) -> str:
    """Returns the text view of a loss. Raises `UserError` if there is no such view."""
    check_choice("text_view", view, TEXT_VIEWS)
    return view


def mean_over_views(
    loss: Callable[[Tensor, Tensor], Tensor], features: Features, views: Sequence[str], text_view: str = "text"
) -> Tensor:
    """Returns the mean over image views of ``loss(image, text)`` (multi-view supervision, TBPS-CLIP)."""
    text = features.embedding(text_view)
    images = [features.embedding(view) for view in views]
    return torch.stack([features.checkpointed(loss, image, text) for image in images]).mean()
