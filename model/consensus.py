"""Confident consensus division of RDE (Qin et al., CVPR 2024): which training pairs are taken to match."""

import warnings
from collections.abc import Mapping
from math import ceil
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.labeling import EncodedPairs, Labeling
from model.objectives.base import EmbeddedPairs, Objective
from utils.errors import check_choice, check_positive

Fit = Literal["auto", "coarse", "fine"]
FITS: Final[Mapping[str, dict[str, float]]] = {
    "coarse": {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4},
    "fine": {"max_iter": 100, "tol": 1e-4, "reg_covar": 1e-6},
}
MUCH_NOISE: Final = 0.4


class Division(NamedTuple):
    """A division of P pairs, on the CPU.

    weights: 1 for pairs that are taken to match, else 0, fp32. Shape: ``(P,)``.
    losses: mean over the embeddings of the loss of each pair, from 0 to 1, fp32. Shape: ``(P,)``.
    disputed: bool ``(P,)``, true for the pairs on which the embeddings disagree.
    """

    weights: Tensor
    losses: Tensor
    disputed: Tensor


class Consensus(Labeling):
    """The division of the training pairs into clean and noisy ones by their losses, before every epoch.

    Source: RDE, section 3.3, and the authors' code. The weighted losses of the objective give each pair one loss per
    embedding, in batches of the training size and in evaluation mode. The losses of an embedding are scaled to 0..1.
    A Gaussian mixture of two components is fitted. A pair is clean for the embedding if its probability to belong to
    the component of the lower mean is above 0.5, or above the lowest percentile if all probabilities are. A pair that
    is clean for all embeddings has weight 1, for none weight 0, and for some the weight of a coin.

    Decision: pairs are encoded without augmentation, while the released code takes those of the training loader.

    Args:
        batch_size: number of pairs that are compared with each other, as in training.
        fit: "coarse" or "fine": the iterations and tolerance of the mixture. "auto": fine where `noise_rate` is above
            0.4. The authors also use "fine" on RSTPReid.
        noise_rate: share of noisy pairs that is expected.

    Attributes:
        pair_weights, losses: as in `Division`, of the latest division.
    """

    provides = frozenset({"pair_weights"})
    reads_pids = True
    resizable = frozenset({"pair_weights", "losses"})
    pair_weights: Tensor
    losses: Tensor

    def __init__(self, *, name: str, every_n_epochs: int, batch_size: int, fit: Fit, noise_rate: float) -> None:
        super().__init__(name=name, every_n_epochs=every_n_epochs)
        check_choice("pseudo_label.fit", fit, get_args(Fit))
        check_positive("pseudo_label.batch_size", batch_size)
        self.batch_size = batch_size
        self.fit = ("fine" if noise_rate > MUCH_NOISE else "coarse") if fit == "auto" else fit
        self.register_buffer("pair_weights", torch.zeros(0))
        self.register_buffer("losses", torch.zeros(0))

    def find(self, pairs: EncodedPairs, objective: Objective, seed: int) -> Division:
        losses = self._losses(pairs, objective, seed)
        clean = np.stack([self._clean(column, seed) for column in losses.T])
        all_agree, any_is = clean.all(axis=0), clean.any(axis=0)
        coins = np.random.default_rng(seed).integers(2, size=len(losses)).astype(bool)
        return Division(
            weights=torch.from_numpy(all_agree | (any_is & coins)).float(),
            losses=torch.from_numpy(losses.mean(axis=1)).float(),
            disputed=torch.from_numpy(any_is & ~all_agree),
        )

    def take(self, found: Division, pairs: EncodedPairs, objective: Objective, seed: int) -> None:
        device = self.pair_weights.device
        self.pair_weights, self.losses = found.weights.to(device), found.losses.to(device)

    def statistics(self, found: Division, pairs: EncodedPairs) -> dict[str, float]:
        """Returns the shares kept and disputed, and the agreement with the true noise where that is known.

        auc: area under the ROC curve of the losses as a sign of noise. kept_clean: share of the kept pairs that match.
        """
        figures = {"kept": found.weights.mean().item(), "disputed": found.disputed.float().mean().item()}
        if pairs.true_pairs is not None and 0 < pairs.true_pairs.sum() < len(found.weights):
            truth = pairs.true_pairs.cpu()
            from sklearn.metrics import roc_auc_score

            figures["auc"] = float(roc_auc_score(~truth.numpy(), found.losses.numpy()))
            figures["kept_clean"] = truth[found.weights > 0].float().mean().item()
        return figures

    def describe(self) -> str:
        kept, whole = int(self.pair_weights.sum()), len(self.pair_weights)
        return f"labels  {kept:,} of {whole:,} pairs are taken to match ({100 * kept / whole:.1f} %)"

    def announce(self) -> str:
        return f"labels  pairs are divided into clean and noisy by their losses ({self.name}, {self.fit} fit)"

    def _losses(self, pairs: EncodedPairs, objective: Objective, seed: int) -> NDArray[np.float64]:
        """Returns the losses ``(P, C)`` of all pairs, each column from 0 to 1."""
        size = len(pairs.texts)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(pairs.texts.device)
        batches = order.tensor_split(ceil(size / self.batch_size))
        logits = pairs.logit_scale, pairs.logit_bias
        images, pids = pairs.text_images.to(order.device), pairs.text_pids
        with torch.no_grad():
            rows = [
                objective.pair_losses(EmbeddedPairs(pairs.images[images[rows]], pairs.texts[rows], pids[rows], *logits))
                for rows in batches
            ]
        losses = torch.cat(rows)[order.argsort()].double()
        lowest, highest = losses.amin(dim=0), losses.amax(dim=0)
        return ((losses - lowest) / (highest - lowest).clamp_min(1e-12)).cpu().numpy()

    def _clean(self, losses: NDArray[Any], seed: int) -> NDArray[np.bool_]:
        """Returns bool ``(P,)``: whether each pair is clean by its losses ``(P,)`` in one embedding."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        if losses.max() == losses.min():
            return np.ones(len(losses), dtype=bool)
        column = losses[:, None]
        mixture = GaussianMixture(n_components=2, random_state=seed % 2**32, **FITS[self.fit])
        with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # the published iterations are few
            mixture.fit(column)
        clean = mixture.predict_proba(column)[:, mixture.means_.argmin()]
        limit = 0.5 if clean.min() <= 0.5 else np.sort(clean)[len(clean) // 100]
        return clean > limit
