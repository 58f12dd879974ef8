"""Counts of a dataset's identities, images, captions and tokens."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from data.annotations import DatasetSplits
from data.annotations.values import short
from data.images.oddities import ODDITIES
from data.text.tokens import Tokenize
from utils.report.provenance import file_hash


class SplitCounts(NamedTuple):
    """The counts of a split; `cut` is the number of captions with more tokens than the backbone reads."""

    identities: int
    images: int
    captions: int
    cut: int


@dataclass(frozen=True)
class DatasetCounts:
    """The counts of the splits "train", "val" and "test", the most tokens in a caption, and the largest token id."""

    splits: dict[str, SplitCounts]
    most_tokens: int
    max_token_id: int


def count(dataset: DatasetSplits, tokenize: Tokenize) -> DatasetCounts:
    """Returns the counts of the splits; tokenises every caption."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    tokens = {name: tokenize.count(dataset.captions(name)) for name in splits}
    return DatasetCounts(
        splits={
            name: SplitCounts(
                identities=len({record.pid for record in records}),
                images=len(records),
                captions=sum(len(record.captions) for record in records),
                cut=tokens[name].cut,
            )
            for name, records in splits.items()
        },
        most_tokens=max(split.longest for split in tokens.values()),
        max_token_id=max(split.max_id for split in tokens.values()),
    )


def describe(dataset: DatasetSplits, counts: DatasetCounts, max_length: int) -> str:
    """Returns one line on the dataset for the start of a run; the backbone reads `max_length` tokens of a caption."""
    told = [
        f"{name} {split.images:,} images, {split.captions:,} captions, {split.identities:,} identities"
        for name, split in counts.splits.items()
    ]
    cut = sum(split.cut for split in counts.splits.values())
    if cut:
        told.append(f"{cut:,} captions cut to {max_length} tokens (the longest has {counts.most_tokens})")
    told += [f"images {ODDITIES[oddity]}: {number:,}" for oddity, number in dataset.oddities.items()]
    if dataset.oddities:
        told[-1] += f" (`uv run python -m data.doctor {dataset.name}` names them)"
    if dataset.respelled:
        written, on_disk = next(iter(dataset.respelled.items()))
        example = f"{short(on_disk)} for {short(written)}"
        told.append(f"image paths spelled differently on disk: {len(dataset.respelled):,} ({example})")
    for split, skipped in dataset.skipped.items():
        if skipped.images:
            lost = f"images {skipped.images:,}, captions {skipped.captions:,}, identities {skipped.ids:,}"
            told.append(f"left out of {split} because images cannot be read: {lost}")
    name = f"{dataset.name} ({dataset.language})"
    if dataset.val_is_test:
        name += ", validated on test"
    return f"{name}: {'; '.join(told)}"


def provenance(dataset: DatasetSplits, counts: DatasetCounts) -> dict[str, Any]:
    """Returns facts that identify the data: language, name and hash of the annotation file, counts."""
    return {
        "language": dataset.language,
        "file": dataset.file and dataset.file.name,
        "annotations": dataset.file and file_hash(dataset.file),
        "splits": {split: of_split._asdict() for split, of_split in counts.splits.items()},
        **({} if dataset.noise is None else {"noise": dataset.noise._asdict()}),
    }
