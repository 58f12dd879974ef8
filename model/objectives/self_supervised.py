"""SimCLR on two augmentations of the same image."""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.features import Features
from model.objectives.base import Facts, LossTerm, Stats
from model.objectives.pairs import at_least_fp32


def simclr(a: Tensor, b: Tensor, temperature: float = 0.1, *, chunk: int = 512) -> Tensor:
    """Returns the scalar NT-Xent: each of the 2B rows finds its other view among the 2B - 1 rows but itself.

    Source: SimCLR (ICML 2020), eq. (1), on cosines.
    A batch of one sample has no negatives: zero, connected to the graph.

    Args:
        a: projections ``(B, D)`` of one view, of any norm.
        b: projections ``(B, D)`` of the other view.
        chunk: rows that are compared with all at a time; where there are more, their comparisons are computed again
            in backward, so that memory grows by B and not by its square.
    """
    rows = F.normalize(at_least_fp32(torch.cat([a, b])), dim=1)  # (2B, D)
    places = torch.arange(len(rows), device=rows.device)
    chunks = list(zip(rows.split(chunk), places.split(chunk), strict=True))
    again = partial(checkpoint, _entropies, use_reentrant=False, preserve_rng_state=False)
    compare = again if len(chunks) > 1 else _entropies
    return torch.cat([compare(some, rows, own, temperature) for some, own in chunks]).mean()


def _entropies(some: Tensor, rows: Tensor, places: Tensor, temperature: float) -> Tensor:
    """Returns the cross-entropies ``(C,)`` of `some` ``(C, D)``, which are those at `places` ``(C,)`` of all `rows`."""
    logits = some @ rows.T / temperature  # (C, 2B)
    own = places[:, None] == torch.arange(len(rows), device=rows.device)
    other_view = (places + len(rows) // 2) % len(rows)
    return F.cross_entropy(logits.masked_fill_(own, -torch.inf), other_view, reduction="none")


class SimCLR(LossTerm):
    """`simclr` of the views "image_ss1" and "image_ss2" behind a projector of its own (SLIP, ECCV 2022).

    Both views go through the projector's batch norm as one batch of 2B, as in SimCLR. It keeps no running
    statistics: the projector never runs in evaluation.

    Args:
        hidden_dim: width of the projector's two hidden layers; None: 8 times the backbone's, 4096 at most.
        out_dim: width of a projection.
    """

    needs = frozenset({"image_ss1", "image_ss2"})

    def __init__(
        self,
        *,
        facts: Facts,
        weight: float = 1.0,
        temperature: float = 0.1,
        hidden_dim: int | None = None,
        out_dim: int = 256,
    ) -> None:
        super().__init__(facts=facts, weight=weight)
        self.temperature = temperature
        hidden_dim = hidden_dim or min(8 * facts.pooled_dim, 4096)
        self.simclr_projector = nn.Sequential(
            OrderedDict(
                layer1=nn.Linear(facts.pooled_dim, hidden_dim),
                norm1=nn.BatchNorm1d(hidden_dim, track_running_stats=False),
                relu1=nn.ReLU(inplace=True),
                layer2=nn.Linear(hidden_dim, hidden_dim),
                norm2=nn.BatchNorm1d(hidden_dim, track_running_stats=False),
                relu2=nn.ReLU(inplace=True),
                layer3=nn.Linear(hidden_dim, out_dim),
            )
        )

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        views = torch.cat([features.pooled("image_ss1"), features.pooled("image_ss2")])
        with features.amp():
            projections = self.simclr_projector(views)
        a, b = at_least_fp32(projections).chunk(2)
        agreement = F.cosine_similarity(a.detach(), b.detach()).mean()
        return simclr(a, b, self.temperature), {"view_cosine": agreement}
