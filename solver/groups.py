"""Named parameter groups: which parameter is optimised how."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prettytable import PrettyTable
from torch import nn

from utils.errors import UserError, nearest

DEFAULT: Final = "default"
RATES: Final = ("lr", "lr_start", "lr_end")
SHARED: Final = (*RATES, "weight_decay", "betas", "eps")
CONFIG: Final = "optimizer.param_groups"
FROZEN: Final = "frozen"
PARTS: Final = {
    "LoRA adapters": r"\.lora_",
    "image tower": r"\bvision_model\.|\bvisual_projection\.",
    "token table": r"\btoken_embedding\.",
    "text tower": r"\btext_model\.|\btext_projection\.",
    "temperature": r"\blogit_(scale|bias)$",
    "losses": r"^objective\.",
    "head": r"\bhead\.",
    "other": "",
}


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that are optimised alike.

    lr, lr_start, lr_end: learning rates after the warm-up, at its first step, at the last step of a cosine.
    parameters: name -> trainable parameter, in the model's order.
    """

    name: str
    lr: float
    lr_start: float
    lr_end: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def by_decay(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Returns (weight decay, parameters), without empty lists: vectors and scalars are never decayed."""
        parameters = list(self.parameters.values())
        if self.weight_decay == 0:
            split = [(0.0, parameters)]
        else:
            split = [
                (self.weight_decay, [p for p in parameters if p.ndim >= 2]),
                (0.0, [p for p in parameters if p.ndim < 2]),
            ]
        return [(decay, tensors) for decay, tensors in split if tensors]


def split_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]], param_groups: Mapping[str, Any]
) -> list[ParamGroup]:
    """Returns the groups in the order of `param_groups`; every trainable parameter is in exactly one.

    Args:
        named_parameters: as `nn.Module.named_parameters` gives them; frozen ones are left out.
        param_groups: group name -> settings (`SHARED`; except in `default` also `match` and `lr_scale`).
            `match` lists regular expressions, one of which has to match a parameter's whole name; `default`
            takes what no other group matches. The rates of a group are those of `default` times `lr_scale`
            (1) unless the group sets them; whatever else it leaves out or null is as in `default`. A group
            may end up without parameters: the classifier's, where no loss has one.

    Raises:
        UserError: a parameter that two groups match, nothing to train, or settings that cannot be.
    """
    groups = {name: _group(name, settings, param_groups) for name, settings in param_groups.items()}
    patterns = {name: _patterns(name, settings) for name, settings in param_groups.items() if name != DEFAULT}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        owners = [group for group, own in patterns.items() if any(p.fullmatch(name) for p in own)]
        if len(owners) > 1:
            raise UserError(
                f"{CONFIG}: parameter {name!r} is matched by the groups {' and '.join(map(repr, owners))}; "
                "narrow the `match` of one of them."
            )
        groups[owners[0] if owners else DEFAULT].parameters[name] = parameter
    if not any(group.parameters for group in groups.values()):
        raise UserError("there is nothing to train: every parameter of the model is frozen.")
    return list(groups.values())


def parameter_table(named_parameters: Iterable[tuple[str, nn.Parameter]], param_groups: Mapping[str, Any]) -> str:
    """Returns a table with a row for each part of the model and group that trains it, then totals.

    A row's weight decay is that of its matrices; vectors and scalars have none.

    Args:
        named_parameters, param_groups: as in `split_parameters`; what is frozen has rows of its own.
    """
    parameters = dict(named_parameters)
    groups = split_parameters(parameters.items(), param_groups)
    owners = {name: group.name for group in groups for name in group.parameters}
    rates = {**{group.name: f"{group.lr:g}" for group in groups}, FROZEN: ""}
    decays = {tensor: decay for group in groups for decay, tensors in group.by_decay() for tensor in tensors}
    rows: defaultdict[tuple[str, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        rows[part, owners.get(name, FROZEN)].append(parameter)

    table = PrettyTable(["part", "group", "lr", "weight decay", "parameters"], align="r")
    table.align.update(part="l", group="l")
    shown = [of for of in itertools.product(PARTS, rates) if of in rows]
    for part, owner in shown:
        tensors = rows[part, owner]
        decay = "" if owner == FROZEN else f"{max(decays[tensor] for tensor in tensors):g}"
        last = (part, owner) == shown[-1]
        table.add_row([part, owner, rates[owner], decay, f"{_size(tensors):,}"], divider=last)
    trained, everything = _size(decays), _size(parameters.values())
    table.add_row(["trainable", f"{trained / everything:.1%}", "", "", f"{trained:,}"])
    table.add_row(["all", "", "", "", f"{everything:,}"])
    return str(table)


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _group(name: str, own: Any, param_groups: Mapping[str, Any]) -> ParamGroup:
    default = _settings(DEFAULT, param_groups.get(DEFAULT))
    own = _settings(name, own)
    keys = SHARED if name == DEFAULT else ("match", "lr_scale", *SHARED)
    for key in own:
        if key not in keys:
            raise UserError(f"{CONFIG}.{name}.{key}: there is no such setting.{nearest(str(key), keys)}")

    def value(key: str) -> Any:
        for settings in (own, default):
            if settings.get(key) is not None:
                return settings[key]
        raise UserError(f"{CONFIG}.{DEFAULT}.{key} is not set; every group needs it.")

    scale = 1.0 if own.get("lr_scale") is None else _number(own["lr_scale"], f"{name}.lr_scale")
    rates = {key: _number(value(key), f"{name}.{key}") * (scale if own.get(key) is None else 1.0) for key in RATES}
    if rates["lr"] == 0:
        raise UserError(f"{CONFIG}.{name}: its learning rate is 0; freeze what is not to be trained.")
    for key in ("lr_start", "lr_end"):
        if rates[key] > rates["lr"]:
            raise UserError(f"{CONFIG}.{name}: {key}={rates[key]:g} is above lr={rates['lr']:g}; lower it too.")
    return ParamGroup(
        name=name,
        lr=rates["lr"],
        lr_start=rates["lr_start"],
        lr_end=rates["lr_end"],
        weight_decay=_number(value("weight_decay"), f"{name}.weight_decay"),
        betas=_betas(value("betas"), name),
        eps=_number(value("eps"), f"{name}.eps"),
    )


def _settings(name: str, settings: Any) -> Mapping[str, Any]:
    if not isinstance(settings, Mapping):
        raise UserError(f"{CONFIG}.{name}: expected a mapping of settings, got {settings!r}.")
    return settings


def _patterns(name: str, own: Mapping[str, Any]) -> list[re.Pattern[str]]:
    match = own.get("match")
    if not match or isinstance(match, str):
        raise UserError(f"{CONFIG}.{name}.match: expected a list of regular expressions on parameter names.")
    try:
        return [re.compile(pattern) for pattern in match]
    except re.error as error:
        raise UserError(f"{CONFIG}.{name}.match: {error.pattern!r} is no regular expression: {error}.") from error


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{CONFIG}.{key}: expected a number of at least 0, got {value!r}.")
    return float(value)


def _betas(value: Any, name: str) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise UserError(f"{CONFIG}.{name}.betas: expected two numbers, got {value!r}.")
    first, second = (_number(beta, f"{name}.betas") for beta in value)
    if max(first, second) >= 1:
        raise UserError(f"{CONFIG}.{name}.betas: expected numbers below 1, got {value!r}.")
    return first, second
