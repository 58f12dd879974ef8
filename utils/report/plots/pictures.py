"""Pictures of a ranking: captions with their best images, marked right or wrong."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from utils.errors import UserError
from utils.images import BadImageError, read_bytes, read_rgb
from utils.ranking.retrieval import top_k

if TYPE_CHECKING:
    from utils.report.tested import Tested

RIGHT, WRONG = "#1a8a3a", "#cc2936"
INK, FAINT, PAPER, BACKDROP = "#1c1c1c", "#6b6b6b", "#ffffff", "#e9e9e9"
THUMB = (150, 300)
FRAME, GAP, MARGIN, BADGE = 7, 16, 28, 46
CAPTION_WIDTH, TEXT_SIZE, LINE = 440, 24, 33
HEADER, ROW_GAP = 48, 34


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
    """The result of a plot: an image, its file suffix, and the queries that it shows, for W&B's table."""

    image: Image.Image
    suffix: str = ".png"
    queries: Sequence[RankedQuery] = ()


def spread(count: int, wanted: int) -> range:
    """Returns `wanted` indices spread evenly over `count` items, or all if there are fewer."""
    return range(0, count, max(1, count // wanted))[:wanted] if wanted else range(0)


def ranked(tested: "Tested") -> Picture | None:
    """Returns a picture of test captions with their ten best images, or None if no queries are to be shown."""
    found, some = tested.retrieval, list(tested.shown)
    if not some:
        return None
    captions = [found.captions[place] for place in some]
    queries = rank_queries(
        found.texts[some], found.images, found.text_pids[some], found.image_pids, captions, found.paths
    )
    return Picture(ranked_picture(queries), ".jpg", queries)


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


def ranked_picture(queries: Sequence[RankedQuery], path: str | Path | None = None) -> Image.Image:
    """Returns a picture with a row for each query: its caption and its images by rank; saves it to `path`.

    Raises:
        UserError: if an image cannot be read.
    """
    text = font(TEXT_SIZE)
    captions = [_wrap(composed(query.caption), text) for query in queries]
    heights = [max(THUMB[1] + LINE, (len(lines) + 2) * LINE) for lines in captions]
    columns = max(len(query.images) for query in queries)
    left = MARGIN + CAPTION_WIDTH + 2 * GAP
    size = (
        left + columns * (THUMB[0] + GAP) - GAP + MARGIN,
        HEADER + sum(heights) + ROW_GAP * (len(queries) - 1) + MARGIN,
    )
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)

    def centered(column: int, y: int, words: str, color: str) -> None:
        middle = left + column * (THUMB[0] + GAP) + THUMB[0] // 2
        draw.text((middle, y), words, color, font=text, anchor="mm")

    for column in range(columns):
        centered(column, HEADER // 2, str(column + 1), FAINT)
    top = HEADER
    for query, lines, height in zip(queries, captions, heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((MARGIN, top + number * LINE), line, INK, font=text)
        summary = f"{query.found} of {query.true_images} true images in the top {len(query.images)}"
        draw.text((MARGIN, top + (len(lines) + 0.4) * LINE), summary, FAINT, font=text)
        for column, image in enumerate(query.images):
            picture.paste(marked(image), (left + column * (THUMB[0] + GAP), top))
            centered(column, top + THUMB[1] + LINE // 2 + 4, f"{image.score:.2f}", RIGHT if image.right else WRONG)
        top += height + ROW_GAP
    return saved(picture, path)


def saved(picture: Image.Image, path: str | Path | None) -> Image.Image:
    """Returns `picture`; writes it to `path`, if given, in the format of the suffix. Photos should use .jpg."""
    if path is not None:
        picture.save(path, quality=90)
    return picture


def composed(text: str) -> str:
    """Returns `text` with letter and accents as one character (NFC), because fonts draw it better."""
    return unicodedata.normalize("NFC", text)


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


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, which has the Vietnamese letters and comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Returns `text` broken into lines that fit into `CAPTION_WIDTH`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= CAPTION_WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]
