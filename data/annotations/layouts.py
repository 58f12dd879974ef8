"""Where each dataset lies on disk, what its annotation file calls things, and how large it officially is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from utils.errors import UserError, nearest

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
    """How one dataset is stored.

    folder: its folder under the root; images lie in `IMAGE_FOLDER` below it.
    files: accepted names of the annotation file, the usual one first.
    path_key: key of an image's path below `IMAGE_FOLDER`.
    caption_keys: language -> the keys whose captions belong to it, in order.
    language: the language read by default.
    source: how to get the dataset, in words.
    official: split -> size of the file as distributed, captions in `official_language`.
    ids_may_restart: whether each split may number its identities from 0 anew.
    """

    folder: str
    files: tuple[str, ...]
    path_key: str
    source: str
    caption_keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"en": ("captions",)})
    language: str = "en"
    official: Mapping[str, Size] = field(default_factory=dict)
    official_language: str = "en"
    ids_may_restart: bool = False


_VN3K = Layout(
    folder="VN3K",
    files=("data_captions.json",),
    path_key="file_path",
    source="ask the authors of 3000VnPersonSearch (./setup.sh unpacks an archive that you name)",
    caption_keys={"vi": ("captions",), "en": ("en_captions",), "mixed": ("en_captions", "captions")},
    language="vi",
    official={"train": Size(4_302, 8_604, 2_000), "test": Size(2_000, 4_000, 1_000)},
    official_language="vi",
)

LAYOUTS: Final[Mapping[str, Layout]] = {
    "cuhk_pedes": Layout(
        folder="CUHK-PEDES",
        files=("reid_raw.json",),
        path_key="file_path",
        source="ask its authors (github.com/ShuangLI59/Person-Search-with-Natural-Language-Description)",
        official={
            "train": Size(34_054, 68_126, 11_003),
            "val": Size(3_078, 6_158, 1_000),
            "test": Size(3_074, 6_156, 1_000),
        },
    ),
    "icfg_pedes": Layout(
        folder="ICFG-PEDES",
        files=("ICFG-PEDES.json", "ICFG_PEDES.json"),
        path_key="file_path",
        source="ask its authors (github.com/zifyloo/SSAN)",
        official={"train": Size(34_674, 34_674, 3_102), "test": Size(19_848, 19_848, 1_000)},
        ids_may_restart=True,
    ),
    "rstpreid": Layout(
        folder="RSTPReid",
        files=("data_captions.json",),
        path_key="img_path",
        source="follow github.com/NjtechCVLab/RSTPReid-Dataset",
        official={
            "train": Size(18_505, 37_010, 3_701),
            "val": Size(1_000, 2_000, 200),
            "test": Size(1_000, 2_000, 200),
        },
    ),
    "vn3k_vi": _VN3K,
    "vn3k_en": replace(_VN3K, language="en"),
    "vn3k_mixed": replace(_VN3K, language="mixed"),
    "drawn": replace(
        _VN3K,
        folder="DRAWN-PEDES",
        source="run `uv run trainer.py` once, which generates it",
        language="en",
        official={},
    ),
}


def layout_of(name: str, language: str | None = None) -> Layout:
    """Returns the layout of dataset `name`, set to `language`; a `UserError` names the nearest known name."""
    if name not in LAYOUTS:
        hint = nearest(name.lower().replace("-", "_"), list(LAYOUTS))
        raise UserError(f"There is no dataset {name!r}; expected one of {', '.join(LAYOUTS)}.{hint}")
    layout = LAYOUTS[name]
    if language is None:
        return layout
    if language not in layout.caption_keys:
        known = " or ".join(map(repr, layout.caption_keys))
        hint = nearest(language, list(layout.caption_keys))
        raise UserError(f"dataset.language={language} is not in dataset {name}; expected {known}.{hint}")
    return replace(layout, language=language)
