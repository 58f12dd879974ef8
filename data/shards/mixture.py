"""The pairs of one or more folders of shards as one training set."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from data.annotations.identities import NO_IDENTITIES
from data.batch import INDEX, PIDS
from data.images.read import Resize
from data.loading.datasets import Sample, with_images
from data.loading.samplers import Draw
from data.shards.layout import ShardIndex, check_extra
from data.shards.order import WINDOW
from data.shards.reader import ShardPair, ShardReader
from data.shards.storage import ShardFolder
from data.views.build import Views
from utils.errors import UserError, check_positive
from utils.images import BadImageError, read_rgb

ONLY: Final = "shards"  # name of the only source
MOST_SOURCES: Final = 255
MOST_DRAWS: Final = 2**32  # of an epoch
_PASSWORD: Final = re.compile(r"://[^@]*:[^@]*@")
_QUERY: Final = {  # keys after "?" of an address that are no secrets
    *("region", "scheme", "endpoint_override", "retry_limit_seconds", "project_id", "enable_tls"),
    *("blob_storage_authority", "dfs_storage_authority", "credential_kind", "tenant_id", "client_id"),
}


@dataclass(frozen=True)
class Source:
    """A folder of shards: its name in the config, its weight, its index, and the reader of its pairs."""

    name: str
    weight: float
    folder: ShardFolder
    index: ShardIndex
    read: ShardReader


class ShardMixture:
    """The pairs of several sources, numbered from 0, source after source; identities of two sources are different.

    Args:
        sources: the sources.
        epoch_pairs: draws in an epoch; None: as many as there are pairs.

    Raises:
        UserError: `epoch_pairs` is not a number of pairs, or a source gets no draw.
    """

    def __init__(self, sources: list[Source], epoch_pairs: int | None) -> None:
        self.sources = sources
        self._first_pair = np.cumsum([0, *(source.index.pairs for source in sources)])
        self._first_pid = np.cumsum([0, *(source.index.identities or source.index.images for source in sources)])
        if epoch_pairs is not None:
            check_positive("dataset.epoch_pairs", epoch_pairs)
            if epoch_pairs is True or epoch_pairs > MOST_DRAWS:
                raise UserError(f"dataset.epoch_pairs: {epoch_pairs} given, expected a number up to {MOST_DRAWS}")
        self.shares = shares([source.weight for source in sources], epoch_pairs or len(self))
        for source, share in zip(sources, self.shares, strict=True):
            if not share:
                raise UserError(
                    f"dataset.shards.{source.name}: its weight {source.weight:g} gives it none of the "
                    f"{sum(self.shares):,} draws of an epoch; raise the weight or dataset.epoch_pairs"
                )

    def __len__(self) -> int:
        return int(self._first_pair[-1])

    def __getitem__(self, pair: int) -> ShardPair:
        """Returns a pair, with the number of its image in its source, and an identity that no other source has."""
        number = int(np.searchsorted(self._first_pair, pair, side="right")) - 1
        found = self.sources[number].read[pair - int(self._first_pair[number])]
        return found._replace(pid=found.pid + int(self._first_pid[number]))

    @property
    def sizes(self) -> list[list[int]]:
        """For each source, the pairs of each of its shards."""
        return [[shard.pairs for shard in source.index.shards] for source in self.sources]

    @property
    def images(self) -> int:
        """The number of images of all sources."""
        return sum(source.index.images for source in self.sources)

    @property
    def identities(self) -> int:
        """The number of identities of all sources. An image of a source without identities counts as one."""
        return int(self._first_pid[-1])

    def notes(self) -> list[str]:
        """Returns a text on each source, for the first screen."""
        return [
            f"trains on the shards {source.folder.address}: {source.index.images:,} images, "
            f"{source.index.pairs:,} pairs, "
            + (f"{source.index.identities:,} identities" if source.index.identities else NO_IDENTITIES)
            + f"; {share:,} of {sum(self.shares):,} draws of an epoch"
            for source, share in zip(self.sources, self.shares, strict=True)
        ]

    def provenance(self) -> dict[str, Any]:
        """Returns facts that identify the pairs and their mixture."""
        return {
            source.name: {"digest": source.index.digest, "draws": share, "made_of": dict(source.index.made_of)}
            for source, share in zip(self.sources, self.shares, strict=True)
        }


class ShardDataset(Dataset[Sample]):
    """The training samples of a mixture, as `data.loading.datasets.PairDataset` has those of loose files.

    Args:
        pairs: the pairs.
        resize: resizes the images.
        views: builds the views that the losses need.
        clean: cleans a caption, see `data.text.tokens.clean_for`.
        later: as in `PairDataset`.
    """

    def __init__(
        self, pairs: ShardMixture, resize: Resize, views: Views, clean: Callable[[str], str], *, later: bool = False
    ) -> None:
        self._pairs, self._resize, self._views, self._clean, self._later = pairs, resize, views, clean, later

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, draw: Draw) -> Sample:
        """Returns the views of pair `draw.pair`; `draw.seed` alone determines their randomness."""
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """Returns the samples of these draws; the image views of all are built together.

        Raises:
            UserError: a shard or an image is damaged.
        """
        samples: list[Sample] = []
        images: list[Tensor] = []
        for draw in draws:
            pair = self._pairs[draw.pair]
            text = self._views.of_caption(self._clean(pair.caption), draw.seed)
            samples.append({**text, INDEX: draw.pair, PIDS: pair.pid})
            if self._views.need_image:
                images.append(self._image(pair, draw.pair))
        if not images:
            return samples
        return with_images(samples, images, [draw.seed for draw in draws], None if self._later else self._views)

    def _image(self, pair: ShardPair, number: int) -> Tensor:
        try:
            return self._resize(read_rgb(pair.content))
        except BadImageError as error:
            raise UserError(
                f"image {pair.image} of the shards of pair {number} cannot be read ({error}); write them again"
            ) from error


def open_shards(dataset: DictConfig) -> ShardMixture:
    """Returns the mixture that `dataset.shards` describes: a folder, or NAME -> {folder: FOLDER, weight: WEIGHT}.

    Raises:
        UserError: the option is wrong, a folder holds no shards, or the extra is not installed.
    """
    check_extra()
    if dataset.shards == "":
        raise UserError("dataset.shards is not given; name a folder that `uv run python -m data.shards` wrote")
    given: Any = (
        OmegaConf.to_container(dataset.shards, resolve=True)
        if isinstance(dataset.shards, DictConfig)
        else dataset.shards
    )
    given = {ONLY: {"folder": given}} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not 1 <= len(given) <= MOST_SOURCES:
        raise UserError(f"dataset.shards: {given} given, expected a folder or {{NAME: {{folder: FOLDER, weight: 1}}}}")
    gigabytes = dataset.shard_cache_gb
    if isinstance(gigabytes, bool) or not isinstance(gigabytes, int | float) or not 0 < gigabytes < inf:
        raise UserError(f"dataset.shard_cache_gb: {gigabytes} given, expected a number of GB above 0")
    if not isinstance(dataset.cache_dir, str):
        raise UserError(f"dataset.cache_dir: {dataset.cache_dir} given, expected a folder")
    sources: list[Source] = []
    for name, options in given.items():
        address, weight = _checked(f"dataset.shards.{name}", options)
        folder = ShardFolder(address, Path(dataset.cache_dir), gigabytes)
        index = folder.index()
        if same := [source.name for source in sources if source.index.digest == index.digest]:
            raise UserError(
                f"dataset.shards.{name} has the same pairs as dataset.shards.{same[0]}, and their persons would count "
                "as different ones; name each folder once, with a weight"
            )
        sources.append(Source(str(name), weight, folder, index, ShardReader(folder, index, most_open=WINDOW + 1)))
    return ShardMixture(sources, dataset.epoch_pairs)


def shares(weights: list[float], draws: int) -> list[int]:
    """Returns how many of `draws` each weight gets: in proportion, rounded so that they add up.

    >>> shares([2, 1, 1], 10)
    [5, 3, 2]
    """
    parts = np.cumsum([0.0, *(weight / max(weights) for weight in weights)])
    return np.diff(np.round(draws * (parts / parts[-1])).astype(int)).tolist()


def _checked(key: str, options: Any) -> tuple[str, float]:
    """Returns the folder and the weight of a source."""
    options = {"folder": options} if isinstance(options, str) else options
    if not isinstance(options, Mapping) or not {"folder"} <= set(options) <= {"folder", "weight"}:
        raise UserError(f"{key}: {options} given, expected {{folder: FOLDER, weight: 1}}")
    address, weight = options["folder"], options.get("weight", 1)
    if not isinstance(address, str) or not address:
        raise UserError(f"{key}.folder: {address} given, expected a folder or an address such as s3://bucket/folder")
    query = dict(parse_qsl(urlsplit(address).query, keep_blank_values=True)) if "://" in address else {}
    others = sorted(query.keys() - _QUERY)
    if _PASSWORD.search(address) or others:
        keys = ", ".join(others) or "a password"
        raise UserError(
            f"{key}.folder: the address has {keys}, and logs would show a secret; see docs/shards.md for a way"
        )
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
        raise UserError(f"{key}.weight: {weight} given, expected a number above 0")
    return address, float(weight)
