"""Counts of a dataset's identities, images, captions and tokens."""

from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from data.annotations import DatasetSplits
from data.annotations.values import short
from data.images.oddities import ODDITIES
from data.text.tokens import TokenCounts, Tokenize
from utils.report.provenance import file_hash


class SplitCounts(NamedTuple):
    """The counts of a split; `cut` is the number of captions with more tokens than the backbone reads."""

    identities: int
    images: int
    captions: int
    cut: int


class FurtherCounts(NamedTuple):
    """The number of further captions at a key, and of those with more tokens than the backbone reads."""

    captions: int
    cut: int


@dataclass(frozen=True)
class DatasetCounts:
    """The counts of the splits "train", "val" and "test", and of the further captions of train by their key.

    most_tokens, max_token_id: the most tokens in a caption, and the largest token id, over all of them.
    """

    splits: dict[str, SplitCounts]
    most_tokens: int
    max_token_id: int
    further: dict[str, FurtherCounts]


def count(dataset: DatasetSplits, tokenize: Tokenize) -> DatasetCounts:
    """Returns the counts of the splits; tokenises every caption. A training split in shards is empty here."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    nothing = TokenCounts(cut=0, longest=0, max_id=0)
    tokens = {name: tokenize.count(dataset.captions(name)) if records else nothing for name, records in splits.items()}
    further = {key: list(chain.from_iterable(column.values())) for key, column in dataset.further.items()}
    further_tokens = {key: tokenize.count(captions) for key, captions in further.items()}
    counted = [*tokens.values(), *further_tokens.values()]
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
        most_tokens=max(part.longest for part in counted),
        max_token_id=max(part.max_id for part in counted),
        further={key: FurtherCounts(len(captions), further_tokens[key].cut) for key, captions in further.items()},
    )


def describe(dataset: DatasetSplits, counts: DatasetCounts, max_length: int) -> str:
    """Returns one line on the dataset for the start of a run; the backbone reads `max_length` tokens of a caption."""
    told = [
        f"{name} {split.images:,} images, {split.captions:,} captions, {split.identities:,} identities"
        for name, split in counts.splits.items()
    ]
    told += [f"further captions {key}: {further.captions:,}" for key, further in counts.further.items()]
    cut = sum(own.cut for own in counts.splits.values()) + sum(own.cut for own in counts.further.values())
    if cut:
        told.append(f"{cut:,} captions cut to {max_length} tokens (the longest has {counts.most_tokens})")
    told += [f"images {ODDITIES[oddity]}: {number:,}" for oddity, number in dataset.oddities.items()]
    if dataset.oddities:
        told[-1] += f" (`{dataset.doctor}` names them)"
    if dataset.respelled:
        written, on_disk = next(iter(dataset.respelled.items()))
        example = f"{short(on_disk)} for {short(written)}"
        told.append(f"image paths spelled differently on disk: {len(dataset.respelled):,} ({example})")
    for split, skipped in dataset.skipped.items():
        if skipped.images:
            lost = f"images {skipped.images:,}, captions {skipped.captions:,}, identities {skipped.ids:,}"
            told.append(f"left out of {split} because images cannot be read: {lost}")
    told += dataset.notes
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
        **({"further": {key: own._asdict() for key, own in counts.further.items()}} if counts.further else {}),
        **({"read_as": list(dataset.notes)} if dataset.notes else {}),
        **({} if dataset.noise is None else {"noise": dataset.noise._asdict()}),
    }
