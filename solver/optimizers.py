"""Optimizers over named parameter groups."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from solver.groups import DEFAULT, ParamGroup, split_parameters
from solver.muon import MuonAdamW
from utils.errors import UserError, nearest


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    name: str,
    algorithm: str,
    param_groups: Mapping[str, Any],
    fused: bool | None = None,
) -> Optimizer:
    """Returns the optimizer of all trainable parameters.

    Each of its groups carries `name`, `group` (see `learning_rates`), `names` (of its parameters), and `lr_start`,
    `lr_end` for the schedule.

    Args:
        name: of the recipe, as in `config/optimizer/`.
        algorithm: "adamw", "adam", "adamw8bit" (bitsandbytes), or "muon" (with adamw for all but layers' matrices).
        param_groups: see `solver.groups.split_parameters`.
        fused: whether one kernel updates all parameters; None: where all are on a CUDA device. See `can_fuse`.

    Raises:
        UserError: unknown algorithm, bitsandbytes missing, or groups that cannot be.
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
    """Returns "default" or the shortest beginning of the group's name that is, with the same rates, one of `groups`."""
    steps = group.name.split("/")
    beginnings = [DEFAULT, *("/".join(steps[: number + 1]) for number in range(len(steps)))]
    rates = {other.name: other.rates for other in groups}
    return next(name for name in beginnings if rates.get(name) == group.rates)


def can_fuse(fused: bool | None, precision: str, gradient_clip_val: float | None) -> bool | None:
    """Returns `fused`, or False instead of None where gradients are clipped while they are scaled for fp16.

    A fused optimizer takes the scale away itself, which is after clipping; Lightning refuses it then.

    Raises:
        UserError: it was asked for there.
    """
    if precision != "16-mixed" or not gradient_clip_val:
        return fused
    if fused:
        raise UserError(
            f"optimizer.fused=true cannot be with trainer.gradient_clip_val={gradient_clip_val} under "
            "trainer.precision=16-mixed, where gradients are scaled: leave optimizer.fused=null, or set "
            "trainer.precision=bf16-mixed"
        )
    return False


def learning_rates(optimizer: Optimizer | Mapping[str, Any]) -> dict[str, float]:
    """Returns group name -> current learning rate; "new/vectors" is left out where "new" has the same rates.

    Args:
        optimizer: itself or its state dict.
    """
    groups = optimizer["param_groups"] if isinstance(optimizer, Mapping) else optimizer.param_groups
    return {group["group"]: float(group["lr"]) for group in groups}


def under_settings_of(optimizer: Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the saved state of an optimizer, moments and step counts, under the settings of `optimizer`'s groups.

    A parameter keeps its state when it is in another group now, as vectors are when decay is switched on.

    Args:
        optimizer: a new one, over the same parameters.
        saved: the state dict of the one before.

    Raises:
        UserError: it has other parameters, does not tell their names and has other groups, or is of the time when
            the groups of the config selected by name alone.
    """
    if any(str(group.get("name")).endswith("/no_decay") for group in saved["param_groups"]):
        raise UserError(
            "the checkpoint to continue is of an earlier version of this project, whose optimizer.param_groups meant "
            "something else; continue it with the git commit that its metrics.json names"
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
    """Returns parameter -> its number in a saved state with these groups; KeyError or ValueError if they do not fit."""
    is_named = all("names" in group for group in groups)  # older ones are not, and then have the same groups as `own`
    names = [group["names"] for group in (groups if is_named else own)]
    return {
        name: number
        for group, its_names in zip(groups, names, strict=True)
        for name, number in zip(its_names, group["params"], strict=True)
    }


def _fused(groups: list[dict[str, Any]], fused: bool | None) -> bool | None:
    """What torch is told: None leaves it its fastest form that is not fused, False would be the slowest."""
    if fused is None:
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return True if fused else None


def _adamw(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    return AdamW(groups, fused=_fused(groups, fused))


def _adam(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    return Adam(groups, fused=_fused(groups, fused))


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
    "muon": lambda groups, _: MuonAdamW(groups),
}
