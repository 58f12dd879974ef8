"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) of a caption's best images."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from utils.errors import UserError, check_positive

KEY = "evaluation.rerankers.k_reciprocal"


class KReciprocal:
    """A re-ranker by distance: (1 - lambda) times Jaccard plus lambda times plain, from the caption to an image.

    Neighbours come from the caption and its `top` images only, so time grows with Q x top^2 x E, whatever the size of
    the gallery. Within this set the distances are those of `model.prototypes.k_reciprocal_jaccard`: with
    d = 2 - 2 cos, N(i, k) is i and its k nearest others, R(i, k) = {j in N(i, k): i in N(j, k)}. For each c in
    R(i, k1), R(c, round(k1 / 2)) is added to R(i, k1) if more than 2/3 of it lies in R(i, k1). V_i = exp(-d) on this
    enlarged set, normalised to sum 1, then averaged over the k2 nearest of i, i included; J_ij = 1 - s / (2 - s)
    with s = sum_k min(V_ik, V_jk).
    Ties go to the better image of the plain ranking.

    The nearest neighbours of an image are images, seldom a caption. So a caption often has only itself as reciprocal
    neighbour, and with k2 = 1 it shares nothing with any image. With k2 > 1, its V is the mean over itself and its
    k2 - 1 best images, and J compares the neighbours of an image with theirs.

    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding (CVPR 2017), eqs. (3)-(12). The
    authors divide d by its largest value in the data; this code does not.

    Args:
        top: number of a caption's best images that get a new order.
        k1, k2: numbers of neighbours, for the encoding V and for its average.
        lambda_: weight of the plain distance, from 0 to 1; 1 leaves the plain ranking.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(self, *, top: int = 100, k1: int = 20, k2: int = 6, lambda_: float = 0.3) -> None:
        for name, value in (("top", top), ("k1", k1), ("k2", k2)):
            check_positive(f"{KEY}.{name}", value)
        if isinstance(lambda_, bool) or not isinstance(lambda_, int | float) or not 0 <= lambda_ <= 1:
            raise UserError(f"{KEY}.lambda_: {lambda_!r} given, expected a number from 0 to 1")
        self.top = top
        self.name = "k_reciprocal"
        self.options = {"top": top, "k1": k1, "k2": k2, "lambda": lambda_}
        self._k1, self._k2, self._lambda = k1, k2, lambda_

    def __call__(self, texts: Tensor, images: Tensor) -> Tensor:
        """Returns scores ``(B, n)`` of the `images` ``(B, n, E)`` of each of the `texts` ``(B, E)``."""
        features = normalize(torch.cat([texts[:, None], images], dim=1), dim=2)  # (B, N, E), the caption first
        cosines = features @ features.mT
        plain = 2 - 2 * cosines[:, 0, 1:]
        return -((1 - self._lambda) * self._jaccard(cosines) + self._lambda * plain)

    def _jaccard(self, cosines: Tensor) -> Tensor:
        """Returns the distances ``(B, N - 1)`` of the first of N samples to the others; `cosines` ``(B, N, N)``."""
        own = torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
        order = cosines.masked_fill(own, torch.inf).sort(dim=2, descending=True, stable=True).indices
        reciprocal, half = (_reciprocal(order, k) for k in (self._k1, round(self._k1 / 2)))
        overlap = reciprocal @ half  # at (i, c): |R(c, k1 / 2) within R(i, k1)|, as `half` is symmetric
        joins = reciprocal * (3 * overlap > 2 * half.sum(dim=2)[:, None, :])
        members = (reciprocal + joins @ half) > 0
        weights = torch.exp((2 * cosines - 2).clamp_max(0)) * members
        weights /= weights.sum(dim=2, keepdim=True)
        encoding = _among(order, self._k2) @ weights / min(self._k2, cosines.shape[1])
        shared = encoding[:, :1].minimum(encoding[:, 1:]).sum(dim=2)
        return 1 - shared / (2 - shared)


def _among(order: Tensor, count: int) -> Tensor:
    """Returns ``(B, N, N)``, 1 at (i, j) if j is among the first `count` entries of row i of `order` ``(B, N, N)``."""
    return torch.zeros(order.shape, device=order.device).scatter_(2, order[:, :, :count], 1)


def _reciprocal(order: Tensor, k: int) -> Tensor:
    """Returns ``(B, N, N)``, 1 at (i, j) if i = j, or if i and j are each among the other's k nearest."""
    among = _among(order, k + 1)
    return among * among.mT
