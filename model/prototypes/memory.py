"""Prototypical memory (CPCL, section 3.2): one unit-norm prototype for every cluster of one modality."""

from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.prototypes.clustering import cluster_means
from model.resizable import Resizable
from utils.errors import UserError

Start = Literal["mean", "member"]
STARTS: Final = get_args(Start)


class PrototypeMemory(Resizable):
    """The prototypes ``(C, D)`` of C clusters. There are none before the first `reset_prototypes`.

    `state_dict` contains them. Loading a checkpoint sets C to the number of clusters in the checkpoint.

    Args:
        dim: D.
        momentum: m, the share of a prototype that an update keeps. With 1, prototypes never change.
        start: initial value of a prototype: "mean" of its cluster, or "member", one random sample of it.
    """

    prototypes: Tensor
    resizable = frozenset({"prototypes"})

    def __init__(self, dim: int, *, momentum: float = 0.9, start: Start = "mean") -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum: {momentum} given, expected a number from 0 to 1; 1 never updates")
        if start not in STARTS:
            raise UserError(f"start: {start!r} given, expected one of {', '.join(STARTS)}")
        self.momentum = momentum
        self.start = start
        self.register_buffer("prototypes", torch.zeros(0, dim))

    @torch.no_grad()
    def reset_prototypes(self, features: Tensor, labels: Tensor, seed: int) -> None:
        """Replaces the prototypes by those of a new clustering.

        Source: CPCL, eq. (1) and table 7.

        Args:
            features: Shape: ``(N, D)``, unit norm.
            labels: clusters numbered from 0 without gaps, -1 for outliers, which are ignored. Shape: ``(N,)``.
            seed: seed of the random members.
        """
        if self.start == "mean":
            drawn = cluster_means(features, labels, int(labels.max()) + 1)[0]
        else:
            drawn = features[_random_members(labels.cpu(), seed).to(features.device)]
        self.prototypes = F.normalize(drawn.to(self.prototypes), dim=1)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Moves the prototypes of a batch towards its features: c <- m c + (1 - m) f, then unit norm.

        Samples of one cluster are applied one after another in the order of the batch. The norm is restored once, at
        the end. Outliers are ignored. Source: CPCL, eq. (2).

        Args:
            features: embeddings of the batch of all processes. Shape: ``(B, D)``, unit norm.
            labels: Shape: ``(B,)``, -1 for outliers.
        """
        if len(self.prototypes) == 0:
            return
        features = features.to(self.prototypes)
        same = (labels[:, None] == labels).to(features)
        later = same.triu(diagonal=1).sum(dim=1)  # number of later samples of the same cluster
        last = (labels >= 0) & (later == 0)
        shares = same * (1 - self.momentum) * self.momentum**later
        kept = self.momentum ** same.sum(dim=1, keepdim=True)
        clusters = labels.clamp_min(0)
        before = self.prototypes[clusters]
        after = F.normalize(kept * before + shares @ features, dim=1)
        # All rows are added, most of them as zero, because selecting rows would make the host wait for the device.
        self.prototypes.index_add_(0, clusters, (after - before).masked_fill(~last[:, None], 0))


def _random_members(labels: Tensor, seed: int) -> Tensor:
    """Returns the index ``(C,)`` of one random sample of each cluster."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = shuffled[labels[shuffled] >= 0]
    _, first = np.unique(labels[shuffled].numpy(), return_index=True)
    return shuffled[torch.from_numpy(first)]
