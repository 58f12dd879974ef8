"""Outlier mining on hand-made cases in the plane, and against a loop over Fig. 3 of the paper."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.prototypes import Modality, mine_outliers
from utils.errors import UserError


def at(*degrees: float) -> Tensor:
    """Unit vectors at these angles."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def modality(degrees: list[float], labels: list[int]) -> Modality:
    return Modality(at(*degrees), torch.tensor(labels))


def mine(images: Modality, texts: Modality, text_images: list[int]) -> tuple[list[int], list[int]]:
    image_labels, text_labels = mine_outliers(images, texts, torch.tensor(text_images))
    assert image_labels.dtype == text_labels.dtype == torch.int64
    return image_labels.tolist(), text_labels.tolist()


def test_an_image_is_rescued_through_the_caption_nearest_to_its_own() -> None:
    images = modality([0, 10, 90], [-1, 4, 5])
    texts = modality([0, 70, 20], [7, 8, 7])
    assert mine(images, texts, [0, 1, 2]) == ([5, 4, 5], [7, 8, 7])  # caption 2 leads to image 2, which is far


def test_a_text_is_rescued_through_the_image_nearest_to_its_own() -> None:
    images = modality([0, 10, 90], [3, 3, 6])
    texts = modality([0, 80, 45], [-1, 2, 1])
    assert mine(images, texts, [0, 1, 2]) == ([3, 3, 6], [2, 2, 1])


def test_of_several_ways_the_nearest_sample_wins() -> None:
    images = modality([0, 60, 30], [-1, 0, 1])
    texts = modality([0, 90, 1, 91], [0, 1, 0, 1])
    assert mine(images, texts, [0, 0, 1, 2])[0] == [1, 0, 1]
    images = modality([0, 1], [0, 0])
    texts = modality([0, 50, 20, -10], [-1, 4, 5, -1])
    assert mine(images, texts, [0, 1, 1, 1])[1] == [5, 4, 5, -1]  # not the nearer outlier at -10 degrees


def test_without_outliers_nothing_changes() -> None:
    images, texts = modality([0, 90], [0, 1]), modality([0, 90, 80], [0, 1, 1])
    assert mine(images, texts, [0, 1, 1]) == ([0, 1], [0, 1, 1])


@pytest.mark.parametrize(
    ("image_labels", "text_labels"),
    [
        pytest.param([-1, 0], [-1, 0], id="its-caption-is-an-outlier-too"),
        pytest.param([-1, -1], [0, 0], id="the-other-image-is-an-outlier-too"),
        pytest.param([-1, -1], [-1, -1], id="all-are-outliers"),
        pytest.param([-1, 0], [0, -1], id="no-other-caption-in-a-cluster"),
    ],
)
def test_an_image_without_a_way_stays_an_outlier(image_labels: list[int], text_labels: list[int]) -> None:
    images, texts = modality([0, 5], image_labels), modality([0, 5], text_labels)
    assert mine(images, texts, [0, 1])[0][0] == -1


def test_a_chain_of_outliers_ends_after_one_link() -> None:
    """Image 1 is rescued by image 2; image 0, which leads to image 1 only, is not."""
    images = modality([0, 10, 20], [-1, -1, 3])
    texts = modality([0, 10, 19], [0, 0, 0])
    assert mine(images, texts, [0, 1, 2])[0] == [-1, 3, 3]


def test_directions_do_not_feed_each_other() -> None:
    """The only caption of outlier image 0 is an outlier that mining cannot use, though image 1's rescue is possible."""
    images, texts = modality([0, 10, 20], [-1, 3, 4]), modality([0, 10, 20], [-1, 5, -1])
    image_labels, text_labels = mine(images, texts, [0, 1, 2])
    assert image_labels == [-1, 3, 4]
    assert text_labels == [-1, 5, 5]


def test_an_image_with_five_captions_is_not_led_back_to_itself() -> None:
    images = modality([0, 40, 90], [-1, 1, 2])
    texts = modality([0, 1, 2, 3, 4, 45, 95], [9, 9, -1, 9, 9, 1, 2])
    assert mine(images, texts, [0, 0, 0, 0, 0, 1, 2])[0] == [1, 1, 2]


def test_images_without_captions_and_captions_of_one_image() -> None:
    images, texts = modality([0, 5, 90], [-1, -1, 0]), modality([0, 1], [0, -1])
    assert mine(images, texts, [2, 2]) == ([-1, -1, 0], [0, -1])


def slow(own: Modality, other: Modality, partners: list[list[int]], back: list[list[int]]) -> list[int]:
    """Fig. 3 for one outlier after another."""
    labels = own.labels.tolist()
    for o, label in enumerate(own.labels.tolist()):
        if label >= 0:
            continue
        candidates = set()
        for b in (b for b in partners[o] if other.labels[b] >= 0):
            around = [c for c in range(len(other.labels)) if other.labels[c] >= 0 and c not in partners[o]]
            if around:
                c = max(around, key=lambda c: (float(other.features[b] @ other.features[c]), -c))
                candidates |= {d for d in back[c] if own.labels[d] >= 0}
        if candidates:
            labels[o] = int(own.labels[max(candidates, key=lambda d: (float(own.features[o] @ own.features[d]), -d))])
    return labels


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_equals_the_loop_on_random_pairs(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    text_images = torch.randint(200, (500,), generator=draw)

    def random(count: int) -> Modality:
        labels = torch.randint(40, (count,), generator=draw)
        labels[torch.rand(count, generator=draw) < share] = -1
        return Modality(F.normalize(torch.randn(count, 8, generator=draw), dim=1), labels)

    images, texts = random(200), random(500)
    captions = [[t for t in range(500) if text_images[t] == i] for i in range(200)]
    image_of = [[int(i)] for i in text_images]
    image_labels, text_labels = mine_outliers(images, texts, text_images)
    assert image_labels.tolist() == slow(images, texts, captions, image_of)
    assert text_labels.tolist() == slow(texts, images, image_of, captions)
    assert (image_labels < 0).sum() < (images.labels < 0).sum()
    assert (text_labels < 0).sum() < (texts.labels < 0).sum()


def test_the_labels_given_stay_as_they_are() -> None:
    images, texts = modality([0, 10], [-1, 4]), modality([0, 10], [0, 0])
    mine(images, texts, [0, 1])
    assert images.labels.tolist() == [-1, 4]


def test_what_does_not_fit_together_is_refused() -> None:
    images, texts = modality([0, 10], [-1, 4]), modality([0, 10], [0, 0])
    for text_images in ([0], [0, 2], [-1, 0]):
        with pytest.raises(UserError, match="text_images must name one of 2 images for each of 2 texts"):
            mine(images, texts, text_images)
    with pytest.raises(UserError, match="image labels"):
        mine(Modality(images.features, torch.tensor([0])), texts, [0, 1])
