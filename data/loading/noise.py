"""Noisy correspondence: captions of training pairs that are moved to other pairs (Qin et al., RDE, CVPR 2024)."""

import hashlib
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from data.annotations import DatasetSplits, Noise, Origin
from data.loading.datasets import captions_of
from data.loading.samplers import Indices
from utils.errors import UserError, library_errors

ADVICE = "fetch or write the file again, see docs/data.md"


def add_noise(dataset: DatasetSplits, rate: float, file: str | Path | None, seed: int) -> DatasetSplits:
    """Returns `dataset` with captions of training pairs moved; images, identities, and other splits stay.

    Args:
        rate: share of the training pairs. Their captions are permuted among themselves at random, as in the published
            protocol, so a few of them stay or go to another pair of the same identity. 0: no noise.
        file: a .npy file of integers ``(P,)``: training pair i gets the caption of pair index[i], in the order of
            `captions_of`. None: `rate` counts.
        seed: decides which pairs are drawn, and the permutation.

    Raises:
        UserError: both options are given, the rate is wrong, or the file is absent, damaged or of another dataset.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise UserError(f"dataset.noise_rate: {rate} given, expected a share of the training pairs, 0 or more, below 1")
    if rate and file is not None:
        raise UserError(f"dataset.noise_rate={rate} and dataset.noise_file={file} exclude each other; give one of them")
    if not rate and file is None:
        return dataset
    pairs = captions_of(dataset.train)
    order = _drawn(len(pairs), rate, seed) if file is None else _read(Path(file), len(pairs))
    texts = [pairs[pair].text for pair in order]
    sources = [dataset.train[pairs[pair].image] for pair in order]
    train, origins, start = [], {}, 0
    for record in dataset.train:
        mine = slice(start, start := start + len(record.captions))
        train.append(record._replace(captions=tuple(texts[mine])))
        origins[record.image_id] = tuple(Origin(source.pid, source.image_id) for source in sources[mine])
    moved = int((order != np.arange(len(pairs))).sum())
    wrong = sum(source.pid != dataset.train[pair.image].pid for source, pair in zip(sources, pairs, strict=True))
    noise = Noise(len(pairs), moved, wrong, hashlib.sha256(order.astype("<i8").tobytes()).hexdigest())
    return replace(dataset, train=train, origins=origins, noise=noise)


def _drawn(pairs: int, rate: float, seed: int) -> Indices:
    """Returns the numbers 0 to `pairs` - 1, of which a share of `rate` is permuted."""
    random, order = Random(f"noise {seed}"), np.arange(pairs)
    count = round(rate * pairs)
    if count < 2:
        raise UserError(f"dataset.noise_rate={rate} of {pairs} training pairs is {count}, so nothing moves; raise it")
    drawn = random.sample(range(pairs), count)
    order[drawn] = random.sample(drawn, count)
    return order


def _read(file: Path, pairs: int) -> Indices:
    if not file.is_file():
        raise UserError(f"dataset.noise_file={file} does not exist; expected a .npy file of {pairs} integers")
    with library_errors(f"dataset.noise_file={file} is not a .npy file of numbers", ADVICE):
        order = np.load(file, mmap_mode="r", allow_pickle=False)  # a header that claims too much allocates nothing
    if not isinstance(order, np.ndarray) or order.dtype.kind not in "iu":
        found = order.dtype if isinstance(order, np.ndarray) else "several arrays"
        raise UserError(f"dataset.noise_file={file} holds {found}, expected integers; {ADVICE}")
    if order.shape != (pairs,):
        raise UserError(
            f"dataset.noise_file={file} has the shape {order.shape}, but this training set has {pairs} pairs, so "
            f"({pairs},) is expected; use the file of this dataset, with the same val_protocol and proportion"
        )
    if not np.array_equal(np.sort(order), np.arange(pairs)):
        raise UserError(
            f"dataset.noise_file={file} holds numbers from {order.min()} to {order.max()}, expected each pair from 0 "
            f"to {pairs - 1} once; {ADVICE}"
        )
    return np.array(order, dtype=np.int64)
