"""LossTerm, Objective and LossReport: how losses are composed and reported."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from model.features import Features
from model.prototypes import Modality
from utils.errors import UserError

Stats = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of the composed model and data, from which loss terms build their parameters.

    slots: number of embeddings per sample at each level, in the order of the blocks of `embedding`.
    widths: width of each block of `embedding`. Empty: it has one block.
    patches: number of patches of an image. They are its last tokens. None: every token is a patch. 0: the image tower
        has no patches, and terms that read tokens are refused.
    """

    embed_dim: int
    pooled_dim: int
    num_classes: int
    vocab_size: int
    slots: Mapping[str, int] = field(default_factory=lambda: {"global": 1})
    patches: int | None = None
    widths: tuple[int, ...] = ()


class EmbeddedPairs(NamedTuple):
    """A batch of embedded pairs: `image` and `text` ``(B, E)``, `pids` ``(B,)``, and scale and bias of the logits.

    Row i of `image` and `text` is one pair.
    """

    image: Tensor
    text: Tensor
    pids: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


@dataclass(frozen=True)
class Ramp:
    """Raises a weight from 0 in epoch `first` to its full value in epoch `last`; epochs are counted from 0.

    Source: mSigLIP-CLoRA (ICIP 2026): factor(e) = clamp((e - first) / (last - first), 0, 1).

    Raises:
        UserError: `first` and `last` are not whole numbers with 0 <= first < last.
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
        """Returns the factor in `epoch`, from 0 to 1. Within an epoch the factor is constant."""
        return min(1.0, max(0.0, (math.floor(epoch) - self.first) / (self.last - self.first)))


class LossTerm(nn.Module):
    """A weighted loss in a training objective.

    `needs` names what the term reads from `Features`: views ("image", "image_aug", "text", ...), "pids", ...
    The datamodule builds exactly the views that the terms of the objective need. `reads_tokens` is true if the term
    reads tokens, and not only embeddings and pooled features. `fixed_length` is true if it needs captions that are
    padded to the full length, because it reads padding or compares tokens of several processes. The term builds its own
    parameters (a classifier, a projector) from a `ModelSpec`. `build_objective` sets `weight` and `ramp`, which every
    term has in the config. `provides` names the tensors that this term makes for other terms. A term that is `weighted`
    multiplies the loss of each pair by the label "pair_weights".

    Shape: ``forward(features) -> (scalar, stats)``. ``stats() -> {name: detached scalar}`` computes figures to log. It
    is called right after `forward`, without gradient, and only in the steps that log. `dict` logs nothing.
    """

    needs: frozenset[str] = frozenset({"image", "text"})
    provides: frozenset[str] = frozenset()
    reads_tokens: ClassVar[bool] = False
    fixed_length: bool = False
    weight: float = 1.0
    ramp: Ramp | None = None
    weighted: bool = False

    def __init__(self, *, spec: ModelSpec) -> None:
        super().__init__()

    def weight_in(self, epoch: float) -> float:
        """Returns the weight in `epoch`, counted from 0. Within an epoch the weight is constant."""
        return self.weight if self.ramp is None else self.weight * self.ramp.factor(epoch)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        raise NotImplementedError

    @property
    def weight_needs(self) -> frozenset[str]:
        """What the term needs in order to be weighted."""
        return frozenset({"pair_weights"} if self.weighted else ())

    def weights_of(self, features: Features) -> Tensor | None:
        """Returns the weights of the pairs ``(B,)``, or None if the term is not weighted."""
        return features.labels("pair_weights") if self.weighted else None

    def pair_losses(self, pairs: EmbeddedPairs) -> Tensor:
        """Returns the losses ``(B, C)`` of each pair, one per embedding, from which a labelling finds the weights."""
        raise NotImplementedError

    def register_in(self, features: Features) -> None:
        """Registers what the term `provides`. It is called before any term of the step runs."""

    def reset_prototypes(self, images: Modality, texts: Modality, seed: int) -> None:
        """Replaces the term's prototypes after new pseudo labels were found. Terms without prototypes do nothing."""

    def after_step(self, features: Features) -> None:
        """Updates the term's prototypes after the backward pass. Terms without prototypes do nothing."""


@dataclass(frozen=True)
class LossReport:
    """The losses of one step. `total` has a gradient; all other values are detached and listed by term.

    weights: the weight of each term in this epoch.
    gradients: the norm of the term's gradient at the features before normalisation, divided by the sum of these norms
        over all terms. Terms that read only tokens are absent. `stats` and `gradients` are empty without statistics.
    """

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]
    stats: dict[str, dict[str, Tensor]]
    weights: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """The weighted sum of loss terms. It is computed in fp32, whatever the AMP mode.

    Args:
        terms: name -> term. The loss is logged under this name.

    Raises:
        UserError: two terms provide a tensor of the same name.
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

    @property
    def fixed_length(self) -> bool:
        """Whether a term needs captions that are padded to the full length."""
        return any(term.fixed_length for term in self._terms().values())

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

    def pair_losses(self, pairs: EmbeddedPairs) -> Tensor:
        """Returns the losses ``(B, C)`` of each pair in the weighted terms that have a loss per pair.

        Raises:
            UserError: no term has one.
        """
        losses = [
            term.pair_losses(pairs)
            for term in self._terms().values()
            if term.weighted and type(term).pair_losses is not LossTerm.pair_losses
        ]
        if not losses:
            raise UserError(
                "pseudo_label=consensus divides pairs by a loss of each pair, which no weighted term of this objective "
                "has; add one such as '+loss/term@loss.terms.tal=tal', or set loss.terms.sdm.weighted=true"
            )
        return torch.cat(losses, dim=1)

    def reset_prototypes(self, images: Modality, texts: Modality, seed: int) -> None:
        """Replaces the prototypes of every term after new pseudo labels were found."""
        for term in self._terms().values():
            term.reset_prototypes(images, texts, seed)

    def after_step(self, features: Features) -> None:
        """Updates the prototypes of every term after the backward pass."""
        for term in self._terms().values():
            term.after_step(features)

    def _terms(self) -> dict[str, LossTerm]:
        return dict(self.terms.items())  # type: ignore[arg-type]


def gradient_shares(losses: Mapping[str, Tensor], sources: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns loss name -> norm of its gradient at `sources`, divided by the sum of these norms over all losses.

    Losses without a gradient there are absent. The graph is kept, and parameters get no gradient.
    """
    norms: dict[str, Tensor] = {}
    for name, loss in losses.items() if sources else ():
        found = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
        own = [gradient.float().square().sum() for gradient in found if gradient is not None]
        if own:
            norms[name] = torch.stack(own).sum().sqrt()
    if not norms:
        return {}
    total = torch.stack(list(norms.values())).sum().clamp_min(1e-30)
    return {name: norm / total for name, norm in norms.items()}
