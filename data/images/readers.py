"""Opening of a dataset's images: each is checked once; unreadable images are an error, or are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from data.annotations import DatasetSplits, Record, size_of
from data.annotations.identities import shown
from data.annotations.layouts import Size
from data.annotations.paths import nearest_name
from data.images.cache import ImageCache
from data.images.read import BrokenImage, CheckedImages, FileImages, Resize
from utils.errors import UserError, check_choice

ON_BROKEN: Final = ("error", "skip")
LIST_FILE: Final = "broken_images.txt"
NAMED_AT_MOST: Final = 10
LONGEST_MESSAGE: Final = 500  # characters


class OpenedImages(NamedTuple):
    """A dataset without its unreadable images, and the reader of its images."""

    dataset: DatasetSplits
    read: CheckedImages


def open_images(
    dataset: DatasetSplits,
    splits: Sequence[str],
    resize: Resize,
    *,
    cache_dir: Path | None,
    on_broken: str,
    list_in: Path | None,
) -> OpenedImages:
    """Checks every image of `splits`, decodes those that the cache lacks, and returns the dataset with a reader.

    Args:
        dataset: the dataset.
        splits: the splits whose images are read.
        resize: resizes the images.
        cache_dir: the folder of all caches; None: images are read from their files.
        on_broken: what to do with unreadable images: raise an ``error``, or ``skip`` them with their captions.
        list_in: folder for `LIST_FILE`, which names all unreadable images; None: the file is not written.

    Raises:
        UserError: if images cannot be read and `on_broken` is ``error``.
        UserError: if a split has no readable image, or the cache cannot be written.
    """
    check_choice("dataset.on_broken", on_broken, ON_BROKEN)
    unique = {record.image_path: record for split in splits for record in getattr(dataset, split)}
    records = list(unique.values())
    cache = None if cache_dir is None else ImageCache(cache_dir, dataset.folder, resize)
    images: CheckedImages = FileImages(records, resize) if cache is None else cache.reader(records)
    if images.broken:
        listed = None if list_in is None else _write_list(list_in, images.broken, dataset.names)
        if on_broken == "error":
            raise UserError(_refusal(dataset, images.broken, listed))
    return OpenedImages(_readable(dataset, splits, images), images)


def _write_list(folder: Path, broken: Sequence[BrokenImage], names: Mapping[int, str]) -> Path:
    """Writes a file with a line for each of the images into `folder` and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{record.image_path}\tidentity {shown(record.pid, names)}\t{why}\n" for record, why in broken)
    (folder / LIST_FILE).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return folder / LIST_FILE


def _readable(dataset: DatasetSplits, splits: Sequence[str], images: CheckedImages) -> DatasetSplits:
    """Returns `dataset` without the unreadable images of `splits`."""
    broken = {bad.record.image_path for bad in images.broken}
    kept: dict[str, Any] = {}
    skipped: dict[str, Size] = {}
    for split in splits:
        records: list[Record] = getattr(dataset, split)
        kept[split] = [record for record in records if record.image_path not in broken]
        skipped[split] = _less(size_of(records), size_of(kept[split]))
        if not kept[split]:
            raise UserError(
                f"dataset.on_broken=skip leaves nothing of split {split!r}: none of its {len(records):,} images in "
                f"{dataset.folder} can be read; restore them"
            )
    return replace(dataset, **kept, skipped=skipped, oddities=images.oddities)


def _less(before: Size, after: Size) -> Size:
    return Size(*(more - fewer for more, fewer in zip(before, after, strict=True)))


def _refusal(dataset: DatasetSplits, broken: Sequence[BrokenImage], listed: Path | None) -> str:
    """Returns a sentence on unreadable images; it names up to ten of them, as many as fit."""
    (record, why), root = broken[0], dataset.folder
    if len(broken) == 1:
        return (
            f"{record.image_path} (identity {shown(record.pid, dataset.names)}) cannot be read "
            f"({why}{nearest_name(record.image_path)}): "
            "restore it, or go on without it with dataset.on_broken=skip"
        )
    start = f"{len(broken):,} images in {root} cannot be read"
    start += "" if listed is None else f", see {listed}"
    end = ": restore them, or go on without them with dataset.on_broken=skip"
    named: list[str] = []
    for record, why in broken[:NAMED_AT_MOST]:
        path = record.image_path
        text = f"{path.relative_to(root).as_posix()} ({why}{nearest_name(path)})"
        if named and len(", ".join([start, *named, text, end])) > LONGEST_MESSAGE - len(" (...)"):
            break
        named.append(text)
    if len(named) < len(broken):
        named.append("...")
    return f"{start} ({', '.join(named)}){end}"
