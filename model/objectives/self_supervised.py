"""SimCLR on two augmentations of the same image."""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.features import Features
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.pairs import at_least_fp32
from utils.errors import UserError


def simclr(a: Tensor, b: Tensor, temperature: float = 0.1, *, chunk: int = 512) -> Tensor:
    """Returns the scalar NT-Xent loss: each of the 2B rows has to find its other view among the 2B - 1 other rows.

    Source: SimCLR (ICML 2020), eq. (1), on cosines.
    A batch of one sample has no negatives: zero, connected to the graph.

    Args:
        a: projections ``(B, D)`` of one view, of any norm.
        b: projections ``(B, D)`` of the other view.
        chunk: number of rows that are compared with all rows at a time. If 2B is larger, the comparisons are computed
            again in the backward pass, so that memory grows with B and not with B^2.
    """
    rows = F.normalize(at_least_fp32(torch.cat([a, b])), dim=1)  # (2B, D)
    places = torch.arange(len(rows), device=rows.device)
    chunks = list(zip(rows.split(chunk), places.split(chunk), strict=True))
    again = partial(checkpoint, _entropies, use_reentrant=False, preserve_rng_state=False)
    compare = again if len(chunks) > 1 else _entropies
    return torch.cat([compare(some, rows, own, temperature) for some, own in chunks]).mean()


def _entropies(some: Tensor, rows: Tensor, places: Tensor, temperature: float) -> Tensor:
    """Returns the cross-entropies ``(C,)`` of `some` ``(C, D)``, which are the rows of `rows` at `places` ``(C,)``."""
    logits = some @ rows.T / temperature  # (C, 2B)
    own = places[:, None] == torch.arange(len(rows), device=rows.device)
    other_view = (places + len(rows) // 2) % len(rows)
    return F.cross_entropy(logits.masked_fill_(own, -torch.inf), other_view, reduction="none")


class SimCLR(LossTerm):
    """`simclr` of the projected views "image_ss1" and "image_ss2" (SLIP, ECCV 2022).

    Both views go through the projector as one batch of 2B, and batch norm averages over all 2B, as in SimCLR. It keeps
    no running statistics, because the projector does not run in evaluation.

    Args:
        hidden_dim: width of the projector's hidden layers. None: 8 times the width of the backbone, at most 4096.
        hidden_layers: number of hidden layers, at least 1.
        out_dim: width of a projection. None: the width of the backbone.
        batch_norm: whether each hidden layer is normalised before its ReLU.
    """

    needs = frozenset({"image_ss1", "image_ss2"})

    def __init__(
        self,
        *,
        spec: ModelSpec,
        temperature: float,
        hidden_dim: int | None,
        hidden_layers: int,
        out_dim: int | None,
        batch_norm: bool,
    ) -> None:
        super().__init__(spec=spec)
        for option, value in (("hidden_dim", hidden_dim), ("hidden_layers", hidden_layers), ("out_dim", out_dim)):
            if value is not None and value < 1:
                raise UserError(f"{option}: {value} given, expected at least 1")
        self.temperature = temperature
        width, layers = spec.pooled_dim, OrderedDict[str, nn.Module]()
        for layer in range(1, hidden_layers + 1):
            hidden = hidden_dim or min(8 * spec.pooled_dim, 4096)
            layers[f"layer{layer}"] = nn.Linear(width, hidden)
            if batch_norm:
                layers[f"norm{layer}"] = nn.BatchNorm1d(hidden, track_running_stats=False)
            layers[f"relu{layer}"] = nn.ReLU(inplace=True)
            width = hidden
        layers[f"layer{hidden_layers + 1}"] = nn.Linear(width, out_dim or spec.pooled_dim)
        self.simclr_projector = nn.Sequential(layers)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        views = torch.cat([features.pooled("image_ss1"), features.pooled("image_ss2")])
        with features.amp():
            projections = self.simclr_projector(views)
        a, b = at_least_fp32(projections).chunk(2)
        return simclr(a, b, self.temperature), lambda: {"view_cosine": F.cosine_similarity(a, b).mean()}
