"""LossTerm, Objective and LossReport: how losses are composed and reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.features import Features

Stats = dict[str, Tensor]


@dataclass(frozen=True)
class Facts:
    """What a loss term may need to know of the composed model and data before training."""

    embed_dim: int
    pooled_dim: int
    num_classes: int
    vocab_size: int


class LossTerm(nn.Module):
    """A weighted loss in a training objective.

    `needs` names what the term reads from `Features`: views ("image", "image_aug", "text", ...), "pids", ...
    The datamodule builds exactly the views that the terms of the objective need. `reads_tokens` says whether
    the term looks at tokens, not only at embeddings and pooled features. Parameters of its own (a classifier,
    a projector) are built from `facts`.

    Shape: ``forward(features) -> (scalar, {name: detached scalar})``.
    """

    needs: frozenset[str] = frozenset({"image", "text"})
    reads_tokens: ClassVar[bool] = False

    def __init__(self, *, facts: Facts, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        raise NotImplementedError


@dataclass(frozen=True)
class LossReport:
    """The losses of one step: `total` with gradient; by term and detached, raw, weighted and stats."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]
    stats: dict[str, Stats]


class Objective(nn.Module):
    """The weighted sum of loss terms, in fp32 whatever the AMP mode.

    Args:
        terms: name -> term; the name is what the loss is logged under.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)

    @property
    def needs(self) -> frozenset[str]:
        """The union of what the terms need."""
        return frozenset().union(*(term.needs for term in self._terms().values()))

    def forward(self, features: Features) -> LossReport:
        features.expect(self.needs)
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        stats: dict[str, Stats] = {}
        shares: list[Tensor] = []
        for name, term in self._terms().items():
            with features.fp32():
                loss, stats[name] = term(features)
            shares.append(term.weight * loss)
            raw[name], weighted[name] = loss.detach(), shares[-1].detach()
        return LossReport(torch.stack(shares).sum(), raw, weighted, stats)

    def _terms(self) -> dict[str, LossTerm]:
        return dict(self.terms.items())  # type: ignore[arg-type]
