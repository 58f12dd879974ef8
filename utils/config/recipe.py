"""The recipe that a run follows, and the settings of its primary config that this recipe replaces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def describe_recipe(config_dir: Path, composed: DictConfig) -> str | None:
    """Returns a line on the recipe that `experiment` chose, or None without a recipe or without a command line.

    Args:
        composed: how the config was composed, see `utils.continuing.composed`; a continued run passes the checkpoint's.
    """
    chosen, primary = composed.choices.get("experiment"), composed.config
    if chosen is None:
        return None
    own = _choices(config_dir / f"{primary}.yaml").get("experiment", chosen)
    if own == chosen:
        return chosen
    recipe = config_dir / "experiment" / f"{own}.yaml"
    left_out = [*_choices(recipe).items(), *_values(OmegaConf.load(recipe))]
    return f"{chosen}, in place of what {primary} has: {' '.join(f'{key}={value}' for key, value in left_out)}"


def _choices(file: Path) -> dict[str, str]:
    """Returns group -> option for each override in the defaults list of `file`; empty if there is no such file."""
    config: Any = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    items = [item for item in config.get("defaults", ()) if isinstance(item, DictConfig)]
    chosen = {str(key): str(value) for item in items for key, value in item.items()}
    return {key.removeprefix("override ").lstrip("/"): value for key, value in chosen.items() if "override " in key}


def _values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, DictConfig):
            yield from _values(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value
