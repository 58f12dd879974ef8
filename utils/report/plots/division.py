"""A picture of the losses by which training pairs are divided into clean and noisy ones."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from utils.report.plots.pictures import FAINT, INK, RIGHT, WRONG
from utils.report.plots.similarity import drawn

BINS = 60


def division_picture(
    losses: Tensor, weights: Tensor, true_pairs: Tensor | None, path: str | Path | None = None
) -> Image.Image:
    """Returns histograms of the losses of training pairs, kept and left out; saves the picture to `path`.

    Args:
        losses: from 0 to 1. Shape: ``(P,)``.
        weights: 1 for the pairs that are kept, else 0. Shape: ``(P,)``.
        true_pairs: bool, false for the pairs with drawn noise. Shape: ``(P,)``. They get a second histogram. None: the
            truth is not known.
    """
    kept = weights.cpu().numpy() > 0
    halves = [("by the division", (("kept", kept, RIGHT), ("left out", ~kept, WRONG)))]
    if true_pairs is not None:
        true = true_pairs.cpu().numpy()
        halves.append(("in truth", (("clean", true, RIGHT), ("noise", ~true, WRONG))))
    figure = Figure(figsize=(5 * len(halves), 4), dpi=110, layout="constrained")
    edges = np.linspace(0, 1, BINS + 1)
    for axes, (title, groups) in zip(figure.subplots(1, len(halves), squeeze=False)[0], halves, strict=True):
        for label, chosen, color in groups:
            values = losses.cpu().numpy()[chosen]
            axes.hist(values, bins=edges, color=color, alpha=0.6, label=f"{label}: {len(values):,} pairs")
        axes.set_title(title, color=INK, loc="left")
        axes.set_xlabel("loss of the pair, from the lowest to the highest", color=FAINT)
        axes.set_ylabel("pairs", color=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return drawn(figure, path)
