"""Checks of features and identities before ranking."""

import torch
from torch import Tensor

from utils.errors import UserError
from utils.ranking.ranks import Grouped


def check_positives(side: Grouped, pids: Tensor, name: str, others: str, way_out: str) -> None:
    """Raises `UserError` if an item of a side has no positive on the other side."""
    lost = side.order[side.matches == 0]
    if len(lost):
        first = int(lost.min())
        raise UserError(
            f"{name} {first} (pid {int(pids[first])}) has no positive in the {others} ({len(lost)} of"
            f" {len(pids)} have none): add its identity to the {others} or {way_out}"
        )


def check_sides(features: dict[str, Tensor], pids: dict[str, Tensor]) -> None:
    """Raises `UserError` if features or identities of the two sides, given by name, cannot be ranked."""
    check_features(features)
    for name, side in features.items():
        _check_pids(side, pids[name], name)


def check_features(sides: dict[str, Tensor]) -> None:
    """Raises `UserError` if the features of the two sides, given by name, cannot be compared."""
    for name, features in sides.items():
        if features.ndim != 2 or not features.is_floating_point():
            raise UserError(
                f"{name} features must be floating point of shape (number, dimension),"
                f" got {features.dtype} of shape {tuple(features.shape)}"
            )
        if len(features) == 0:
            raise UserError(f"there are no {name} features to rank: the split is empty")
        finite = features.isfinite().all(dim=1)
        if not finite.all():
            raise UserError(
                f"{name} feature {int(finite.logical_not().nonzero()[0])} is not finite"
                f" ({int((~finite).sum())} of {len(features)} are not): the model that made it holds NaN or inf"
            )
    (name, one), (other_name, other) = sides.items()
    if one.shape[1] != other.shape[1] or one.device != other.device:
        raise UserError(
            f"{name} features {tuple(one.shape)} on {one.device} and {other_name} features"
            f" {tuple(other.shape)} on {other.device} must share dimension and device"
        )


def _check_pids(features: Tensor, pids: Tensor, name: str) -> None:
    if pids.is_floating_point() or pids.is_complex() or pids.dtype == torch.bool:
        raise UserError(f"{name} pids must be integers, got {pids.dtype}")
    if pids.shape != features.shape[:1] or pids.device != features.device:
        raise UserError(
            f"{name} pids {tuple(pids.shape)} on {pids.device} must be one per feature"
            f" {tuple(features.shape)} on {features.device}"
        )
