"""Reading of a dataset into train, validation and test records; no identity is in two of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from data.annotations.entries import Annotation
from data.annotations.identities import shuffled
from data.annotations.layouts import Size, layout_of
from data.annotations.records import Annotations, load_annotations
from utils.errors import UserError, nearest

VAL_PROTOCOLS: Final = ("held_out", "paper")
HELD_OUT_SHARE: Final = 0.1
HELD_OUT_LIMIT: Final = 400


class Record(NamedTuple):
    """One image: its raw identity and its index in the annotation file, its path, and its captions (one or more)."""

    pid: int
    image_id: int
    image_path: Path
    captions: tuple[str, ...]


class Origin(NamedTuple):
    """The image for which a caption was written: its identity and its `Record.image_id`."""

    pid: int
    image_id: int


class Noise(NamedTuple):
    """The captions of training pairs that were moved to other pairs, see `data.loading.noise`.

    pairs: number of training pairs. moved: pairs with the caption of another pair. wrong: pairs with the caption of
    another identity. sha256: hash of the order of the captions.
    """

    pairs: int
    moved: int
    wrong: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.moved:,} of {self.pairs:,} training captions moved, {self.wrong:,} of them to another identity"


@dataclass(frozen=True)
class DatasetSplits:
    """The records of a dataset, in file order.

    validation: the source of `val`: the file's own split, identities held out of train, or the test split
        ("test": checkpoints are then chosen on test, which every table must say).
    respelled: path in the file -> path on disk, if the spelling differs.
    skipped: split -> counts left out of it because images cannot be read; set after the images are checked.
    oddities: the number of images with each of `data.images.oddities.ODDITIES`.
    limits: texts on limits for a quick test (`data.loading.limits`), which every table must also say.
    file: the annotation file.
    noise: counts of the moved training captions; None: none were moved.
    origins: image_id of a training record -> the origin of each of its captions; empty without noise.
    further: key of further captions -> image_id of a training record -> its further captions.
    languages: image_id -> the language of each of its captions; empty if all have the same.
    names: identity -> its name in the file; empty if identities are numbers there.
    pairs_only: whether the file has no identities, so that each image counts as a person.
    notes: texts on what was made of the file, for the first screen and the record.
    doctor: the command that examines the dataset.
    """

    name: str
    language: str
    folder: Path
    train: list[Record]
    val: list[Record]
    test: list[Record]
    validation: Literal["own", "held_out", "test"]
    respelled: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, Size] = field(default_factory=dict)
    oddities: Mapping[str, int] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    file: Path | None = None
    noise: Noise | None = None
    origins: Mapping[int, tuple[Origin, ...]] = field(default_factory=dict)
    further: Mapping[str, Mapping[int, tuple[str, ...]]] = field(default_factory=dict)
    languages: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    pairs_only: bool = False
    notes: tuple[str, ...] = ()
    doctor: str = ""

    @property
    def val_is_test(self) -> bool:
        """Whether validation uses the test split, as many papers do."""
        return self.validation == "test"

    def captions(self, split: str) -> list[str]:
        """Returns the captions of a split, image by image, in the order of evaluation."""
        return [caption for record in getattr(self, split) for caption in record.captions]

    def caption_languages(self, split: str) -> list[str]:
        """Returns the language of each caption of a split, image by image; empty if all have the same.

        Captions that noise has moved count as of the language of their place.
        """
        records = getattr(self, split) if self.languages else ()
        return [self.languages[record.image_id][place] for record in records for place in range(len(record.captions))]

    def training_origins(self) -> list[Origin]:
        """Returns the origin of the caption of each training pair, image by image."""
        return [
            self.origins[record.image_id][place] if self.origins else Origin(record.pid, record.image_id)
            for record in self.train
            for place in range(len(record.captions))
        ]

    def true_pairs(self) -> list[bool] | None:
        """Returns whether each training pair's caption was written for the pair's identity; None without noise.

        A caption that was moved to another pair of the same identity is true.
        """
        if self.noise is None:
            return None
        pids = (record.pid for record in self.train for _ in record.captions)
        return [pid == origin.pid for pid, origin in zip(pids, self.training_origins(), strict=True)]

    def image_paths(self, split: str) -> list[Path]:
        """Returns the image files of a split, in the order of evaluation."""
        return [record.image_path for record in getattr(self, split)]


def size_of(records: Sequence[Record]) -> Size:
    """Returns the numbers of images, captions and identities in a split."""
    captions = sum(len(record.captions) for record in records)
    return Size(len(records), captions, len(_identities(records)))


def read_dataset(
    name: str,
    root: str | Path,
    *,
    language: str | None = None,
    val_protocol: str = "held_out",
    val_identities: int | None = None,
    proportion: float = 1.0,
    fold_id: int = 0,
    seed: int = 0,
    further: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> DatasetSplits:
    """Returns the records of dataset `name`, one per image; white space in captions is collapsed.

    It does not open image files. Every path is inside the dataset folder and spelled as on disk.

    Args:
        name: name of its YAML in config/dataset/, or in the folder of --config-dir.
        root: the folder that holds ``CUHK-PEDES/``, ``VN3K/``, ...
        language: language of the captions (``vi``, ``en``, ``mixed``); the dataset's own by default.
        val_protocol: the validation set if the file has no validation split: ``held_out`` identities of train, or
            the test split, as in the literature (``paper``).
        val_identities: number of identities to hold out; by default a tenth of train, at most 400.
        proportion: share of the train identities to keep, after holding out; val and test stay whole.
        fold_id: number of the share, from the ``1 / proportion`` disjoint shares.
        seed: decides which identities are held out, the fold of each identity, and the test split if the file has none.
        further: keys of further captions that training records must have, see `DatasetSplits.further`.
        given: the options that name its files and columns, as in `layout_of`; None: those in its YAML.

    Raises:
        UserError: if the dataset is absent, or an argument or a record is wrong; the message says where.
    """
    annotations = load_annotations(name, layout_of(name, language, further, given), root, seed)
    if annotations.problems:
        raise UserError(
            f"{annotations.sentence(annotations.problems[0])}: correct the file "
            f"(problems: {len(annotations.problems)}; `{annotations.doctor}` names each)."
        )
    return cut(
        annotations,
        val_protocol=val_protocol,
        val_identities=val_identities,
        proportion=proportion,
        fold_id=fold_id,
        seed=seed,
    )


def cut(
    annotations: Annotations,
    *,
    val_protocol: str = "held_out",
    val_identities: int | None = None,
    proportion: float = 1.0,
    fold_id: int = 0,
    seed: int = 0,
) -> DatasetSplits:
    """Returns the records of `annotations`, split as in `read_dataset`."""
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for image_id, image in enumerate(annotations.images):
        splits[image.split].append(Record(image.pid, image_id, annotations.image_file(image), image.captions))
    train, val, test = splits["train"], splits["val"], splits["test"]
    for split in ("train", "test"):
        if not splits[split]:
            if annotations.layout.split_key is None:
                raise UserError(f"{annotations.file} has too few identities to cut them into train, val and test.")
            raise UserError(
                f"{annotations.file} has no record of split {split!r}; fetch the complete file, or let "
                "dataset.columns.split=none cut the test split by identity."
            )
    if val_protocol not in VAL_PROTOCOLS:
        raise UserError(
            f"dataset.val_protocol={val_protocol} is unknown; expected one of {', '.join(VAL_PROTOCOLS)}."
            + nearest(val_protocol, VAL_PROTOCOLS)
        )
    validation: Literal["own", "held_out", "test"] = "own"
    if not val and val_protocol == "paper":
        validation, val = "test", test
    elif not val:
        validation = "held_out"
        held_out = _held_out(_identities(train), val_identities, seed, annotations.file)
        val = [record for record in train if record.pid in held_out]
        train = [record for record in train if record.pid not in held_out]
    if val_identities is not None and validation != "held_out":
        used = "the test split (dataset.val_protocol=paper)" if validation == "test" else "its own split"
        raise UserError(
            f"dataset.val_identities={val_identities} has no effect because {annotations.name} validates "
            f"on {used}; drop it."
        )
    kept = _fold(_identities(train), proportion, fold_id, seed)
    train = [record for record in train if record.pid in kept]
    images = annotations.images
    return DatasetSplits(
        annotations.name,
        annotations.layout.language,
        annotations.folder,
        train,
        val,
        test,
        validation,
        annotations.respelled,
        file=annotations.file,
        further={
            key: {record.image_id: images[record.image_id].further[place] for record in train}
            for place, key in enumerate(annotations.layout.further)
        },
        languages=_languages(images),
        names=annotations.names,
        pairs_only=annotations.layout.id_key is None,
        notes=tuple(annotations.notes()),
        doctor=annotations.doctor,
    )


def _languages(images: Sequence[Annotation]) -> dict[int, tuple[str, ...]]:
    """Returns number of an image -> the languages of its captions; empty if all captions have the same language."""
    languages = {number: image.languages for number, image in enumerate(images) if image.languages}
    return languages if len(set(chain.from_iterable(languages.values()))) > 1 else {}


def _identities(records: Iterable[Record]) -> set[int]:
    return {record.pid for record in records}


def _held_out(identities: set[int], count: int | None, seed: int, file: Path) -> set[int]:
    if count is None:
        count = max(1, min(HELD_OUT_LIMIT, round(HELD_OUT_SHARE * len(identities))))
    if not 0 < count < len(identities):
        raise UserError(
            f"dataset.val_identities={count} cannot be held out of the {len(identities)} train identities of "
            f"{file}, which has no validation split; expected 1 to {len(identities) - 1}, or set "
            "dataset.val_protocol=paper to validate on test."
        )
    return set(shuffled(identities, "held out", seed)[:count])


def _fold(identities: set[int], proportion: float, fold_id: int, seed: int) -> set[int]:
    """Returns share `fold_id` of the identities; the shares are disjoint and as equal as possible."""
    if not 0 < proportion <= 1:
        raise UserError(f"dataset.proportion={proportion} is not a share; expected above 0 and at most 1.")
    folds = int(1 / proportion + 1e-6)
    if not 0 <= fold_id < folds:
        raise UserError(
            f"dataset.fold_id={fold_id} does not exist at dataset.proportion={proportion}; "
            f"expected 0{f' to {folds - 1}' if folds > 1 else ''}."
        )
    start, end = (round(fold * proportion * len(identities)) for fold in (fold_id, fold_id + 1))
    if start == end:
        raise UserError(
            f"dataset.proportion={proportion} of {len(identities)} train identities leaves none in fold "
            f"{fold_id}; raise the proportion."
        )
    return set(shuffled(identities, "fold", seed)[start:end])
