"""The schema of a checkpoint: after these checks, other code needs no checks."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, cast

import lightning as L
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from utils.checkpoints.tensor_files import UnreadableError

CONFIG: Final = {"backbone": dict, "head": dict, "lora": dict, "loss": dict, "img_size_str": str, "seed": int}
NAMED: Final = ("backbone", "lora", "loss")
STATE: Final = "checkpoints"  # key of the checkpoint callback's own state
PROGRESS: Final = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
LARGEST: Final = 2**53  # limit on numbers such as a step or a rate
MOST_OPTIONS: Final = 10_000  # in a config; the largest config of this project has 400
DEEPEST_OPTION: Final = 20
LONGEST_OPTION: Final = 10_000  # characters
_LOADER: Final = {"epoch": 0, "batches": 0, "length": 0}
_SCHEDULE: Final = {"last_epoch": 0, "_step_count": 0}
_WORDS: Final[Mapping[type, str]] = {
    dict: "names and values",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number of at least 0",
    float: "a number",
    Tensor: "a tensor",
}


class Checkpoint(TypedDict):
    """The part of a checkpoint that this project reads; the rest is Lightning's.

    state_dict: tensors by name. config: the options of its training: plain values by name, with at least the keys of
    `CONFIG`. epoch and global_step are whole numbers if they exist.
    """

    state_dict: dict[str, Tensor]
    config: dict[str, Any]


def checked(content: Any) -> Checkpoint:
    """Returns `content`, read from a file, if it is a valid checkpoint.

    Raises:
        UnreadableError: if an entry is missing or has the wrong type.
    """
    _check_entries(content, "it", {"state_dict": dict, "config": dict})
    _check_entries(content, "it", {key: PROGRESS[key] for key in ("epoch", "global_step") if key in content})
    weights, config = content["state_dict"], content["config"]
    _check_entries(weights, "its 'state_dict'", dict.fromkeys(weights, Tensor))
    _check_entries(config, "its 'config'", CONFIG)
    for section in NAMED:
        _check_entries(config[section], f"{section!r} of its 'config'", {"name": str})
    _check_options(config)
    return cast(Checkpoint, content)


def check_progress(content: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has all entries, besides its weights, that are needed to continue training.

    Raises:
        UnreadableError: if an entry is missing or has the wrong type.
    """
    _check_entries(content, "it", PROGRESS)
    version = content["pytorch-lightning_version"]
    if re.fullmatch(r"2\.\d+\.\w+", version) is None:
        raise UnreadableError(f"it was written by Lightning {version}, expected Lightning 2")


def check_restorable(content: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Checks that all state in a checkpoint, besides its weights, has the types that `trainer` itself would save.

    Raises:
        UnreadableError: if one part has not.
    """
    check_progress(content)
    position = content["loops"].get("fit_loop")
    _check_like(position, trainer.fit_loop.state_dict(), "loops.fit_loop")
    _check_like(position["state_dict"], {"combined_loader": [_LOADER]}, "loops.fit_loop.state_dict")
    _check_like(content["lr_schedulers"], [_SCHEDULE], "lr_schedulers")
    for key, state in content["callbacks"].items():
        _check_entries(state, f"{key!r} of its 'callbacks'", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in content["callbacks"]:
            _check_like(content["callbacks"][callback.state_key], callback.state_dict(), type(callback).__name__)
    precision = trainer.precision_plugin
    if type(precision).__qualname__ in content:
        _check_like(content[type(precision).__qualname__], precision.state_dict(), "precision")
    if STATE in content:
        _check_best(content[STATE])
    _check_groups(content["optimizer_states"])


def check_moments(state: Mapping[Any, Any], optimizer: Optimizer) -> None:
    """Checks that each parameter's state in a checkpoint has the form that `optimizer` uses.

    Raises:
        UnreadableError: if one has not.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, moments in state.items():
        like = {}
        if isinstance(optimizer, Adam):
            weight = weights[number]
            moments_of = getattr(optimizer, "moments_of", lambda _: ("exp_avg", "exp_avg_sq"))  # of `MuonAdamW`
            like = {"step": torch.zeros(()), **dict.fromkeys(moments_of(weight), weight.detach())}
        _check_like(moments, like, f"optimizer_states.state.{number}")


def _check_best(state: Any) -> None:
    """Checks that the checkpoint callback's state has a file name without folders, its score and a number of rows."""
    _check_entries(state, f"{STATE!r} of it", {"best": str})
    if os.path.basename(state["best"]) != state["best"] or state["best"] in (".", ".."):
        raise UnreadableError(f"its best checkpoint is {state['best']}, expected a name without folders")
    if not isinstance(state.get("score"), float):
        raise UnreadableError(f"the score of its best checkpoint is {_kind_of(state.get('score'))}")
    if state.get("rows") is not None:
        _check_entries(state, f"{STATE!r} of it", {"rows": int})


def _check_groups(states: list[Any]) -> None:
    """Checks that there is one optimizer state, with parameter groups in torch's format."""
    _check_like(states, [{"state": {}}], "optimizer_states")
    _check_entries(states[0], "its 'optimizer_states'", {"param_groups": list})
    for number, group in enumerate(states[0]["param_groups"]):
        where = f"optimizer_states.param_groups.{number}"
        _check_like(group, {"group": "", "lr": 0.0}, where)
        for key, kind in {"params": int, "names": str}.items():
            values = group.get(key, [])
            if not isinstance(values, list) or not all(type(value) is kind for value in values):
                raise UnreadableError(f"its {where}.{key} is {_kind_of(values)}, expected a list of {_WORDS[kind]}")
        if "params" not in group:
            raise UnreadableError(f"it has no {where}.params")


def _check_entries(content: Any, what: str, kinds: Mapping[Any, type]) -> None:
    """Checks that `content` is a dict with these keys, which must be strings, and with values of these types."""
    if not isinstance(content, dict):
        raise UnreadableError(f"{what} is {_kind_of(content)}, expected names and values")
    for key, kind in kinds.items():
        if not isinstance(key, str):
            raise UnreadableError(f"{what} has {_kind_of(key)} as a name")
        if key not in content:
            raise UnreadableError(f"{what} has no {key!r}")
        value = content[key]
        fits = type(value) is int and value >= 0 if kind is int else isinstance(value, kind)
        if not fits:
            raise UnreadableError(f"{key!r} of {what} is {_kind_of(value)}, expected {_WORDS[kind]}")


def _check_options(config: dict[str, Any]) -> None:
    """Checks that a config holds only plain values by name, within the limits on size and depth."""
    waiting: list[tuple[str, Any, int]] = [("config", config, 0)]
    for _ in range(MOST_OPTIONS):
        if not waiting:
            return
        where, value, depth = waiting.pop()
        if depth > DEEPEST_OPTION or (isinstance(value, str) and len(value) > LONGEST_OPTION):
            break
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise UnreadableError(f"{where!r} of its 'config' has names that are not texts")
            waiting += [(key, inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(where, inner, depth + 1) for inner in value]
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise UnreadableError(f"{where!r} of its 'config' is {_kind_of(value)}, expected a plain value")
    raise UnreadableError("its 'config' is larger than any config that trainer.py writes")


def _check_like(content: Any, own: Any, where: str) -> None:
    """Checks that `content` has all entries of `own`, with the same type, length and shape; it may have more keys."""
    if isinstance(own, dict):
        if not isinstance(content, dict):
            raise _unlike(where, content, "names and values")
        for key, value in own.items():
            if key not in content:
                raise UnreadableError(f"it has no {where}.{key}")
            _check_like(content[key], value, f"{where}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(content, list | tuple) or len(content) != len(own):
            raise _unlike(where, content, f"a list of {len(own)}")
        for number, (inner, value) in enumerate(zip(content, own, strict=True)):
            _check_like(inner, value, f"{where}.{number}")
    elif isinstance(own, Tensor):
        fits = isinstance(content, Tensor) and content.shape == own.shape
        if not fits or content.is_floating_point() != own.is_floating_point():
            raise _unlike(where, content, f"a tensor of shape {tuple(own.shape)}")
    elif isinstance(own, bool | str):
        if type(content) is not type(own):
            raise _unlike(where, content, _WORDS[type(own)])
    elif isinstance(own, int | float):
        if isinstance(content, bool) or not isinstance(content, int | float) or not abs(content) <= LARGEST:
            raise _unlike(where, content, "a number")
        if isinstance(own, int) and not (isinstance(content, int) and content >= 0):
            raise _unlike(where, content, _WORDS[int])
    elif content is not None and not isinstance(content, bool | int | float | str | Tensor):
        raise _unlike(where, content, "a plain value")


def _unlike(where: str, content: Any, expected: str) -> UnreadableError:
    found = f"of shape {tuple(content.shape)}" if isinstance(content, Tensor) else _kind_of(content)
    return UnreadableError(f"its {where} is {found}, expected {expected}")


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a list of {len(value)}"
    return _WORDS.get(type(value), f"a {type(value).__name__}")
