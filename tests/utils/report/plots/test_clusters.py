"""Pictures of outliers over the epochs and of persons on a plane: drawn, saved, the same again, and their edges."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from utils.report.plots.clusters import outliers_picture, tsne_picture
from utils.report.plots.pictures import RIGHT, WRONG

HISTORY = torch.tensor([[[40, 30, 10], [50, 20, 5]], [[60, 12, 6], [70, 9, 3]], [[65, 8, 2], [75, 4, 0]]])


def pixels(picture: Image.Image, color: str) -> int:
    """How many pixels of `picture` have exactly this colour, `#rrggbb`."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.asarray(picture) == wanted).all(axis=2).sum())


def persons(count: int, images: int = 3, captions: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(count, 16, generator=draw)
    image_pids, text_pids = (torch.arange(count).repeat_interleave(n) + 70 for n in (images, captions))
    features = [
        normalize(centers[p - 70] + 0.2 * torch.randn(len(p), 16, generator=draw)) for p in (image_pids, text_pids)
    ]
    return features[0], features[1], image_pids, text_pids


def test_outliers_before_and_after_mining_are_drawn_and_saved(tmp_path: Path) -> None:
    picture = outliers_picture(HISTORY, 2, tmp_path / "outliers.png")
    assert pixels(picture, RIGHT) > 50
    assert pixels(picture, WRONG) > 50
    with Image.open(tmp_path / "outliers.png") as saved:
        assert saved.size == picture.size


def test_one_clustering_is_enough() -> None:
    assert pixels(outliers_picture(HISTORY[:1], 1), RIGHT) > 10


def test_tsne_shows_ten_of_many_persons_and_is_the_same_again(tmp_path: Path) -> None:
    picture = tsne_picture(*persons(25), "title", tmp_path / "tsne.png")
    again = tsne_picture(*persons(25), "title")
    assert np.array_equal(np.asarray(picture), np.asarray(again))
    assert (tmp_path / "tsne.png").is_file()


def test_persons_are_chosen_by_their_identity() -> None:
    chosen = np.asarray(tsne_picture(*persons(25), "title", persons=[71, 73, 999]))
    images, texts, image_pids, text_pids = persons(25)
    own = [torch.isin(pids, torch.tensor([71, 73])) for pids in (image_pids, text_pids)]
    alone = tsne_picture(images[own[0]], texts[own[1]], image_pids[own[0]], text_pids[own[1]], "title")
    assert np.array_equal(chosen, np.asarray(alone))


@pytest.mark.parametrize(("count", "images", "captions"), [(1, 1, 1), (3, 1, 2), (10, 2, 2)])
def test_few_persons(count: int, images: int, captions: int) -> None:
    assert tsne_picture(*persons(count, images, captions), "title").size[0] > 100


def test_a_collapsed_model_is_drawn_too() -> None:
    images, texts, *pids = persons(5)
    assert tsne_picture(torch.ones_like(images), torch.ones_like(texts), *pids, "title").size[0] > 100
