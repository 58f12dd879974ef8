"""Reading of an annotation file into checked annotations, and a list of all its problems."""

import posixpath
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data.annotations.columns import settled
from data.annotations.entries import Annotation, Problem, Reading
from data.annotations.files import open_annotations
from data.annotations.identities import NO_IDENTITIES, check_leaks, cut_for_test, identified, merge, restarts
from data.annotations.layouts import SPLITS, Layout
from data.annotations.paths import ImagePaths, nearest_name
from data.annotations.values import short
from utils.errors import UserError, nearest


@dataclass(frozen=True)
class Annotations:
    """The content of one annotation file.

    layout: the dataset's layout, with the columns that the file has.
    root: the folder of all datasets. folder: the dataset's folder.
    below: the folder of the images below `folder`, or an empty text.
    format: the format of the file, in words.
    records: number of records in the file. per_split: number of valid records in each split.
    images: one annotation per image, in file order; records of the same image are merged.
    problems: everything that must be corrected before training, in order of discovery.
    ids_restart: whether the identities of every split are numbered from 0.
    respelled: path in the file -> path on disk, if the spelling differs.
    names: number of an identity -> its name; empty if identities are numbers.
    other_languages: number of records in languages that are not read.
    split_seed: the seed that cuts the test split if the file has no splits.
    """

    name: str
    layout: Layout
    root: Path
    folder: Path
    below: str
    file: Path
    format: str
    records: int
    per_split: dict[str, int]
    images: list[Annotation]
    problems: list[Problem]
    ids_restart: bool
    respelled: dict[str, str]
    names: Mapping[int, str]
    other_languages: int
    split_seed: int

    @property
    def doctor(self) -> str:
        """The command that examines the dataset; it names the folder of all datasets if the dataset is in there."""
        is_elsewhere = None not in (self.layout.given_file, self.layout.given_images)
        root = [] if is_elsewhere or self.root == Path() else ["--root", str(self.root)]
        return f"uv run python -m data.doctor {shlex.join([self.name, *self.layout.overrides, *root])}"

    def image_file(self, image: Annotation) -> Path:
        """Returns the file of an image."""
        return self.folder / self.path_of(image)

    def path_of(self, image: Annotation) -> str:
        """Returns the path of an image below `folder`, with slashes."""
        return posixpath.join(self.below, image.path)

    def sentence(self, problem: Problem) -> str:
        """Returns `problem` as a clause that names file, record, key and expectation."""
        key = "" if problem.key is None else f", key {short(problem.key)}"
        where = f"{self.file}, record {problem.record} of {self.records}{key}"
        return f"{where}: {problem.found}; expected {problem.expected}"

    def notes(self) -> list[str]:
        """Returns texts on what was made of a file whose columns the dataset's YAML does not fix."""
        layout = self.layout
        told = []
        if layout.find or layout.given_columns or layout.given_file:
            captions = ", ".join(map(short, layout.caption_keys[layout.language]))
            columns = [f"path {short(layout.path_key)}, captions {captions}"]
            named = {"identity": layout.id_key, "split": layout.split_key, "language": layout.language_key}
            columns += [f"{role} {short(key)}" for role, key in named.items() if key is not None]
            told.append(f"{self.file.name} is read as {self.format}: {', '.join(columns)}")
        if self.names:
            told.append(f"identities are {len(self.names):,} names, numbered in sorted order")
        if layout.id_key is None:
            told.append(NO_IDENTITIES)
        if layout.split_key is None:
            told.append(f"no splits: the test split is cut by identity (split_seed={self.split_seed})")
        if self.other_languages:
            told.append(f"records in other languages are left out: {self.other_languages:,}")
        return told


def load_annotations(name: str, layout: Layout, root: str | Path, split_seed: int = 0) -> Annotations:
    """Returns the annotations of dataset `name` below `root`; bad records are listed as problems.

    Args:
        name, layout, root: the dataset, its layout, and the folder that holds its folder.
        split_seed: decides the identities of the test split if the file has no splits.

    Raises:
        UserError: if the folder or the file is missing, a column is missing, or the file cannot be read as a whole.
    """
    folder = layout.given_images or Path(root) / layout.folder
    below = "" if layout.given_images or layout.images in (None, ".") else layout.images or ""
    file = _find_file(name, layout, folder)
    opened = open_annotations(file)
    layout = settled(layout, opened, file)
    problems: list[Problem] = []
    paths = ImagePaths(folder / below)
    reading = Reading(layout, opened, paths, problems)
    sound = list(reading)
    sound, names = identified(sound, layout, problems, is_text=opened.is_text)
    if layout.split_key is None:
        tested = cut_for_test({annotation.pid for annotation in sound}, split_seed) if sound else set()
        sound = [annotation._replace(split="test") if annotation.pid in tested else annotation for annotation in sound]
    images = merge(sound, problems, layout, names)
    ids_restart = layout.ids_may_restart and restarts(images)
    if not ids_restart and layout.id_key is not None and layout.split_key is not None:
        check_leaks(images, problems, layout.id_key, names)
    counts = Counter(annotation.split for annotation in sound)
    return Annotations(
        name,
        _with_language(layout, images, file),
        Path(root),
        folder,
        below,
        file,
        opened.format,
        reading.count,
        {split: counts[split] for split in SPLITS},
        images,
        problems,
        ids_restart,
        paths.respelled,
        names,
        reading.skipped,
        split_seed,
    )


def _find_file(name: str, layout: Layout, folder: Path) -> Path:
    if layout.images is None and None in (layout.given_file, layout.given_images):
        raise UserError(f"dataset={name} needs dataset.annotations=FILE and dataset.images=FOLDER; see docs/data.md")
    if layout.given_images is not None and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist" + nearest_name(folder)
        raise UserError(f"dataset.images: {folder} {what}; name the folder that the paths in the file start from")
    if (given := layout.given_file) is not None:
        if not given.is_file():
            what = "is a folder, not a file" if given.is_dir() else "does not exist" + nearest_name(given)
            raise UserError(f"dataset.annotations: {given} {what}; name the annotation file")
        return given
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(
            f"Dataset {name} was expected in the folder {folder.absolute()}, which does not exist: "
            f"{layout.source}, or point dataset_root_dir to the folder that holds {layout.folder}/."
            + nearest(layout.folder, siblings, cutoff=0.8)
        )
    for file in layout.files:
        if (folder / file).is_file():
            return folder / file
        if (folder / file).exists():
            raise UserError(f"{folder / file} is not a file; put the annotation file there.")
    others = ", ".join(sorted(path.name for path in folder.glob("*.json")))
    raise UserError(
        f"Dataset {name} needs the annotation file {folder.absolute() / layout.files[0]}, which is missing"
        + (f" (the folder has {others} instead, which cannot replace it)" if others else "")
        + f": {layout.source}."
    )


def _with_language(layout: Layout, images: list[Annotation], file: Path) -> Layout:
    """Returns `layout` with the language of the captions, if a column says it.

    Raises:
        UserError: if no record has the language that an option asks for.
    """
    if layout.language_key is None:
        return layout
    found = sorted({language for image in images for language in image.languages})
    asked = layout.asked_language
    if asked is not None and not found:
        raise UserError(f"dataset.language={asked}: no valid record in {file} has it in column {layout.language_key!r}")
    language = found[0] if len(found) == 1 else "mixed"
    return replace(layout, language=language, caption_keys={language: layout.caption_keys[layout.language]})
