"""The pseudo labels of a training set: clustering, the stage in which each pair is trained, and their history."""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from model.labeling import EncodedPairs, Labeling
from model.prototypes.mining import Modality, mine_outliers
from model.prototypes.statistics import cluster_statistics
from utils.errors import UserError

if TYPE_CHECKING:
    from model.objectives.base import Objective

Cluster = Callable[[Tensor, int], Tensor]
OPLM = Literal["none", "one_stage", "two_stage"]
OPLMS: Final = get_args(OPLM)


class Labels(NamedTuple):
    """The pseudo labels of images ``(Ni,)`` and texts ``(Nt,)``, int64 on the CPU, -1 for outliers."""

    images: Tensor
    texts: Tensor


class ClusteringResult(NamedTuple):
    """The labels of a clustering, before and after outlier mining."""

    before: Labels
    after: Labels


class Labeler(Labeling):
    """The pseudo labels of the training pairs, and the clustering that finds them. Checkpoints contain the labels.

    A pair is clustered if its image and its caption are both in a cluster. Outlier pseudo label mining, OPLM (CPCL,
    section 3.4), has three forms. "none": outliers stay outliers, and only clustered pairs are trained. "one_stage":
    outliers are mined first. "two_stage": as "one_stage", and pairs that are still not clustered are trained last.

    Args:
        name: name of the option `pseudo_label`, for messages.
        images, texts: (features ``(N, D)``, seed) -> labels ``(N,)``, clusters from 0 without gaps, outliers -1.
        oplm: "none", "one_stage" or "two_stage".
        every_n_epochs: number of epochs from one clustering to the next.

    Attributes:
        image_labels, text_labels: the labels of the image and of the caption of each pair. They are empty before the
            first `take`. Shape: ``(P,)``.
        history: for every `take`, of images and of texts: number of clusters, of outliers before mining and of outliers
            after mining. Shape: ``(R, 2, 3)``.
    """

    provides = frozenset({"image_labels", "text_labels"})
    reads_pids = False
    image_labels: Tensor
    text_labels: Tensor
    history: Tensor
    resizable = frozenset({"image_labels", "text_labels", "history"})

    def __init__(
        self, *, name: str, images: Cluster, texts: Cluster, oplm: OPLM = "two_stage", every_n_epochs: int = 1
    ) -> None:
        super().__init__(name=name, every_n_epochs=every_n_epochs)
        if oplm not in OPLMS:
            raise UserError(f"pseudo_label.oplm: {oplm!r} given, expected one of {', '.join(OPLMS)}")
        self.oplm = oplm
        self._cluster_images, self._cluster_texts = images, texts
        self.register_buffer("image_labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("text_labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("history", torch.zeros(0, 2, 3, dtype=torch.int64))

    def find(self, pairs: EncodedPairs, objective: "Objective", seed: int) -> ClusteringResult:
        """Returns new labels of the training set. Identities are not read.

        Warns if the labels teach nothing: no pair is clustered, or there is only one cluster.
        """
        images, texts, text_images = pairs.images, pairs.texts, pairs.text_images
        before = after = Labels(self._cluster_images(images, seed), self._cluster_texts(texts, seed))
        if self.oplm != "none":
            mined = mine_outliers(Modality(images, before.images), Modality(texts, before.texts), text_images)
            after = Labels(*mined)
        if self.oplm == "two_stage" and not _clustered(after, text_images).any():
            warnings.warn(
                f"pseudo_label={self.name} finds no clustered pair: this epoch trains only pairs with an outlier",
                stacklevel=2,
            )
        elif max(labels.max() for labels in after) == 0:
            warnings.warn(f"pseudo_label={self.name} finds only one cluster, which separates nothing", stacklevel=2)
        return ClusteringResult(before, after)

    def take(self, found: ClusteringResult, pairs: EncodedPairs, objective: "Objective", seed: int) -> None:
        """Keeps `found` as the labels of the pairs, and resets the prototypes of `objective`.

        Raises:
            UserError: no pair is left to train.
        """
        text_images = pairs.text_images
        if self.oplm != "two_stage" and not _clustered(found.after, text_images).any():
            raise UserError(
                f"pseudo_label={self.name} with oplm={self.oplm} leaves no pair to train: each of {len(text_images)} "
                "has an outlier; raise eps, lower min_samples, or set pseudo_label.oplm=two_stage"
            )
        images, texts = map(Modality, (pairs.images, pairs.texts), found.after)
        objective.reset_prototypes(images, texts, seed)
        device = self.history.device
        self.image_labels = found.after.images[text_images].to(device)
        self.text_labels = found.after.texts.to(device)
        counts = [
            [int(after.max()) + 1, int((before < 0).sum()), int((after < 0).sum())]
            for before, after in zip(*found, strict=True)
        ]
        self.history = torch.cat([self.history, torch.tensor([counts], device=device)])

    def describe(self) -> str:
        """Returns one line that describes the latest labels."""
        parts = [
            f"{clusters:,} clusters of {name} ({before:,} outliers, {after:,} after mining)"
            for name, (clusters, before, after) in zip(("images", "captions"), self.history[-1].tolist(), strict=True)
        ]
        clustered = int((self.stages == 1).sum())
        return f"labels  {', '.join(parts)}; {clustered:,} of {len(self.stages):,} pairs clustered"

    def statistics(self, found: ClusteringResult, pairs: EncodedPairs) -> Mapping[str, float]:
        """Returns `cluster_statistics` as "images/before/outliers", "texts/after/purity", ..."""
        ids = Labels(pairs.image_pids.cpu(), pairs.text_pids.cpu())
        return {
            f"{modality}/{stage}/{name}": value
            for stage, labels in zip(found._fields, found, strict=True)
            for modality in Labels._fields
            for name, value in cluster_statistics(getattr(labels, modality), getattr(ids, modality)).items()
        }

    def announce(self) -> str:
        return f"labels  identities are not read; labels from {self.name}, OPLM {self.oplm}"

    @property
    def stages(self) -> Tensor:
        """The stage of each pair: 1 if it is clustered, else 2 (trained last) or 0 (not trained). Shape: ``(P,)``."""
        clustered = (self.image_labels >= 0) & (self.text_labels >= 0)
        return torch.where(clustered, 1, 2 if self.oplm == "two_stage" else 0)


def _clustered(labels: Labels, text_images: Tensor) -> Tensor:
    """Returns bool ``(Nt,)``, true for the pairs whose image and text are both in a cluster."""
    return (labels.images[text_images] >= 0) & (labels.texts >= 0)
