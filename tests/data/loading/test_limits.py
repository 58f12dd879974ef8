from pathlib import Path

import pytest

from data.annotations import DatasetSplits, Record
from data.loading.limits import limit_splits, overfit
from utils.errors import UserError


def splits(persons: int = 6, images: int = 2) -> DatasetSplits:
    """Every split has other persons, with the images of one after those of another and two captions each."""

    def records(first: int) -> list[Record]:
        pids = [first + person for person in range(persons) for _ in range(images)]
        return [Record(pid, n, Path(f"{first}_{n}.jpg"), (f"{n} a", f"{n} b")) for n, pid in enumerate(pids)]

    return DatasetSplits("toy", "en", Path(), records(0), records(10), records(20), validation="own")


@pytest.mark.parametrize(
    ("limit", "kept", "told"),
    [
        (1, 5, "first 1 batch of the validation split (5 of 12 images)"),
        (2, 10, "first 2 batches of the validation split (10 of 12 images)"),
        (0.25, 3, "first 25 % of the validation split (3 of 12 images)"),
        (0.01, 1, "first 1 % of the validation split (1 of 12 images)"),
    ],
)
def test_a_limited_split_keeps_its_first_images_with_all_their_captions(limit: float, kept: int, told: str) -> None:
    whole = splits()
    cut = limit_splits(whole, {"val": limit, "test": None}, batch_size=5)
    assert cut.val == whole.val[:kept]
    assert (cut.train, cut.test) == (whole.train, whole.test)
    assert cut.limits == (told,)


@pytest.mark.parametrize("limit", [None, 0, 1.0, 3, 99])
def test_a_limit_that_leaves_nothing_out_is_none(limit: float | None) -> None:
    assert limit_splits(splits(), {"val": limit, "test": limit}, batch_size=5) == splits()


def test_validation_and_test_are_limited_apart() -> None:
    cut = limit_splits(splits(), {"val": 1, "test": 0.5}, batch_size=5)
    assert (len(cut.val), len(cut.test)) == (5, 6)
    assert [told.split(" (")[0] for told in cut.limits] == [
        "first 1 batch of the validation split",
        "first 50 % of the test split",
    ]


def test_pairs_to_overfit_are_one_of_a_person_and_the_same_everywhere() -> None:
    few = overfit(splits(), 4)
    assert few.train == few.val == few.test
    assert [(record.pid, record.captions) for record in few.train] == [(n, (f"{2 * n} a",)) for n in range(4)]
    assert few.limits == ("trained, validated and tested on the same 4 pairs of train",)
    assert not few.val_is_test


@pytest.mark.parametrize("pairs", [1, 7])
def test_more_pairs_than_persons_are_refused(pairs: int) -> None:
    with pytest.raises(UserError, match=rf"dataset.overfit_pairs: {pairs} given, expected 2 to 6"):
        overfit(splits(), pairs)
