"""Outlier pseudo label mining (CPCL, Fig. 3): an outlier gets the label of a cluster through its pairs."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from model.prototypes.neighbors import pair_cosines, unit_features
from utils.errors import UserError
from utils.ranking.retrieval import full_precision, score_chunks

ROWS = 128

Indices = NDArray[np.int64]


class Modality(NamedTuple):
    """The samples of one modality: features ``(N, D)`` and labels ``(N,)``, -1 for outliers."""

    features: Tensor
    labels: Tensor


def mine_outliers(images: Modality, texts: Modality, text_images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the labels of images ``(Ni,)`` and texts ``(Nt,)``, int64 on the CPU, with the mined labels filled in.

    For an outlier image, B is the set of its clustered captions. C contains, for each b in B, the clustered caption
    nearest to b. D is the set of clustered images paired with C. The outlier takes the label of the nearest image in D;
    if D is empty, it stays an outlier. Outlier texts are mined in the same way, with images and texts exchanged.
    Decisions: C leaves out captions of the outlier itself, which would lead back to it. Both directions read only the
    labels of the clustering, not mined labels, so the order of samples and directions has no influence. Ties go to the
    lower index.

    Source: CPCL, Fig. 3 and eqs. (15)-(18), refined learning stage.

    Args:
        text_images: the image of each text. Shape: ``(Nt,)``, from 0 to Ni - 1. An image may have any number of
            captions.

    Raises:
        UserError: a feature is not finite, or labels or pairs do not fit the features.
    """
    images, texts = _checked(images, "image"), _checked(texts, "text")
    count = len(texts.labels)
    if text_images.shape != (count,) or not bool(((text_images >= 0) & (text_images < len(images.labels))).all()):
        raise UserError(f"text_images must name one of {len(images.labels)} images for each of {count} texts")
    pairs = csr_matrix(
        (np.ones(count, dtype=np.int32), text_images.cpu().numpy().astype(np.int64), np.arange(count + 1)),
        shape=(count, len(images.labels)),
    )
    return _mine(images, texts, pairs.T.tocsr()), _mine(texts, images, pairs)


def _mine(own: Modality, other: Modality, pairs: csr_matrix) -> Tensor:
    """Returns the labels ``(N,)`` of `own`, mined through its `pairs` ``(N, M)`` with the other modality."""
    labels = own.labels.clone()
    outliers = np.flatnonzero(labels < 0)
    edge, b = _partners(pairs, outliers, other.labels)
    o = outliers[edge]
    c = _nearest_of_others(other, o, b, pairs)
    o, c = o[c >= 0], c[c >= 0]
    edge, d = _partners(pairs.T.tocsr(), c, own.labels)
    o = o[edge]
    closeness = pair_cosines(own.features, torch.from_numpy(o), torch.from_numpy(d)).cpu().numpy()
    order = np.lexsort((d, -closeness, o))
    mined, first = np.unique(o[order], return_index=True)
    labels[mined] = own.labels[d[order][first]]
    return labels


def _partners(pairs: csr_matrix, rows: Indices, labels: Tensor) -> tuple[Indices, Indices]:
    """Returns (position in `rows`, partner), both ``(E,)``, for all clustered partners of `rows` ``(R,)``."""
    found = pairs[rows].tocoo()
    clustered = labels.numpy()[found.col] >= 0
    return found.row[clustered].astype(np.int64), found.col[clustered].astype(np.int64)


@full_precision()
def _nearest_of_others(other: Modality, outliers: Indices, b: Indices, pairs: csr_matrix) -> Indices:
    """Returns for each of `b` the nearest clustered sample ``(E,)`` that is not paired with its outlier, or -1."""
    nearest = np.full(len(b), -1)
    if len(b) == 0:
        return nearest
    clustered = np.flatnonzero(other.labels >= 0)
    of_the_outlier = pairs[:, clustered]
    rows = _index(b, other.features)
    gallery = other.features[_index(clustered, other.features)]
    columns = torch.arange(len(gallery), device=gallery.device)
    start = 0
    for some, scores in score_chunks(other.features, rows, gallery, columns, ROWS):
        part = slice(start, start + len(some))
        own = of_the_outlier[outliers[part]].tocoo()
        scores[_index(own.row, scores), _index(own.col, scores)] = -torch.inf
        best = scores.max(dim=1)
        found = best.values.isfinite().cpu().numpy()
        nearest[part][found] = clustered[best.indices.cpu().numpy()[found]]
        start = part.stop
    return nearest


def _index(positions: NDArray[np.integer], like: Tensor) -> Tensor:
    return torch.from_numpy(positions).long().to(like.device)


def _checked(samples: Modality, name: str) -> Modality:
    if samples.labels.shape != samples.features.shape[:1]:
        raise UserError(
            f"{name} labels {tuple(samples.labels.shape)} must be one per feature {tuple(samples.features.shape)}"
        )
    return Modality(unit_features(samples.features), samples.labels.cpu())
