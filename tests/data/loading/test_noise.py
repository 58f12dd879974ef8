from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.annotations import DatasetSplits, Noise, Record
from data.loading.datasets import captions_of
from data.loading.limits import overfit
from data.loading.noise import add_noise
from utils.errors import UserError


def splits(persons: int = 50, captions: int = 2) -> DatasetSplits:
    """Two images of each person, each with captions that name the image."""

    def records(first: int) -> list[Record]:
        numbers = range(first, first + 2 * persons)
        return [Record(n // 2, n, Path(f"{n}.jpg"), tuple(f"{n} {c}" for c in range(captions))) for n in numbers]

    return DatasetSplits("toy", "en", Path(), records(0), records(1000), records(2000), validation="own")


def texts(dataset: DatasetSplits) -> list[str]:
    return dataset.captions("train")


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_captions_of_a_share_are_permuted_among_themselves(rate: float) -> None:
    clean = splits()
    noisy = add_noise(clean, rate, None, seed=3)
    before, after = texts(clean), texts(noisy)
    moved = [pair for pair in range(200) if before[pair] != after[pair]]
    assert noisy.noise is not None
    assert rate * 200 - 8 < len(moved) == noisy.noise.moved <= rate * 200
    assert sorted(before) == sorted(after)
    assert sorted(before[pair] for pair in moved) == sorted(after[pair] for pair in moved)
    keep = ("pid", "image_id", "image_path")
    assert [[getattr(record, key) for key in keep] for record in noisy.train] == [
        [getattr(record, key) for key in keep] for record in clean.train
    ]
    assert [len(record.captions) for record in noisy.train] == [2] * 100
    assert (noisy.val, noisy.test) == (clean.val, clean.test)


def test_the_seed_decides_the_noise() -> None:
    first, again, other = (texts(add_noise(splits(), 0.5, None, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_pair_is_true_if_its_caption_was_written_for_the_same_identity(tmp_path: Path) -> None:
    # Pairs 0 to 3 are of one person, two captions of each image; 4 to 7 of the next.
    order = np.array([2, 1, 0, 4, 3, 5, 6, 7])
    np.save(tmp_path / "index.npy", order)
    noisy = add_noise(splits(2), 0, tmp_path / "index.npy", seed=0)
    assert texts(noisy) == ["1 0", "0 1", "0 0", "2 0", "1 1", "2 1", "3 0", "3 1"]
    assert noisy.true_pairs() == [True, True, True, False, False, True, True, True]
    assert noisy.noise is not None
    assert noisy.noise[:3] == (8, 4, 2)
    assert str(noisy.noise) == "4 of 8 training captions moved, 2 of them to another identity"
    assert [origin.image_id for origin in noisy.training_origins()] == [1, 0, 0, 2, 1, 2, 3, 3]
    assert splits(2).true_pairs() is None


def test_a_file_and_the_share_that_it_holds_give_the_same_noise(tmp_path: Path) -> None:
    drawn = add_noise(splits(), 0.3, None, seed=5)
    place = {caption: pair for pair, caption in enumerate(texts(splits()))}
    np.save(tmp_path / "index.npy", np.array([place[caption] for caption in texts(drawn)], dtype=np.int32))
    assert add_noise(splits(), 0.0, tmp_path / "index.npy", seed=9) == drawn


def test_without_noise_the_dataset_is_as_it_was() -> None:
    clean = splits()
    assert add_noise(clean, 0.0, None, seed=1) is clean


def test_what_is_left_out_later_keeps_the_truth_of_the_others() -> None:
    noisy = add_noise(splits(), 0.5, None, seed=1)
    everything = iter(noisy.true_pairs() or [])
    by_image = {record.image_id: [next(everything), next(everything)] for record in noisy.train}
    fewer = replace(noisy, train=noisy.train[1::3])
    assert fewer.true_pairs() == [true for record in fewer.train for true in by_image[record.image_id]]
    assert len(captions_of(fewer.train)) == len(fewer.true_pairs() or [])


def test_pairs_to_overfit_are_noisy_only_in_training() -> None:
    few = overfit(splits(), 10)
    noisy = add_noise(few, 0.9, None, seed=1)
    assert (noisy.val, noisy.test) == (few.val, few.test)
    assert noisy.true_pairs() == [noisy.train[n].captions == few.train[n].captions for n in range(10)]
    assert not all(noisy.true_pairs() or [])


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, None, True, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: Any) -> None:
    with pytest.raises(UserError, match=r"dataset.noise_rate: .* given, expected a share"):
        add_noise(splits(), rate, None, seed=0)


def test_a_rate_that_moves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"noise_rate=0.004 of 200 training pairs is 1, so nothing moves"):
        add_noise(splits(), 0.004, None, seed=0)


def test_both_options_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"noise_rate=0.2 and dataset.noise_file=a.npy exclude each other"):
        add_noise(splits(), 0.2, "a.npy", seed=0)


class NotInert:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "does not exist; expected a .npy file of 8 integers", id="absent"),
        pytest.param(b"", "is not a .npy file of numbers", id="empty"),
        pytest.param(b"\x93NUMPY\x01\x00v\x00garbage", "is not a .npy file of numbers", id="damaged"),
        pytest.param(np.array([NotInert()]), "is not a .npy file of numbers", id="pickled"),
        pytest.param(np.arange(8.0), "holds float64, expected integers", id="floats"),
        pytest.param(np.ones(8, dtype=bool), "holds bool, expected integers", id="booleans"),
        pytest.param(np.arange(7), r"has the shape \(7,\), but this training set has 8 pairs", id="short"),
        pytest.param(np.arange(8)[None], r"has the shape \(1, 8\), but", id="nested"),
        pytest.param(np.arange(8) + 1, "numbers from 1 to 8, expected each pair from 0 to 7 once", id="range"),
        pytest.param(np.arange(8) - 1, "numbers from -1 to 6, expected", id="negative"),
        pytest.param(np.zeros(8, dtype=int), "numbers from 0 to 0, expected", id="repeated"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: Any, told: str) -> None:
    file = tmp_path / "index.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(UserError, match=told) as refused:
        add_noise(splits(2), 0.0, file, seed=0)
    assert "index.npy" in str(refused.value)


def test_an_archive_and_a_claim_of_terabytes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "several.npz", np.arange(8), np.arange(8))
    with pytest.raises(UserError, match="holds several arrays, expected integers"):
        add_noise(splits(2), 0.0, tmp_path / "several.npz", seed=0)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    (tmp_path / "claims.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match=r"is not a .npy file of numbers"):
        add_noise(splits(2), 0.0, tmp_path / "claims.npy", seed=0)


def test_noise_is_counted_in_words() -> None:
    assert str(Noise(68126, 13624, 13620, "")).startswith("13,624 of 68,126 training captions moved, 13,620 of them")
