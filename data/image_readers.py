"""Who reads the images of a split: their files, or a cache."""

from functools import partial
from pathlib import Path

from data.annotations import DatasetSplits
from data.image_cache import ImageCache
from data.images import ImageReader, read_image


class ImageReaders:
    """What reads the images of each split of a dataset: their files, or a cache.

    Args:
        dataset: the splits.
        size: (height, width).
        cache_dir: of all caches; None for none.
    """

    def __init__(self, dataset: DatasetSplits, size: tuple[int, int], cache_dir: Path | None) -> None:
        self._dataset = dataset
        self._size = size
        self._cache = None if cache_dir is None else ImageCache(cache_dir, dataset.folder, size)
        self._readers: dict[str, ImageReader] = {}

    def __call__(self, split: str) -> ImageReader:
        """Returns the reader of "train", "val" or "test"; what the cache lacks of it is decoded before.

        Raises:
            ImageError: an image that must be decoded is missing, empty or broken.
            UserError: the cache cannot be written.
        """
        if self._cache is None:
            return partial(read_image, size=self._size)
        if split not in self._readers:
            self._readers[split] = self._cache.reader(getattr(self._dataset, split))
        return self._readers[split]
