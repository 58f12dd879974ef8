"""What losses over paired images and texts share: similarities, identity masks, multi-view supervision."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Final, NotRequired, TypedDict

import torch
from torch import Tensor

from model.features import Features, at_least_fp32
from model.objectives.base import LossTerm, ModelSpec, Stats
from utils.errors import UserError

FORMS: Final = ("paper", "released")  # of a loss: as the paper writes it | as the authors' code computes it


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """Returns inner products ``(A, B)`` of rows of `a` ``(A, D)`` and `b` ``(B, D)``, in fp32 or wider."""
    return at_least_fp32(a) @ at_least_fp32(b).T


def same_identity(pids: Tensor) -> Tensor:
    """Returns bool ``(B, B)``, true where two samples have the same identity; `pids` is ``(B,)``."""
    return pids[:, None] == pids[None, :]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of `values` where the bool `mask` of the same shape is true, 0 for an empty mask."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


class PairOptions(TypedDict):
    """The arguments of `PairTerm`, for subclasses that hand them on."""

    spec: ModelSpec
    weight: NotRequired[float]
    views: NotRequired[Sequence[str]]


class PairTerm(LossTerm):
    """A loss of images and their texts, averaged over image views (multi-view supervision, TBPS-CLIP).

    A subclass gives `pair_loss`, and says in `reads_pids` whether that looks at identities.

    Args:
        views: image views; each is paired with "text".
    """

    reads_pids: ClassVar[bool] = True

    def __init__(self, *, spec: ModelSpec, weight: float = 1.0, views: Sequence[str] = ("image",)) -> None:
        super().__init__(spec=spec, weight=weight)
        if isinstance(views, str) or not views:
            raise UserError(f"views: {views!r} given, expected a list of image views such as [image, image_aug]")
        self.views = tuple(views)
        self.needs = frozenset({*self.views, "text"} | ({"pids"} if self.reads_pids else set()))

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        text = features.embedding("text")
        images = [features.embedding(view) for view in self.views]
        compare = partial(self.pair_loss, features=features)
        losses = [features.checkpointed(compare, image, text) for image in images]
        with torch.no_grad():
            stats = self.pair_stats(images[0], text, features)
        return torch.stack(losses).mean(), stats

    def pair_loss(self, image: Tensor, text: Tensor, features: Features) -> Tensor:
        """Returns the scalar loss of one image view and the texts, both ``(B, E)``."""
        raise NotImplementedError

    def pair_stats(self, image: Tensor, text: Tensor, features: Features) -> Stats:
        """Returns the scalars to watch, of the first view; runs without gradient."""
        return {}
