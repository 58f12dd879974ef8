"""The test captions of a run, with their best images, for the page's list of queries."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.images import BadImageError, read_bytes, read_rgb
from utils.ranking.positives import Ranks
from utils.ranking.retrieval import Retrieval, full_precision
from utils.report.page.render import thumbnail_uri

SHOWN = 5  # images of a caption
THUMBNAILS = 600  # at most, so that a page stays below 5 MB
HEIGHT = 112  # of a thumbnail, in pixels


def query_table(retrieval: Retrieval, ranks: Ranks) -> dict[str, Any]:
    """Returns the data of the list: texts, ranks and best images of all captions, and thumbnails of some images.

    Thumbnails are of the images of the worst and the best captions first, until there are `THUMBNAILS`.
    """
    best, scores = (found.cpu() for found in retrieval.best_images(slice(None), SHOWN))
    right = _best_right(retrieval)
    shown = np.column_stack([best.numpy(), right])
    return {
        "captions": list(retrieval.captions),
        "pids": retrieval.text_pids.tolist(),
        "first": ranks.first.tolist(),
        "right": right.tolist(),
        "counts": ranks.counts.tolist(),
        "best": best.tolist(),
        "scores": [[round(score, 3) for score in row] for row in scores.tolist()],
        "image_pids": retrieval.image_pids.tolist(),
        "images": _names(retrieval.paths),
        "thumbnails": _thumbnails(retrieval.paths, shown[_worst_and_best_first(ranks.first)]),
    }


@full_precision()
def _best_right(retrieval: Retrieval) -> NDArray[Any]:
    """Returns the index of the best image of the right person for each caption. Shape: ``(Q,)``."""
    found = torch.zeros(len(retrieval.texts), dtype=torch.int64)
    for pid in retrieval.text_pids.unique():
        own, images = ((pids == pid).nonzero()[:, 0] for pids in (retrieval.text_pids, retrieval.image_pids))
        scores = retrieval.texts[own].float() @ retrieval.images[images].float().T
        found[own.cpu()] = images[scores.argmax(dim=1)].cpu()
    return found.numpy()


def _worst_and_best_first(first: NDArray[Any]) -> NDArray[Any]:
    """Returns the queries in the order worst, best, second worst, second best, ..."""
    worst = np.argsort(-first, kind="stable")
    both = np.column_stack([worst, worst[::-1]]).ravel()
    return both[np.sort(np.unique(both, return_index=True)[1])]


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the image files below their common folder."""
    folder = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(folder).as_posix() for path in paths]


def _thumbnails(paths: Sequence[Path], wanted: NDArray[Any]) -> Mapping[int, str]:
    """Returns index -> thumbnail of the first `THUMBNAILS` different images in `wanted` that can be read."""
    made: dict[int, str] = {}
    for index in dict.fromkeys(wanted.ravel().tolist()):
        if len(made) == THUMBNAILS:
            break
        if (uri := _thumbnail(paths[index])) is not None:
            made[index] = uri
    return made


def _thumbnail(path: Path) -> str | None:
    try:
        return thumbnail_uri(read_rgb(read_bytes(path)), HEIGHT)
    except BadImageError:  # removed since it was ranked: the page shows its name
        return None
