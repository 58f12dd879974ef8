"""Pictures of pseudo labels and of features: outliers over the epochs, and persons by t-SNE."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from utils.report.plots.figure import FAINT, INK, RIGHT, WRONG, new_figure, styled, wrapped
from utils.report.plots.pictures import Picture

if TYPE_CHECKING:
    from utils.report.tested import Tested

PERSONS = 10
PERPLEXITY = 30
IMAGE_MARK, TEXT_MARK = "o", "^"


@styled
def outliers_figure(history: Tensor, every_n_epochs: int) -> Figure:
    """Returns a figure of clusters and outliers over the epochs, for images and captions.

    Source: CPCL, Figs. 4 and 5.

    Args:
        history: for each of R clusterings, for images and captions: clusters, outliers before mining, outliers
            after mining. Shape: ``(R, 2, 3)``.
        every_n_epochs: epochs between two clusterings.
    """
    epochs = every_n_epochs * np.arange(len(history)) + 1
    figure = new_figure(1.9)
    for axes, title, counts in zip(figure.subplots(1, 2), ("images", "captions"), history.cpu().unbind(1), strict=True):
        for label, color, line, values in (
            ("clusters", FAINT, ":", counts[:, 0]),
            ("outliers before mining", WRONG, "--", counts[:, 1]),
            ("outliers after mining", RIGHT, "-", counts[:, 2]),
        ):
            axes.plot(epochs, values.numpy(), line, color=color, marker=".", label=label)
        axes.set_title(title, color=INK, loc="left")
        axes.set_xlabel("epoch", color=FAINT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def tsne(tested: "Tested", persons: int | Sequence[int] = PERSONS) -> Picture:
    """Returns a t-SNE figure of the images and captions of some persons of the test split.

    Args:
        persons: how many of them, chosen at random, or their identities; at most 26.
    """
    found, title = tested.retrieval, f"{tested.name}: persons of the test split"
    sides = found.images, found.texts, found.image_pids, found.text_pids
    return Picture(tsne_figure(*sides, title, persons=persons))


@styled
def tsne_figure(
    images: Tensor,
    texts: Tensor,
    image_pids: Tensor,
    text_pids: Tensor,
    title: str,
    *,
    persons: int | Sequence[int] = PERSONS,
) -> Figure:
    """Returns a t-SNE figure of some persons, each with a colour and a letter.

    Images are discs, captions are triangles; a person's letter stands at the mean of each. Source: CPCL, Fig. 6.

    Args:
        images, texts: embeddings. Shapes: ``(Ni, D)``, ``(Nt, D)``.
        image_pids, text_pids: identities, the same persons in both. Shapes: ``(Ni,)``, ``(Nt,)``.
        persons: as in `tsne`.
    """
    everyone = image_pids.unique().cpu()
    if isinstance(persons, int):
        everyone = everyone[torch.randperm(len(everyone), generator=torch.Generator().manual_seed(0))[:persons]]
    else:
        everyone = everyone[torch.isin(everyone, torch.tensor(persons))]
    chosen = everyone[: len(ascii_uppercase)].sort().values
    shown = [
        (mark, pids[among].cpu(), features[among].float().cpu())
        for mark, features, pids in ((IMAGE_MARK, images, image_pids), (TEXT_MARK, texts, text_pids))
        for among in (torch.isin(pids, chosen.to(pids.device)),)
    ]
    points = _plane(torch.cat([features for *_, features in shown]).numpy())
    figure = new_figure(3)
    axes = figure.subplots()
    for (mark, pids, _), places in zip(shown, np.split(points, [len(shown[0][1])]), strict=True):
        for person, letter in zip(chosen, ascii_uppercase, strict=False):
            own = places[(pids == person).numpy()]
            color = f"C{ascii_uppercase.index(letter)}"
            axes.scatter(own[:, 0], own[:, 1], s=12, marker=mark, color=color, alpha=0.55, linewidths=0)
            axes.annotate(letter, own.mean(axis=0), color=color, weight="bold", ha="center", va="center")
    handles = [
        Line2D([], [], linestyle="", marker=mark, color=FAINT, label=f"{label} ({len(pids)})")
        for label, (mark, pids, _) in zip(("images", "captions"), shown, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    axes.set_title("\n".join(wrapped(title, 3.2)), color=INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _plane(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 2-D positions ``(N, 2)`` of `features` ``(N, D)`` by t-SNE of their cosine distances."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    # init="random", because PCA fails on the features of a collapsed model.
    return TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(features)
