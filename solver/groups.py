"""Parameter groups: the optimizer settings of each parameter, selected by its owner, kind and name."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from omegaconf import DictConfig, OmegaConf
from prettytable import PrettyTable
from torch import nn

from utils.errors import UserError, nearest

DEFAULT: Final = "default"
RATES: Final = ("lr", "lr_start", "lr_end")
SHARED: Final = (*RATES, "weight_decay", "betas", "eps")
CONFIG: Final = "optimizer.param_groups"
FROZEN: Final = "frozen"
OWNERS: Final = {  # owner -> pattern; the first pattern found in a parameter's name decides
    "adapters": r"\.lora_",
    "loss": r"^objective\.",
    "backbone": r"^encoder\.backbone\.",
    "head": "",
}
KINDS: Final = ("matrix", "position", "norm", "bias", "temperature", "vector")
SELECTORS: Final = ("of", "kind", "match")
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
    """Parameters with the same optimizer settings.

    name: names of the config's groups that change a setting of these parameters, joined by "/", or "default".
    lr, lr_start, lr_end: learning rates after the warm-up, at its first step, and at the end of a cosine.
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

    @property
    def rates(self) -> tuple[float, float, float]:
        return self.lr, self.lr_start, self.lr_end


def owner_of(name: str) -> str:
    """Returns the owner of the parameter of that name: "adapters", "loss", "backbone" or "head"."""
    return next(owner for owner, pattern in OWNERS.items() if re.search(pattern, name))


def kind_of(name: str, dimensions: int) -> str:
    """Returns the kind of the parameter of that name, one of `KINDS`.

    "norm" is the weight of a normalization, "position" a table of position embeddings, "vector" any other parameter
    with one dimension, such as a class token or the magnitudes of DoRA, and "matrix" any other parameter, such as a
    convolution or a token table.
    """
    last = name.rpartition(".")[2]
    if last in ("logit_scale", "logit_bias") or last.endswith("temperature"):
        return "temperature"
    if last == "bias" or last.endswith("_bias"):
        return "bias"
    if "position_embedding" in name or last in ("pos_embed", "positional_embedding"):
        return "position"
    if dimensions >= 2:
        return "matrix"
    return "norm" if last == "weight" and ".lora_magnitude_vector." not in name else "vector"


def split_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]], param_groups: Mapping[str, Any]
) -> list[ParamGroup]:
    """Returns parameter groups that contain every trainable parameter exactly once, in the order of the model.

    Args:
        named_parameters: as from `nn.Module.named_parameters`. Frozen parameters are left out.
        param_groups: group name -> settings (`SHARED`, and `lr_scale`), in order. `default` applies to every
            parameter. Any other group applies to the parameters that it selects by `of` (owners), `kind` and `match`
            (regular expressions, one of which has to match the whole name). A selector that is null selects all. If
            several groups set the same setting of a parameter, the last one wins. `lr_scale` sets each rate to the rate
            of `default` multiplied by it. A group may select no parameter.

    Raises:
        UserError: every parameter is frozen, or a setting is invalid.
    """
    if isinstance(param_groups, DictConfig):  # a plain dict is read a hundred times faster
        param_groups = cast(dict[str, Any], OmegaConf.to_container(param_groups, resolve=True))
    for name, settings in param_groups.items():
        _check(name, settings)
    if DEFAULT not in param_groups:
        raise UserError(f"{CONFIG}.{DEFAULT}: expected a mapping of settings; every parameter needs them.")
    patterns = {name: _patterns(name, settings) for name, settings in param_groups.items()}
    groups: dict[str, ParamGroup] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        owner, kind = owner_of(name), kind_of(name, parameter.ndim)
        selecting = [
            group
            for group, settings in param_groups.items()
            if group != DEFAULT
            and owner in (_listed(settings.get("of")) or OWNERS)
            and kind in (_listed(settings.get("kind")) or KINDS)
            and (not patterns[group] or any(pattern.fullmatch(name) for pattern in patterns[group]))
        ]
        group = _resolved(selecting, param_groups)
        groups.setdefault(group.name, group).parameters[name] = parameter
    if not groups:
        raise UserError("there is nothing to train: every parameter of the model is frozen.")
    return list(groups.values())


def parameter_table(named_parameters: Iterable[tuple[str, nn.Parameter]], param_groups: Mapping[str, Any]) -> str:
    """Returns a table with a row for each part of the model and each of its parameter groups, and with totals.

    Args:
        named_parameters, param_groups: as in `split_parameters`. Frozen parameters have their own rows.
    """
    parameters = dict(named_parameters)
    groups = {group.name: group for group in split_parameters(parameters.items(), param_groups)}
    owners = {name: group.name for group in groups.values() for name in group.parameters}
    rows: defaultdict[tuple[str, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        rows[part, owners.get(name, FROZEN)].append(parameter)

    table = PrettyTable(["part", "group", "lr", "weight decay", "parameters"], align="r")
    table.align.update(part="l", group="l")
    order = [*groups, FROZEN]
    shown = sorted(rows, key=lambda row: ([*PARTS].index(row[0]), order.index(row[1])))
    for part, name in shown:
        group = groups.get(name)
        rates = ["", ""] if group is None else [f"{group.lr:g}", f"{group.weight_decay:g}"]
        table.add_row([part, name, *rates, f"{_size(rows[part, name]):,}"], divider=(part, name) == shown[-1])
    trained, everything = _size(parameters[name] for name in owners), _size(parameters.values())
    table.add_row(["trainable", f"{trained / everything:.1%}", "", "", f"{trained:,}"])
    table.add_row(["all", "", "", "", f"{everything:,}"])
    return str(table)


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _resolved(selecting: Sequence[str], param_groups: Mapping[str, Any]) -> ParamGroup:
    """Returns a group without parameters: the settings of `default`, changed by the groups `selecting` in order."""
    default = param_groups[DEFAULT]
    found: dict[str, Any] = {}
    for key in SHARED:
        if default.get(key) is None:
            raise UserError(f"{CONFIG}.{DEFAULT}.{key} is not set; every parameter needs it.")
        found[key] = default[key]
    changing = []
    for name in selecting:
        own = {key: value for key, value in param_groups[name].items() if value is not None}
        scaled = {key: default[key] * own["lr_scale"] for key in RATES} if "lr_scale" in own else {}
        changed = found | scaled | {key: own[key] for key in SHARED if key in own}
        if changed != found:
            found = changed
            changing.append(name)
    last = changing[-1] if changing else DEFAULT
    if found["lr"] == 0:
        raise UserError(f"{CONFIG}.{last}: its learning rate is 0; freeze parameters that should not be trained.")
    for key in ("lr_start", "lr_end"):
        if found[key] > found["lr"]:
            raise UserError(f"{CONFIG}.{last}: {key}={found[key]:g} is above lr={found['lr']:g}; lower it too.")
    return ParamGroup("/".join(changing) or DEFAULT, **{**found, "betas": tuple(found["betas"])})


def _check(name: str, settings: Any) -> None:
    """Raises `UserError` if `settings` are not valid settings of the group `name`."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{CONFIG}.{name}: expected a mapping of settings, got {settings!r}.")
    keys = SHARED if name == DEFAULT else (*SELECTORS, "lr_scale", *SHARED)
    for key, value in settings.items():
        if key not in keys:
            raise UserError(f"{CONFIG}.{name}.{key}: there is no such setting.{nearest(str(key), keys)}")
        if value is None or key in SELECTORS:
            continue
        if key != "betas":
            _check_number(value, f"{name}.{key}")
            continue
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
            raise UserError(f"{CONFIG}.{name}.betas: expected two numbers, got {value!r}.")
        for beta in value:
            _check_number(beta, f"{name}.betas")
        if max(value) >= 1:
            raise UserError(f"{CONFIG}.{name}.betas: expected numbers below 1, got {value!r}.")
    for key, known in (("of", [*OWNERS]), ("kind", KINDS)):
        for choice in _listed(settings.get(key)):
            if choice not in known:
                raise UserError(f"{CONFIG}.{name}.{key}: expected one of {', '.join(known)}, got {choice!r}.")
    if name != DEFAULT and not any(settings.get(key) for key in SELECTORS):
        raise UserError(
            f"{CONFIG}.{name}: it selects no parameters; select some with of ({', '.join(OWNERS)}), kind "
            f"({', '.join(KINDS)}) or match (regular expressions on their names)."
        )


def _check_number(value: Any, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{CONFIG}.{key}: expected a number of at least 0, got {value!r}.")


def _listed(value: Any) -> list[Any]:
    """Returns a list: of the one value, of the values of a list, or empty for null."""
    return [] if value is None else [value] if isinstance(value, str) else [*value]


def _patterns(name: str, settings: Mapping[str, Any]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in _listed(settings.get("match"))]
    except (re.error, TypeError) as error:
        raise UserError(f"{CONFIG}.{name}.match: expected regular expressions, one is invalid ({error}).") from error
