"""Batches in which each image comes with a caption of each language."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.loading.samplers import EpochSampler
from data.loading.sampling import Sampling
from utils.errors import UserError

PERSONS = 12
IMAGES = 2 * PERSONS


def pairs(own: tuple[str, ...] = ("en", "vi"), images: int = IMAGES) -> tuple[Any, list[str]]:
    """Two images of each person, each with captions in these languages."""
    image = np.repeat(np.arange(images), len(own))
    return SimpleNamespace(pids=image // 2, images=image), list(own) * images


def sampler(
    name: str = "identity", own: tuple[str, ...] = ("en", "vi"), *, share: tuple[int, int] = (0, 1), **changes: Any
) -> EpochSampler:
    settings: dict[str, Any] = {"num_instance": 4, "batch_size": 8, "seed": 1, "with_pids": True, "all_languages": True}
    found, languages = pairs(own)
    stages = np.ones(len(languages), dtype=np.int64)
    rank, world_size = share
    return Sampling(name, **settings | changes).sampler(found, stages, languages, rank=rank, world_size=world_size)


def epoch(drawn: EpochSampler, number: int = 0) -> list[list[int]]:
    drawn.set_epoch(number)
    return [[draw.pair for draw in batch] for batch in drawn]


@pytest.mark.parametrize("name", ["random", "identity"])
def test_each_image_of_a_batch_has_both_languages(name: str) -> None:
    found, languages = pairs()
    batches = epoch(sampler(name))
    assert len(batches) == IMAGES * 2 // 8
    for batch in batches:
        assert len(set(batch)) == 8
        for english, vietnamese in zip(batch[::2], batch[1::2], strict=True):
            assert (languages[english], languages[vietnamese]) == ("en", "vi")
            assert found.images[english] == found.images[vietnamese]
        if name == "identity":
            assert sorted(np.bincount(found.pids[batch], minlength=PERSONS)) == [0] * (PERSONS - 2) + [4, 4]
    assert sorted(pair for batch in batches for pair in batch) == list(range(2 * IMAGES)), "every pair once in an epoch"


def test_a_language_with_more_captions_takes_turns_over_the_epochs() -> None:
    own = ("en", "vi", "vi", "vi")
    seen = [{pair for batch in epoch(sampler("random", own), number) for pair in batch} for number in range(3)]
    english = set(range(0, 4 * IMAGES, 4))
    assert all(english <= pairs_of_epoch and len(pairs_of_epoch) == 2 * IMAGES for pairs_of_epoch in seen)
    assert seen[0] | seen[1] | seen[2] == set(range(4 * IMAGES))


def test_processes_share_out_the_batches_of_one() -> None:
    whole = [draw for batch in sampler() for draw in batch]
    first, second = (list(sampler(share=(rank, 2))) for rank in range(2))
    assert [draw for both in zip(first, second, strict=True) for half in both for draw in half] == whole


def test_an_epoch_can_be_continued_in_its_middle() -> None:
    whole, rest = sampler(), sampler()
    rest.start = 2
    for each in (whole, rest):
        each.set_epoch(3)
    assert list(rest) == list(whole)[2:]


@pytest.mark.parametrize(
    ("own", "changes", "told"),
    [
        (("en",), {}, r"all_languages=true needs captions in several languages, but the training captions have one"),
        (("en", "vi"), {"batch_size": 9, "num_instance": 2}, r"dataset.batch_size=9 counts pairs, .* multiple of 2"),
        (("en", "vi"), {"num_instance": 1}, r"dataset.num_instance=1 counts pairs, .*each of en and vi; choose"),
        (("en", "vi"), {"with_pids": False, "name": "random"}, r"all_languages=true does not go with pseudo_label"),
    ],
)
def test_settings_that_cannot_have_all_languages(own: tuple[str, ...], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        sampler(own=own, **changes)


def test_an_image_without_a_language_is_refused() -> None:
    found, languages = pairs()
    languages[1] = "en"
    settings = Sampling("random", 4, 8, seed=1, with_pids=True, all_languages=True)
    with pytest.raises(UserError, match=r"needs captions in en and vi of every training image, but an image has none"):
        settings.sampler(found, np.ones(len(languages), dtype=np.int64), languages, rank=0, world_size=1)
