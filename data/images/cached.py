"""A reader of decoded images in a cache file."""

import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.annotations import Record
from data.images.read import BrokenImage, Resize, read_image


class Row(NamedTuple):
    """The row number of an image's pixels, their CRC-32, and the image's `data.images.oddities.ODDITIES`."""

    number: int
    crc: int
    oddities: tuple[str, ...] = ()


class CachedImages:
    """A reader of images in a cache, see `data.images.read.CheckedImages`. Processes share the memory of the file.

    Args:
        file: the file of the rows.
        rows: the row of each image file.
        resize: the size and interpolation of the rows.
        broken: the images that could not be decoded.
    """

    def __init__(self, file: Path, rows: dict[Path, Row], resize: Resize, broken: Sequence[BrokenImage] = ()) -> None:
        self._parts = (file, rows, resize)
        self._rows = rows
        self.broken = list(broken)
        self.oddities = Counter(oddity for row in rows.values() for oddity in row.oddities)
        length = max((row.number for row in rows.values()), default=-1) + 1
        shape = (length, 3, *resize.size)
        self._pixels = np.memmap(file, np.uint8, "r", shape=shape) if rows else np.empty(shape, np.uint8)
        self._is_proven = np.zeros(length, dtype=bool)

    def __call__(self, record: Record) -> Tensor:
        row = self._rows[record.image_path]
        pixels = np.array(self._pixels[row.number])
        if not self._is_proven[row.number]:
            if zlib.crc32(pixels.data) != row.crc:
                return self._decoded_anew(record)
            self._is_proven[row.number] = True
        return torch.from_numpy(pixels)

    def _decoded_anew(self, record: Record) -> Tensor:
        file, _, resize = self._parts
        warnings.warn(
            f"the image cache {file} is damaged; images with damaged rows are decoded each time they are read: delete "
            f"{file.parent}, and the next run makes a new cache",
            stacklevel=2,
        )
        return read_image(record, resize)

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedImages, self._parts  # pickling the memory map would copy the whole file
