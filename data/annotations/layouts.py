"""The layout of each dataset: its folder, the keys of its annotation file, and its official size."""

import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from omegaconf import DictConfig, OmegaConf

from data.annotations.columns import given_columns
from utils.continuing.composed import as_text, described
from utils.errors import UserError, library_errors, nearest

SPLITS: Final = ("train", "val", "test")
GIVEN: Final = ("annotations", "images", "columns")  # options of a dataset that replace parts of its description
SPLIT_NAMES: Final = {"train": "train", "val": "val", "validate": "val", "test": "test"}


class Size(NamedTuple):
    """Counts of one split."""

    images: int
    captions: int
    ids: int


@dataclass(frozen=True)
class Layout:
    """The layout of one dataset on disk, from `description` in its YAML and the options that replace parts of it.

    folder: its folder under the root.
    files: accepted names of the annotation file, the usual one first.
    images: folder of the images below `folder`; ``.``: `folder` itself; None: only the user knows it.
    path_key: key of an image's path below the folder of the images.
    caption_keys: language -> keys of its captions, in order.
    source: how to get the dataset, in words.
    images_from: collections that the images come from.
    official: split -> size of the split as distributed, with captions in the first language.
    ids_may_restart: whether each split may number its identities from 0.
    ids_may_be_names: whether an identity may be a text.
    id_key, split_key, language_key: keys of a record's identity, its split and the language of its captions; None: the
        file has none. Then each image counts as a person, or the test split is cut by identity.
    find: column -> its accepted names, for columns whose name the file decides; see `data.annotations.columns`.
    language: the language that is read. asked_language: the language that an option gives, if any.
    further: keys of further captions that training records must have.
    given_file, given_images: the annotation file and the folder of the images, if options give them.
    given_columns: columns whose names options give. overrides: these options, as on a command line.
    """

    folder: str
    files: tuple[str, ...]
    images: str | None
    path_key: str
    caption_keys: Mapping[str, tuple[str, ...]]
    source: str
    images_from: tuple[str, ...]
    official: Mapping[str, Size]
    ids_may_restart: bool
    ids_may_be_names: bool
    id_key: str | None
    split_key: str | None
    language_key: str | None
    find: Mapping[str, tuple[str, ...]]
    language: str
    asked_language: str | None = None
    further: tuple[str, ...] = ()
    given_file: Path | None = None
    given_images: Path | None = None
    given_columns: frozenset[str] = frozenset()
    overrides: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a record that are read, without further captions."""
        named = (self.path_key, *self.caption_keys[self.language], self.id_key, self.split_key, self.language_key)
        return tuple(key for key in named if key is not None)

    def language_of(self, key: str) -> str:
        """Returns the language of the captions at `key`: of the read language's parts, the one that has this key.

        It is the read language if that has no parts, and the key itself if it is in no part.
        """
        read = set(self.caption_keys[self.language])
        parts = {language: keys for language, keys in self.caption_keys.items() if set(keys) < read}
        return next((language for language, keys in parts.items() if key in keys), key) if parts else self.language


def layout_of(
    name: str, language: str | None = None, further: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Layout:
    """Returns the layout of dataset `name` for `language` (None: the language in its YAML) and `further` captions.

    Args:
        given: values of the options `GIVEN`; None: those in its YAML.

    Raises:
        UserError: if there is no such dataset or language (names the nearest), its YAML does not describe a dataset,
            an option is wrong, or a key in `further` is read already.
    """
    dataset = described("dataset", name)
    given = given_options(dataset) if given is None else given
    asked = language or dataset.language
    with library_errors(f"dataset/{name}.yaml does not describe a dataset", "see the comments in dataset/_base.yaml"):
        options: Any = OmegaConf.to_container(dataset.description, resolve=True, throw_on_missing=True)
        keys = {own: _names(names) for own, names in options.pop("caption_keys").items()}
        official = {split: Size(**counts) for split, counts in (options.pop("official") or {}).items()}
        options["images_from"] = tuple(options["images_from"])
        options["find"] = {role: _names(names) for role, names in (options["find"] or {}).items()}
        options |= {"files": _names(options.pop("files")), "caption_keys": keys, "official": official}
        layout = Layout(**options, language=next(iter(keys)), asked_language=asked, further=tuple(further))
    layout = given_columns(given["columns"], layout)
    if layout.language not in layout.caption_keys:
        known, hint = " or ".join(map(repr, keys)), nearest(layout.language, list(keys))
        raise UserError(f"dataset.language={layout.language} is not in dataset {name}; expected {known}.{hint}")
    for key in further:
        if key in layout.keys:
            raise UserError(f"dataset.further_captions.{key}: {name} reads {key} already; name another key of a record")
    file, images = given["annotations"], given["images"]
    return replace(
        layout,
        given_file=None if file is None else Path(str(file)).expanduser(),
        overrides=tuple(_overrides(given)),
        given_images=None if images is None else Path(os.path.abspath(Path(str(images)).expanduser())),
    )


def given_options(dataset: DictConfig) -> dict[str, Any]:
    """Returns the values of the options of `dataset` that name its files and columns."""
    chosen = OmegaConf.masked_copy(dataset, list(GIVEN))
    options: Any = OmegaConf.to_container(chosen, resolve=True)
    return options


def _overrides(given: Mapping[str, Any]) -> Iterator[str]:
    """Yields ``dataset.KEY=VALUE`` for each of `GIVEN` that has a value."""
    values = {key: given[key] for key in GIVEN[:2]} | {f"columns.{role}": at for role, at in given["columns"].items()}
    return (f"dataset.{key}={as_text(value)}" for key, value in values.items() if value is not None)


def _names(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
