"""The dataset doctor's counts: splits, identities, captions, tokens, images and duplicates."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from data.annotations.layouts import SPLITS
from data.annotations.records import Annotation, Annotations
from data.doctor.images import ImageState
from utils.errors import UserError
from utils.images import FAULTS

NO_LIMIT: Final = 1_000_000  # transformers uses a larger number if a tokenizer has no limit

DatasetSummary = dict[str, Any]  # ready for JSON


def split_summary(annotations: Annotations) -> DatasetSummary:
    """Returns, for each split, the numbers of records, images, captions and identities, and the official counts."""
    layout = annotations.layout
    summary: DatasetSummary = {}
    for split in SPLITS:
        images = [image for image in annotations.images if image.split == split]
        official = layout.official[split]._asdict() if split in layout.official else None
        if official and layout.language != next(iter(layout.caption_keys)):
            del official["captions"]
        summary[split] = {
            "records": annotations.per_split[split],
            "images": len(images),
            "captions": sum(len(image.captions) for image in images),
            "ids": len({image.pid for image in images}),
            "official": official,
        }
    return summary


def id_summary(annotations: Annotations) -> DatasetSummary:
    """Returns the range of raw ids, and the numbers of unused ids in it and of identities with one image."""
    images_of = Counter(map(_person, annotations.images))
    numbers = {pid for _, pid in images_of}
    return {
        "first": min(numbers, default=None),
        "last": max(numbers, default=None),
        "distinct": len(images_of),
        "unused": max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0,
        "with_one_image": sum(count == 1 for count in images_of.values()),
        "restart_in_each_split": annotations.ids_restart,
        "names": bool(annotations.names),
    }


def caption_summary(images: Sequence[Annotation]) -> DatasetSummary:
    """Returns the numbers of images by their number of captions, and the longest caption."""
    sizes = Counter(len(image.captions) for image in images)
    captions = ((len(text.split()), text, image.path) for image in images for text in image.captions)
    words, text, path = max(captions, default=(0, None, None))
    return {
        "per_image": {str(size): sizes[size] for size in sorted(sizes)},
        "longest": {"words": words, "image": path, "text": text},
    }


def token_summary(images: Sequence[Annotation], folder: Path, max_length: int | None) -> DatasetSummary:
    """Returns the number of captions cut to `max_length` tokens, including special tokens, and the longest length.

    Raises:
        UserError: if the folder holds no tokenizer, or `max_length` is None and the tokenizer has no limit.
    """
    from data.text.tokens import clean_for, load_tokenizer  # takes seconds to import

    tokenizer = load_tokenizer(folder)
    limit = tokenizer.model_max_length if max_length is None else max_length
    if limit > NO_LIMIT:
        raise UserError(f"The tokenizer in {folder} does not say how many tokens fit; add --max-length.")
    captions = list(clean_for(tokenizer, (caption for image in images for caption in image.captions)))
    lengths = [len(ids) for ids in tokenizer(captions, verbose=False)["input_ids"]] if captions else []
    cut = sum(length > limit for length in lengths)
    return {
        "tokenizer": str(folder),
        "max_length": limit,
        "cut": cut,
        "share": cut / max(len(lengths), 1),
        "longest": max(lengths, default=0),
    }


def image_summary(annotations: Annotations, states: Sequence[ImageState]) -> DatasetSummary:
    """Returns the ranges of widths and heights, counts for each folder of images, all faulty and all odd images."""
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    faulty = []
    for image, state in zip(annotations.images, states, strict=True):
        parent, slash, _ = image.path.partition("/")
        folder = posixpath.join(annotations.below, parent if slash else "").rstrip("/") or "."
        folders[folder]["images"] += 1
        if state.fault:
            folders[folder][state.fault] += 1
            faulty.append(
                {"path": annotations.path_of(image), "folder": folder, "fault": state.fault, "detail": state.detail}
            )
    counts = {
        folder: {"exists": (annotations.folder / folder).is_dir(), "images": found["images"]}
        | {fault: found[fault] for fault in FAULTS}
        for folder, found in sorted(folders.items())
    }
    sizes = [state.size for state in states if state.size]
    return {
        "width": _range(width for width, _ in sizes),
        "height": _range(height for _, height in sizes),
        "folders": counts,
        "faulty": faulty,
        "odd": [
            {"path": annotations.path_of(image), "oddities": list(state.oddities)}
            for image, state in zip(annotations.images, states, strict=True)
            if state.oddities
        ],
    }


def duplicate_summary(annotations: Annotations, states: Sequence[ImageState]) -> DatasetSummary:
    """Returns the number of merged records, and the captions and files that identities share (None: not decoded)."""
    images = annotations.images
    by_caption = [(caption, image) for image in images for caption in set(image.captions)]
    by_digest = [(state.digest, image) for image, state in zip(images, states, strict=True) if state.digest]
    return {
        "merged_records": sum(annotations.per_split.values()) - len(images),
        "captions_under_several_ids": [
            {"caption": caption, "images": paths} for caption, paths in _shared(by_caption).items()
        ],
        "image_files_under_several_ids": list(_shared(by_digest).values()) if by_digest else None,
    }


def _person(image: Annotation) -> tuple[str, int]:
    """Returns a key for a person that is unique even if each split numbers its own persons."""
    return image.split, image.pid


def _range(values: Iterable[int]) -> DatasetSummary | None:
    numbers = sorted(values)
    return {"min": numbers[0], "max": numbers[-1]} if numbers else None


def _shared(pairs: Iterable[tuple[Hashable, Annotation]]) -> dict[Any, list[str]]:
    """Returns the keys that images of several identities share, with the paths of these images."""
    groups: dict[Hashable, list[Annotation]] = defaultdict(list)
    for key, image in pairs:
        groups[key].append(image)
    return {key: [image.path for image in group] for key, group in groups.items() if len(set(map(_person, group))) > 1}
