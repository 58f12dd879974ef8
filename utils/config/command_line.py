"""Preparation of the command line for Hydra: missing quotes, and clear errors for what Hydra cannot read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from utils.errors import UserError

# Keys whose value is a text or a path. `prepared` adds quotes where Hydra's grammar needs them.
TEXTS: Final = (
    "backbone.folder",
    "ckpt_path",
    "dataset.cache_dir",
    "dataset_root_dir",
    "img_size_str",
    "logger.wandb.group",
    "logger.wandb.project",
    "output_dir",
    "run_dir",
    "run_name",
)
FLAGS: Final = "-cn CONFIG, -m, --cfg job, --info, --help"
_SIZE = re.compile(r"\d+\s*,\s*\d+")


def prepared(arguments: Sequence[str], config_dir: Path) -> list[str]:
    """Returns `arguments` with flags before overrides, and with quotes around texts that need them.

    Raises:
        UserError: if Hydra cannot read an argument, or would misread it; the message says how to write it.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    flags = parser._option_string_actions.keys() - {"--experimental-rerun"}  # loads a pickle
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag not in flags:
            written = flag.lstrip("-").replace("-", "_")
            following = "".join(arguments[place + 1 : place + 2]) or "..."
            raise UserError(
                f"{argument}: options are written without dashes, {written}={value if equals else following}; "
                f"flags are {FLAGS}"
            )
    found = parser.parse_intermixed_args(list(arguments))
    multirun = found.multirun or "hydra.mode=MULTIRUN" in arguments
    overrides = list(found.overrides)
    for place, text in enumerate(overrides):
        if "=" not in text and not text.startswith("~"):
            raise UserError(_no_override(overrides, place, config_dir))
    flags_first = [argument for argument in arguments if argument not in overrides]
    return [*flags_first, *(_prepared(text, config_dir, multirun) for text in overrides)]


def quoted(text: str | Path) -> str:
    """Returns `text` as a quoted string of Hydra's override grammar."""
    return '"' + str(text).replace('"', r"\"") + '"'


def _prepared(text: str, config_dir: Path, multirun: bool) -> str:
    key, _, value = text.partition("=")
    if key == "img_size_str" and _SIZE.fullmatch(value):
        return f"{key}={quoted(value)}"  # else Hydra reads a sweep over two numbers
    override = _parsed(text)
    is_sweep = isinstance(override, Override) and override.is_sweep_override() and not multirun
    if key.lstrip("+") in TEXTS and (is_sweep or not isinstance(override, Override)):
        return f"{key}={quoted(value)}"
    if not isinstance(override, Override):
        raise UserError(
            f"{text}: Hydra cannot read this ({override}); a value with any of = , : ( ) [ ] {{ }} needs quotes of its "
            f"own inside those of the shell: '{key}=\"{value}\"'"
        )
    if is_sweep:
        raise UserError(
            f"{text}: several values need -m (a sweep); a list is {key}=[{value}], a text is '{key}=\"{value}\"'"
        )
    if text[0] == "+" and text[1] != "+" and key[1:].isidentifier() and (config_dir / key[1:]).is_dir():
        raise UserError(f"{text}: every config chooses {key[1:]} already; write {text[1:]}, without +")
    return text


def _parsed(text: str) -> Override | str:
    """Returns the override that `text` describes, or the reason why Hydra cannot parse it."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
        reason = next(line for line in [*lines[1:], *lines] if not line.startswith(("Error parsing", "See http")))
        return reason.partition(" expecting")[0]


def _no_override(overrides: Sequence[str], place: int, config_dir: Path) -> str:
    text = overrides[place]
    if (config_dir / f"{text}.yaml").is_file():
        return f"{text}: choose a config with -cn {text}"
    value = next((word.lstrip("=") for word in overrides[place + 1 :] if word.lstrip("=")), "VALUE")
    told = f"{text}: an override is key=value without spaces, as in {text}={value}; flags are {FLAGS}"
    if place and "=" in overrides[place - 1]:
        told += f"; if it belongs to the previous value, quote both: '{overrides[place - 1]} {text}'"
    return told


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; flags are {FLAGS}")
