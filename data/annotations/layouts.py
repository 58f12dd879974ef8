"""The layout of each dataset: its folder, the keys of its annotation file, and its official size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from omegaconf import OmegaConf

from utils.continuing.composed import described
from utils.errors import UserError, library_errors, nearest

IMAGE_FOLDER: Final = "imgs"
SPLITS: Final = ("train", "val", "test")
SPLIT_NAMES: Final = {"train": "train", "val": "val", "validate": "val", "test": "test"}


class Size(NamedTuple):
    """Counts of one split."""

    images: int
    captions: int
    ids: int


@dataclass(frozen=True)
class Layout:
    """The layout of one dataset on disk, from `description` in its YAML.

    folder: its folder under the root; images are in `IMAGE_FOLDER` below it.
    files: accepted names of the annotation file, the usual one first.
    path_key: key of an image's path below `IMAGE_FOLDER`.
    caption_keys: language -> keys of its captions, in order.
    source: how to get the dataset, in words.
    images_from: collections that the images come from.
    official: split -> size of the split as distributed, with captions in the first language.
    ids_may_restart: whether each split may number its identities from 0.
    language: the language that is read.
    further: keys of further captions that training records must have.
    """

    folder: str
    files: tuple[str, ...]
    path_key: str
    caption_keys: Mapping[str, tuple[str, ...]]
    source: str
    images_from: tuple[str, ...]
    official: Mapping[str, Size]
    ids_may_restart: bool
    language: str
    further: tuple[str, ...] = ()

    def language_of(self, key: str) -> str:
        """Returns the language of the captions at `key`; the key itself if no language has only that key."""
        return next((language for language, keys in self.caption_keys.items() if keys == (key,)), key)


def layout_of(name: str, language: str | None = None, further: Sequence[str] = ()) -> Layout:
    """Returns the layout of dataset `name` for `language` (None: the language in its YAML) and `further` captions.

    Raises:
        UserError: if there is no such dataset or language (names the nearest), its YAML does not describe a dataset,
            or a key in `further` is read already.
    """
    dataset = described("dataset", name)
    with library_errors(f"dataset/{name}.yaml does not describe a dataset", "see the comments in dataset/_base.yaml"):
        options: Any = OmegaConf.to_container(dataset.description, resolve=True, throw_on_missing=True)
        keys = {own: _names(names) for own, names in options.pop("caption_keys").items()}
        official = {split: Size(**counts) for split, counts in (options.pop("official") or {}).items()}
        options["images_from"] = tuple(options["images_from"])
        files, language = _names(options.pop("files")), language or dataset.language or next(iter(keys))
        options |= {"files": files, "caption_keys": keys, "official": official}
        layout = Layout(**options, language=language, further=tuple(further))
    if layout.language not in keys:
        known, hint = " or ".join(map(repr, keys)), nearest(layout.language, list(keys))
        raise UserError(f"dataset.language={layout.language} is not in dataset {name}; expected {known}.{hint}")
    for key in further:
        if key in ("id", "split", layout.path_key, *keys[layout.language]):
            raise UserError(f"dataset.further_captions.{key}: {name} reads {key} already; name another key of a record")
    return layout


def _names(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
