"""LossTerm, Objective and LossReport: how losses are composed and reported."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.features import Features
from model.prototypes import Modality
from utils.errors import UserError

Stats = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class ModelSpec:
    """What a loss term may need to know of the composed model and data before training.

    slots: how many embeddings of each level a sample has, in the order of the blocks of `embedding`.
    patches: of an image, which are the last of its tokens; None: it has no others.
    """

    embed_dim: int
    pooled_dim: int
    num_classes: int
    vocab_size: int
    slots: Mapping[str, int] = field(default_factory=lambda: {"global": 1})
    patches: int | None = None


@dataclass(frozen=True)
class Ramp:
    """Raises a weight from 0 in epoch `first` to its full value in epoch `last`; epochs are counted from 0.

    Source: mSigLIP-CLoRA (ICIP 2026): factor(e) = clamp((e - first) / (last - first), 0, 1).

    Raises:
        UserError: they are not whole numbers with 0 <= first < last.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not (type(self.first) is type(self.last) is int and 0 <= self.first < self.last):
            raise UserError(
                f"ramp: first={self.first} and last={self.last} given, expected epochs, counted from 0, with "
                "0 <= first < last, such as {first: 5, last: 20}"
            )

    def factor(self, epoch: float) -> float:
        """Returns the factor of an epoch; of a fraction of an epoch that has begun, that of the epoch."""
        return min(1.0, max(0.0, (math.floor(epoch) - self.first) / (self.last - self.first)))


class LossTerm(nn.Module):
    """A weighted loss in a training objective.

    `needs` names what the term reads from `Features`: views ("image", "image_aug", "text", ...), "pids", ...
    The datamodule builds exactly the views that the terms of the objective need. `reads_tokens` says whether
    the term looks at tokens, not only at embeddings and pooled features. Parameters of its own (a classifier,
    a projector) are built from a `ModelSpec`. `weight` and `ramp`, which the config has for every term, are set by
    `build_objective`. `provides` names what other terms may read of it.

    Shape: ``forward(features) -> (scalar, stats)``. ``stats() -> {name: detached scalar}`` computes what to watch; it
    is called right after `forward`, without gradient, and in the steps that log it only. `dict` watches nothing.
    """

    needs: frozenset[str] = frozenset({"image", "text"})
    provides: frozenset[str] = frozenset()
    reads_tokens: ClassVar[bool] = False
    weight: float = 1.0
    ramp: Ramp | None = None

    def __init__(self, *, spec: ModelSpec) -> None:
        super().__init__()

    def weight_in(self, epoch: float) -> float:
        """Returns the weight in an epoch, counted from 0; within an epoch it is constant."""
        return self.weight if self.ramp is None else self.weight * self.ramp.factor(epoch)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        raise NotImplementedError

    def register_in(self, features: Features) -> None:
        """Registers what the term `provides`; runs before the first term of a step."""

    def reset_prototypes(self, images: Modality, texts: Modality, seed: int) -> None:
        """Starts from new pseudo labels of the training set; terms that keep nothing of them do nothing."""

    def after_step(self, features: Features) -> None:
        """Learns, after the backward pass, from the features of the step; terms that keep nothing do nothing."""


@dataclass(frozen=True)
class LossReport:
    """The losses of one step: `total` with gradient; by term and detached, raw, weighted and, if asked for, the rest.

    weights: of the terms in this epoch.
    gradients: the share of each term in the gradient at the features behind the embeddings: the norm of its own
        gradient, divided by the sum of all terms' norms. Terms that read tokens alone have none there.
    """

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]
    stats: dict[str, dict[str, Tensor]]
    weights: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """The weighted sum of loss terms, in fp32 whatever the AMP mode.

    Args:
        terms: name -> term; the name is what the loss is logged under.

    Raises:
        UserError: two terms provide the same.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        providers: dict[str, str] = {}
        for name, term in terms.items():
            for provided in term.provides:
                if provided in providers:
                    both = f"loss.terms.{providers[provided]} and loss.terms.{name}"
                    raise UserError(f"{both} both provide {provided!r}; leave one out")
                providers[provided] = name
        self.terms = nn.ModuleDict(terms)

    @property
    def needs(self) -> frozenset[str]:
        """The union of what the terms need."""
        return frozenset().union(*(term.needs for term in self._terms().values()))

    @property
    def provides(self) -> frozenset[str]:
        """The union of what the terms provide to each other."""
        return frozenset().union(*(term.provides for term in self._terms().values()))

    def forward(self, features: Features, *, with_stats: bool = True) -> LossReport:
        features.expect(self.needs)
        for term in self._terms().values():
            term.register_in(features)
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        stats: dict[str, dict[str, Tensor]] = {}
        shares: dict[str, Tensor] = {}
        weights = {name: term.weight_in(features.epoch) for name, term in self._terms().items()}
        for name, term in self._terms().items():
            with features.fp32():
                loss, stats_of_term = term(features)
                if with_stats:
                    with torch.no_grad():
                        stats[name] = stats_of_term()
            shares[name] = weights[name] * loss
            raw[name], weighted[name] = loss.detach(), shares[name].detach()
        gradients = gradient_shares(shares, features.sources()) if with_stats else {}
        return LossReport(torch.stack(list(shares.values())).sum(), raw, weighted, stats, weights, gradients)

    def reset_prototypes(self, images: Modality, texts: Modality, seed: int) -> None:
        """Starts every term from new pseudo labels of the training set."""
        for term in self._terms().values():
            term.reset_prototypes(images, texts, seed)

    def after_step(self, features: Features) -> None:
        """Lets every term learn, after the backward pass, from the features of the step."""
        for term in self._terms().values():
            term.after_step(features)

    def _terms(self) -> dict[str, LossTerm]:
        return dict(self.terms.items())  # type: ignore[arg-type]


def gradient_shares(losses: Mapping[str, Tensor], sources: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns the share of each loss in the gradient at `sources`, whose norms it adds up; of those that reach them.

    The graph stays; parameters get no gradient.
    """
    norms: dict[str, Tensor] = {}
    for name, loss in losses.items() if sources else ():
        found = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
        own = [gradient.float().square().sum() for gradient in found if gradient is not None]
        if own:
            norms[name] = torch.stack(own).sum().sqrt()
    return {name: norm / torch.stack(list(norms.values())).sum().clamp_min(1e-30) for name, norm in norms.items()}
