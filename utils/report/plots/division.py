"""A figure of the losses by which training pairs are divided into clean and noisy ones."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from utils.report.plots.figure import FAINT, INK, RIGHT, WRONG, new_figure, styled

BINS = 40


@styled
def division_figure(losses: Tensor, weights: Tensor, true_pairs: Tensor | None) -> Figure:
    """Returns histograms of the losses of training pairs: of those kept and left out, and of clean and noisy ones.

    Args:
        losses: from 0 to 1. Shape: ``(P,)``.
        weights: 1 for the pairs that are kept, else 0. Shape: ``(P,)``.
        true_pairs: bool, false for the pairs with drawn noise. Shape: ``(P,)``. None: the truth is not known.
    """
    kept = weights.cpu().numpy() > 0
    parts = [("by the division", (("kept", kept, RIGHT), ("left out", ~kept, WRONG)))]
    if true_pairs is not None:
        true = true_pairs.cpu().numpy()
        parts.append(("in truth", (("clean", true, RIGHT), ("noise", ~true, WRONG))))
    figure = new_figure(1.9)
    axes_of = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    for axes, (title, groups) in zip(axes_of, parts, strict=True):
        for label, chosen, color in groups:
            values = losses.cpu().numpy()[chosen]
            edges = np.linspace(0, 1, BINS + 1)
            axes.hist(values, bins=edges, color=color, alpha=0.6, label=f"{label}: {len(values):,}")
        axes.set_title(title, color=INK, loc="left")
        axes.set_xlabel("loss of the pair, scaled", color=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    axes_of[0].set_ylabel("pairs", color=FAINT)
    return figure
