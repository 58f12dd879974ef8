"""Optimizers over named parameter groups."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from solver.groups import DEFAULT, ParamGroup, split_parameters
from utils.errors import UserError, nearest
from utils.training.muon import MuonAdamW


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    name: str,
    algorithm: str,
    param_groups: Mapping[str, Any],
    fused: bool | None = None,
) -> Optimizer:
    """Returns the optimizer of all trainable parameters.

    Each of its groups has `name`, `group` (see `learning_rates`), `names` (of its parameters), and `lr_start` and
    `lr_end` for the schedule.

    Args:
        name: name of the recipe in `config/optimizer/`.
        algorithm: "adamw", "adam", "adamw8bit" (bitsandbytes), or "muon"
            (with adamw for all but matrices of layers).
        param_groups: see `solver.groups.split_parameters`.
        fused: whether one kernel updates all parameters. None: true if all are on a CUDA device. See `can_fuse`.

    Raises:
        UserError: the algorithm is unknown, bitsandbytes is missing, or the groups are invalid.
    """
    if algorithm not in ALGORITHMS:
        raise UserError(
            f"optimizer {name!r}: there is no algorithm {algorithm!r}, only {', '.join(ALGORITHMS)}."
            f"{nearest(algorithm, set(ALGORITHMS))}"
        )
    split = split_parameters(named_parameters, param_groups)
    groups: list[dict[str, Any]] = [
        {
            "params": [*group.parameters.values()],
            "name": group.name,
            "group": _known_rates(group, split),
            "names": [*group.parameters],
            "lr": group.lr,
            "lr_start": group.lr_start,
            "lr_end": group.lr_end,
            "weight_decay": group.weight_decay,
            "betas": group.betas,
            "eps": group.eps,
        }
        for group in split
    ]
    return ALGORITHMS[algorithm](groups, fused)


def _known_rates(group: ParamGroup, groups: Sequence[ParamGroup]) -> str:
    """Returns "default" if it has the same rates, else the shortest prefix of the name that is a group with them."""
    steps = group.name.split("/")
    beginnings = [DEFAULT, *("/".join(steps[: number + 1]) for number in range(len(steps)))]
    rates = {other.name: other.rates for other in groups}
    return next(name for name in beginnings if rates.get(name) == group.rates)


def can_fuse(fused: bool | None, precision: str, gradient_clip_val: float | None) -> bool | None:
    """Returns `fused`, but False instead of None if gradients are clipped under fp16.

    A fused optimizer unscales the fp16 gradients itself, after clipping, so Lightning refuses this combination.

    Raises:
        UserError: `fused` is true in this case.
    """
    if precision != "16-mixed" or not gradient_clip_val:
        return fused
    if fused:
        raise UserError(
            f"optimizer.fused=true does not work with trainer.gradient_clip_val={gradient_clip_val} and "
            "trainer.precision=16-mixed, which scales gradients: leave optimizer.fused=null, or set "
            "trainer.precision=bf16-mixed"
        )
    return False


def learning_rates(optimizer: Optimizer | Mapping[str, Any]) -> dict[str, float]:
    """Returns group name -> current learning rate. "new/vectors" is left out if "new" has the same rates.

    Args:
        optimizer: an optimizer or its state dict.
    """
    groups = optimizer["param_groups"] if isinstance(optimizer, Mapping) else optimizer.param_groups
    return {group["group"]: float(group["lr"]) for group in groups}


def under_settings_of(optimizer: Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict with the moments and step counts of `saved` and the group settings of `optimizer`.

    A parameter keeps its state even if it is in another group now, as vectors are after decay was switched on.

    Args:
        optimizer: a new optimizer of the same parameters.
        saved: the state dict of the previous optimizer.

    Raises:
        UserError: `saved` has other parameters, or has other groups and no names of parameters, or comes from an older
            version of this project, whose groups selected parameters by name.
    """
    if any(str(group.get("name")).endswith("/no_decay") for group in saved["param_groups"]):
        raise UserError(
            "the checkpoint to continue is of an earlier version of this project, in which optimizer.param_groups had "
            "another meaning; continue it with the git commit that its metrics.json names"
        )
    own = [{**group, "initial_lr": group["lr"]} for group in optimizer.state_dict()["param_groups"]]
    try:
        numbers = _numbers(saved["param_groups"], own)
        state = {
            number: saved["state"][numbers[name]]
            for group in own
            for name, number in zip(group["names"], group["params"], strict=True)
            if numbers[name] in saved["state"]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "the optimizer of the checkpoint to continue has other parameters than the model, or other groups; "
            "continue with the optimizer.param_groups that it was trained with"
        ) from error
    return {**saved, "state": state, "param_groups": own}


def _numbers(groups: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns parameter name -> its number in a saved state. Raises KeyError or ValueError if groups do not fit."""
    is_named = all("names" in group for group in groups)  # older states have no names, but the same groups as `own`
    names = [group["names"] for group in (groups if is_named else own)]
    return {
        name: number
        for group, its_names in zip(groups, names, strict=True)
        for name, number in zip(its_names, group["params"], strict=True)
    }


def _fused(groups: list[dict[str, Any]], fused: bool | None) -> bool | None:
    """Returns the argument `fused` for torch: True, or None. None is faster than False, the slowest form."""
    if fused is None:
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return True if fused else None


def _adamw(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    return AdamW(groups, fused=_fused(groups, fused))


def _adam(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    return Adam(groups, fused=_fused(groups, fused))


def _muon(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    if fused:
        raise UserError("optimizer.fused=true: muon has no fused form; leave fused null.")
    return MuonAdamW(groups)


def _adamw8bit(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    if fused:
        raise UserError("optimizer.fused=true: adamw8bit has no fused form; leave fused null.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimizer.algorithm=adamw8bit needs the package bitsandbytes, which cannot be imported "
            f"({error}); run `uv sync --extra bnb`."
        ) from error
    return AdamW8bit(groups)


ALGORITHMS: dict[str, Callable[[list[dict[str, Any]], bool | None], Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "adamw8bit": _adamw8bit,
    "muon": _muon,
}
