"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) of the best images of a caption."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from utils.errors import UserError, check_positive

KEY = "evaluation.rerankers.k_reciprocal"


class KReciprocal:
    """Scores images by (1 - lambda) times the Jaccard distance to the caption and lambda times the plain one.

    Neighbours are those among a caption and its `top` images, so that time grows with Q x top^2 x E and the gallery's
    size does not matter. Within that set the distances are those of `model.prototypes.k_reciprocal_jaccard`: with
    d = 2 - 2 cos, N(i, k) is i and its k nearest others, R(i, k) = {j in N(i, k): i in N(j, k)}; R(c, round(k1 / 2))
    of each c in R(i, k1) joins it when more than 2/3 of it lies in there; V_i = exp(-d) on the joined set, normalised
    to sum 1, then averaged over the k2 nearest of i, itself included; J_ij = 1 - s / (2 - s) with
    s = sum_k min(V_ik, V_jk).
    Ties go to the better image of the plain ranking.

    A caption is seldom among the nearest of an image, whose nearest are images: it then is its own reciprocal
    neighbour alone, and with k2 = 1 it shares nothing with any image. With k2 > 1 its encoding is the mean over its
    k2 - 1 best images, and J tells which images have the same neighbours as these.

    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding (CVPR 2017), eqs. (3)-(12). The
    authors divide d by its largest value in the data; here it is not divided.

    Args:
        top: images of a caption that are put in a new order.
        k1, k2: neighbours of the encoding and of its averaging.
        lambda_: weight of the plain distance, from 0 to 1; 1 leaves the plain ranking.

    Raises:
        UserError: a number out of range.
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
    """Returns ``(B, N, N)``, 1 at (i, j) where j is one of the first `count` of i's row of `order` ``(B, N, N)``."""
    return torch.zeros(order.shape, device=order.device).scatter_(2, order[:, :, :count], 1)


def _reciprocal(order: Tensor, k: int) -> Tensor:
    """Returns ``(B, N, N)``, 1 at (i, j) where each of i and j is the other or among its k nearest."""
    among = _among(order, k + 1)
    return among * among.mT
