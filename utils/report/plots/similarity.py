"""Pictures of similarities: between queries and gallery of a split, and between words and image patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from utils.report.plots.figure import (
    FAINT,
    HEAT,
    INK,
    LINE,
    MARGIN,
    RIGHT,
    WIDTH,
    WRONG,
    composed,
    new_figure,
    place_image,
    place_scale,
    sheet,
    styled,
    text_width,
    wrapped,
)
from utils.report.plots.pictures import Picture

if TYPE_CHECKING:
    from utils.report.tested import Tested

CHUNK_SIZE = 256
FINE_BINS, SHOWN_BINS = 4096, 80
PATCH = 16  # side of a patch in pixels
WIDEST, GAP, SCALE = 0.8, 0.04, 0.42  # width of a map, space around it, height of the scale, in inches


@dataclass(frozen=True)
class PairSimilarities:
    """The similarities of queries to gallery items of the same identity, and of other identities.

    edges: ``(bins + 1,)`` bin edges, evenly spaced over the range of the similarities.
    same, other: ``(bins,)`` densities: each integrates to 1, or is 0 if there is no such pair.
    same_pairs, other_pairs: the numbers of pairs.
    same_mean, other_mean: the mean similarities, NaN if there is no such pair.
    overlap: the area below both densities, from 0 (disjoint) to 1 (identical).
    """

    edges: Tensor
    same: Tensor
    other: Tensor
    same_pairs: int
    other_pairs: int
    same_mean: float
    other_mean: float

    @property
    def overlap(self) -> float:
        return float((self.same.minimum(self.other) * self.edges.diff()).sum())

    def as_dict(self) -> dict[str, float]:
        """Returns the three values to log: same_mean, other_mean, overlap."""
        return {"same_mean": self.same_mean, "other_mean": self.other_mean, "overlap": self.overlap}


def similarities(tested: "Tested") -> Picture:
    """Returns a histogram of the similarities of all test pairs, of the same person and of different persons."""
    return Picture(histogram_figure(tested.pairs, f"{tested.name}, test"))


@torch.no_grad()
def pair_similarities(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> PairSimilarities:
    """Returns the distribution of all Q x G inner products; at most `CHUNK_SIZE` x G of them are in memory at a time.

    Args:
        query: Features. Shape: ``(Q, D)``, on any device.
        gallery: Features. Shape: ``(G, D)``, same device.
        query_pids: Identities. Shape: ``(Q,)``.
        gallery_pids: Identities. Shape: ``(G,)``.
    """
    query, gallery = query.float(), gallery.float()
    bound = max(float(query.norm(dim=1).max() * gallery.norm(dim=1).max()), 1e-12)
    counts = torch.zeros(2, FINE_BINS, dtype=torch.int64)  # rows: other, same
    sums = torch.zeros(2, dtype=torch.float64)
    for rows, pids in zip(query.split(CHUNK_SIZE), query_pids.split(CHUNK_SIZE), strict=True):
        scores = rows @ gallery.T
        same = pids[:, None] == gallery_pids
        bins = ((scores / bound + 1) * (FINE_BINS / 2)).long().clamp_(0, FINE_BINS - 1)
        # bincount, not histc: histc is not deterministic on a GPU and would take two passes over masked copies.
        counts += (bins + FINE_BINS * same).flatten().bincount(minlength=2 * FINE_BINS).view(2, -1).cpu()
        of_same, of_all = (scores * same).sum(dtype=torch.float64), scores.sum(dtype=torch.float64)
        sums += torch.stack([of_all - of_same, of_same]).cpu()

    used = counts.sum(dim=0).nonzero()
    first, size = int(used[0]), int(used[-1] - used[0]) + 1
    merged = -(-size // SHOWN_BINS)
    bins_shown = -(-size // merged)
    padded = torch.nn.functional.pad(counts, (0, merged))[:, first : first + bins_shown * merged]
    edges = ((first + merged * torch.arange(bins_shown + 1)) / (FINE_BINS / 2) - 1) * bound
    pairs = counts.sum(dim=1)
    heights = padded.unflatten(1, (bins_shown, merged)).sum(dim=2) / pairs.clamp_min(1)[:, None] / edges.diff()
    other_mean, same_mean = (sums / pairs).tolist()
    return PairSimilarities(edges, heights[1], heights[0], int(pairs[1]), int(pairs[0]), same_mean, other_mean)


@styled
def histogram_figure(found: PairSimilarities, title: str) -> Figure:
    """Returns a figure of both densities with their means and overlap."""
    figure = new_figure(2.3)
    axes = figure.subplots()
    edges = found.edges.numpy()
    for kind, density, pairs, mean, color, line in (
        ("another person", found.other, found.other_pairs, found.other_mean, WRONG, "--"),
        ("the same person", found.same, found.same_pairs, found.same_mean, RIGHT, "-"),
    ):
        label = f"{kind}: {pairs:,} pairs, mean {mean:.3f}"
        axes.stairs(density.numpy(), edges, fill=True, color=color, alpha=0.35)
        axes.stairs(density.numpy(), edges, color=color, linestyle=line, linewidth=1, label=label)
        axes.axvline(mean, color=color, linestyle=line, linewidth=0.6)
    axes.set_title("\n".join([*wrapped(title, 2.8), f"overlap {100 * found.overlap:.1f} %"]), color=INK, loc="left")
    axes.set_xlabel("similarity of a caption and an image of ...", color=FAINT)
    axes.set_ylabel("density", color=FAINT)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False)
    return figure


@styled
def word_maps_figure(
    photo: Image.Image,
    caption: str,
    words: Sequence[tuple[str, Sequence[int]]],
    before: Tensor,
    after: Tensor,
    grid: tuple[int, int],
) -> Figure:
    """Returns a figure of word-patch similarities in an image, before and after sparsification.

    A word of several tokens shows their mean. Patches without similarity show the photo in grey.

    Args:
        photo: the image, stretched over the grid as it is for the encoder.
        caption: the text that holds the words.
        words: the text of each word and its rows in the maps; at least one word.
        before, after: similarities from 0 to 1. Shape: ``(L, H * W)``.
        grid: (H, W) of the patches.
    """
    lines = wrapped(caption, WIDTH - 2 * MARGIN)
    tops = MARGIN + len(lines) * LINE + max(text_width(text) for text, _ in words) + 0.1
    width = min((WIDTH - 2 * MARGIN - LINE) / (len(words) + 1), WIDEST) - GAP
    height = width * grid[0] / grid[1]
    rows = tops, tops + height + GAP
    end = rows[1] + height + 2 * LINE
    figure, axes = sheet(end + SCALE)
    for number, line in enumerate(lines):
        axes.text(MARGIN, MARGIN + number * LINE, line, color=INK, va="top", parse_math=False)
    colored = photo.convert("RGB").resize((grid[1] * PATCH, grid[0] * PATCH))
    gray = ImageOps.grayscale(colored)
    scale = ScalarMappable(Normalize(0, 1), HEAT)
    for top, label, maps in zip(rows, ("before", "after"), (before, after), strict=True):
        axes.text(MARGIN, top + height / 2, label, color=INK, rotation="vertical", va="center")
        left = MARGIN + LINE
        place_image(axes, colored, left, top, width, height)
        for text, positions in words:
            left += width + GAP
            patches = maps[list(positions)].float().mean(dim=0).view(grid).cpu().numpy()
            shown = np.ones(grid) if top == rows[0] else patches > 0
            place_image(axes, gray, left, top, width, height, cmap="gray", vmin=0, vmax=255)
            heat = scale.to_rgba(patches, alpha=0.7 * shown)
            place_image(axes, heat, left, top, width, height)
            center = left + width / 2
            if top == rows[0]:
                spelled = axes.text(center, top - GAP, composed(text), color=INK, ha="center", va="bottom")
                spelled.set(rotation="vertical", parse_math=False)
            else:
                axes.text(center, top + height + GAP, f"{int(shown.sum())}", color=FAINT, ha="center", va="top")
    note = f"patches that sparsification leaves, of {grid[0] * grid[1]}"
    axes.text(WIDTH - MARGIN, end, note, color=FAINT, ha="right", va="bottom")
    place_scale(figure, scale, "similarity, from a word's least to its most similar patch", 0.4, end + 0.05, 2.5)
    return figure
