"""Pictures of similarities: between queries and gallery of a split, and between words and image patches."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from utils.report.plots.pictures import FAINT, INK, RIGHT, WRONG, Picture, composed, saved

if TYPE_CHECKING:
    from utils.report.tested import Tested

CHUNK_SIZE = 256
FINE_BINS, SHOWN_BINS = 4096, 80
HEAT = "inferno"
TILE, PATCH = 2.6, 16  # height of a map in inches, side of a patch in pixels


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
    return Picture(histogram_picture(tested.pairs, f"{tested.name}, test"))


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


def histogram_picture(found: PairSimilarities, title: str, path: str | Path | None = None) -> Image.Image:
    """Returns a picture of both densities with their means and overlap; saves it to `path`."""
    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    edges = found.edges.numpy()
    for kind, density, pairs, mean, color, line in (
        ("another person", found.other, found.other_pairs, found.other_mean, WRONG, "--"),
        ("the same person", found.same, found.same_pairs, found.same_mean, RIGHT, "-"),
    ):
        label = f"{kind}: {pairs:,} pairs, mean {mean:.3f}"
        axes.stairs(density.numpy(), edges, fill=True, color=color, alpha=0.35)
        axes.stairs(density.numpy(), edges, color=color, linestyle=line, linewidth=1.8, label=label)
        axes.axvline(mean, color=color, linestyle=line, linewidth=1)
    axes.set_title(f"{title}: {100 * found.overlap:.1f} % overlap", color=INK, loc="left")
    axes.set_xlabel("similarity of a caption and an image of ...", color=FAINT)
    axes.set_ylabel("density", color=FAINT)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return drawn(figure, path)


def word_maps_picture(
    photo: Image.Image,
    caption: str,
    words: Sequence[tuple[str, Sequence[int]]],
    before: Tensor,
    after: Tensor,
    grid: tuple[int, int],
    path: str | Path | None = None,
) -> Image.Image:
    """Returns a picture of word-patch similarities in an image, before and after sparsification; saves it to `path`.

    A word of several tokens shows their mean. Patches without similarity show the photo in grey.

    Args:
        photo: the image, stretched over the grid as it is for the encoder.
        caption: the text that holds the words.
        words: the text of each word and its rows in the maps; at least one word.
        before, after: similarities from 0 to 1. Shape: ``(L, H * W)``.
        grid: (H, W) of the patches.
    """
    height, width = grid
    tile = max(TILE * width / height, 1.1)
    lines = textwrap.wrap(composed(caption), width=round(12 * tile * (len(words) + 1)))
    size = ((len(words) + 1) * tile + 1.6, 2 * TILE + 0.5 + 0.25 * len(lines))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle("\n".join(lines), color=INK, x=0.01, ha="left")
    axes = figure.subplots(2, len(words) + 1, squeeze=False)
    colored = photo.convert("RGB").resize((width * PATCH, height * PATCH))
    gray = ImageOps.grayscale(colored)
    whole = (0, width, height, 0)
    for row, (label, maps) in enumerate((("before sparsification", before), ("after", after))):
        axes[row, 0].imshow(colored, extent=whole)
        axes[row, 0].set_ylabel(label, color=INK)
        for place, (text, positions) in zip(axes[row, 1:], words, strict=True):
            patches = maps[list(positions)].float().mean(dim=0).view(grid).cpu().numpy()
            left = np.ones(grid) if row == 0 else patches > 0
            place.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=whole)
            heat = place.imshow(patches, cmap=HEAT, vmin=0, vmax=1, extent=whole, alpha=0.7 * left)
            if row == 0:
                place.set_title(composed(text), color=INK)
            else:
                place.set_xlabel(f"{int(left.sum())} of {left.size}", color=FAINT)
    axes[1, 0].set_xlabel("patches left", color=FAINT)
    for place in axes.flat:
        place.set_xticks([])
        place.set_yticks([])
    figure.colorbar(heat, ax=axes, label="similarity, from a word's least to its most similar patch")
    return drawn(figure, path)


def drawn(figure: Figure, path: str | Path | None = None) -> Image.Image:
    """Returns `figure` as a picture; saves it to `path`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return saved(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)
