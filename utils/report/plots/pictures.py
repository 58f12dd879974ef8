"""Pictures of a ranking: captions with their best images, marked right or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from utils.errors import UserError
from utils.images import BadImageError, read_bytes, read_rgb
from utils.ranking.retrieval import top_k
from utils.report.plots.figure import (
    BACKDROP,
    FAINT,
    INK,
    LINE,
    MARGIN,
    PAPER,
    RIGHT,
    WIDTH,
    WRONG,
    place_photo,
    sheet,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from utils.report.tested import Tested

THUMB = (150, 300)  # of an image in W&B's table, in pixels
FRAME, BADGE = 7, 46  # of its frame and its mark, in pixels
GAP, BLOCK_GAP, WIDEST = 0.03, 0.1, 0.45  # between images, between queries, and an image's width, in inches


@dataclass(frozen=True)
class RankedImage:
    """A gallery image in a ranking; `right` says whether it shows the query's person."""

    path: Path
    score: float
    right: bool


@dataclass(frozen=True)
class RankedQuery:
    """A caption, its best gallery images, best first, and the number of true images in the whole gallery."""

    caption: str
    images: tuple[RankedImage, ...]
    true_images: int

    @property
    def found(self) -> int:
        """The number of shown images that are right."""
        return sum(image.right for image in self.images)


class Picture(NamedTuple):
    """The result of a plot: a figure, the suffix of its picture, and the queries that it shows, for W&B's table."""

    figure: Figure
    suffix: str = ".png"
    queries: Sequence[RankedQuery] = ()


def spread(count: int, wanted: int) -> range:
    """Returns `wanted` indices spread evenly over `count` items, or all if there are fewer."""
    return range(0, count, max(1, count // wanted))[:wanted] if wanted else range(0)


def ranked(tested: "Tested") -> Picture | None:
    """Returns a figure of test captions with their ten best images, or None if no queries are to be shown."""
    found, some = tested.retrieval, list(tested.shown)
    if not some:
        return None
    captions = [found.captions[place] for place in some]
    queries = rank_queries(
        found.texts[some], found.images, found.text_pids[some], found.image_pids, captions, found.paths
    )
    return Picture(ranked_figure(queries), ".jpg", queries)


def rank_queries(
    query: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    captions: Sequence[str],
    paths: Sequence[Path],
    *,
    k: int = 10,
) -> list[RankedQuery]:
    """Returns the k best gallery images of every query.

    Args:
        query: Embeddings of the captions. Shape: ``(Q, D)``.
        gallery: Embeddings of the images. Shape: ``(G, D)``.
        query_pids: Identities. Shape: ``(Q,)``.
        gallery_pids: Identities. Shape: ``(G,)``.
        captions: Q texts.
        paths: G image files.
    """
    indices, scores = top_k(query, gallery, k)
    right = gallery_pids[indices] == query_pids[:, None]
    return [
        RankedQuery(
            caption,
            tuple(RankedImage(paths[i], score, hit) for i, score, hit in zip(*columns, strict=True)),
            true_images=int((gallery_pids == pid).sum()),
        )
        for caption, pid, *columns in zip(
            captions, query_pids, indices.tolist(), scores.tolist(), right.tolist(), strict=True
        )
    ]


@styled
def ranked_figure(queries: Sequence[RankedQuery]) -> Figure:
    """Returns a figure with a block for each query: its caption, and below it its images by rank.

    Raises:
        UserError: if an image cannot be read.
    """
    most = max(len(query.images) for query in queries)
    width = min((WIDTH - 2 * MARGIN + GAP) / most - GAP, WIDEST)
    photo = width * THUMB[1] / THUMB[0]
    captions = [wrapped(query.caption, WIDTH - 2 * MARGIN) for query in queries]
    heights = [(len(lines) + 2) * LINE + photo + GAP for lines in captions]
    figure, axes = sheet(2 * MARGIN + sum(heights) + BLOCK_GAP * (len(queries) - 1))
    top = MARGIN
    for query, lines, height in zip(queries, captions, heights, strict=True):
        summary = f"{query.found} of {query.true_images} true images in the top {len(query.images)}"
        for number, line in enumerate([*lines, summary]):
            color = INK if number < len(lines) else FAINT
            axes.text(MARGIN, top + number * LINE, line, color=color, va="top", parse_math=False)
        above = top + (len(lines) + 1) * LINE + GAP
        for rank, image in enumerate(query.images):
            left = MARGIN + rank * (width + GAP)
            color, sign = (RIGHT, "✓") if image.right else (WRONG, "✗")
            place_photo(axes, read_photo(image.path), left, above, width, photo)
            axes.add_patch(Rectangle((left, above), width, photo, fill=False, edgecolor=color, linewidth=1.2))
            badge = {"boxstyle": "square,pad=0.1", "facecolor": color, "edgecolor": "none"}
            axes.text(left + 0.02, above + 0.02, sign, color=PAPER, va="top", bbox=badge)
            score = f"{image.score:.2f}"
            axes.text(left + width / 2, above + photo + 0.03, score, color=color, ha="center", va="top")
        top += height + BLOCK_GAP
    return figure


def read_photo(path: Path) -> Image.Image:
    """Returns the image in a file as a viewer shows it and as the models read it.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return read_rgb(read_bytes(path))
    except BadImageError as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace it, then draw again") from error


def marked(image: RankedImage) -> Image.Image:
    """Returns the image fitted into `THUMB`, with a green frame and a tick, or a red frame and a cross."""
    photo = read_photo(image.path)
    inner = (THUMB[0] - 2 * FRAME, THUMB[1] - 2 * FRAME)
    fitted = ImageOps.pad(photo, inner, Image.Resampling.LANCZOS, color=BACKDROP)
    framed = ImageOps.expand(fitted, FRAME, RIGHT if image.right else WRONG)
    badge = _badge(image.right)
    framed.paste(badge, (0, 0), badge)
    return framed


@lru_cache
def _badge(right: bool) -> Image.Image:
    """Returns a tick or a cross in a coloured corner, drawn four times larger and scaled down for smooth edges."""
    side = 4 * BADGE
    badge = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((-side, -side, side - 1, side - 1), fill=RIGHT if right else WRONG)
    strokes = [((14, 38), (32, 56), (66, 16))] if right else [((16, 16), (58, 58)), ((58, 16), (16, 58))]
    for stroke in strokes:
        points = [(x / 100 * side, y / 100 * side) for x, y in stroke]
        draw.line(points, PAPER, width=side // 9, joint="curve")
    return badge.resize((BADGE, BADGE), Image.Resampling.LANCZOS)
