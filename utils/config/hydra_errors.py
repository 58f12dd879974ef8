"""Hydra's errors as one sentence that names the nearest valid key or option."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from traceback import clear_frames
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from utils.config.command_line import prepared
from utils.config.run_folders import remove_if_empty
from utils.config.surroundings import LOST_WORKERS, refusal, settle_surroundings
from utils.errors import UserError, fail, nearest

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, UserError)
_NOT_FOUND = re.compile(r"Could not find '([^']+)'")
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
# Keys of plain Lightning -> the option that does the same here.
INSTEAD = {"trainer.fast_dev_run": "debug=fast", "trainer.overfit_batches": "debug=overfit"}
_GPU_IS_FULL = (
    "the memory of the GPU is full: task=plan tells the largest dataset.batch_size that fits and what makes a step "
    "smaller, such as backbone.gradient_checkpointing=true or grad_cache.micro_batch=16; outside of training, lower "
    "dataset.eval_batch_size; nvidia-smi shows who else uses the GPU"
)
# Errors raised as a standard Python type: how the message begins -> the sentence for the user.
_FOREIGN = {
    **LOST_WORKERS,
    "CUDA out of memory": _GPU_IS_FULL,
    "CUDA error: out of memory": _GPU_IS_FULL,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED": _GPU_IS_FULL,
    "Config group override must be": "a group, such as dataset or loss, takes the name of one of its options",
    "Only one of --": "--multirun, --cfg, --info and --run exclude each other: give one of them",
    'Could not detect "srun"': "hydra/launcher=submitit_slurm: there is no srun here, so this machine is in no SLURM "
    "cluster; submit from one, or run the jobs here with hydra/launcher=joblib or hydra/launcher=submitit_local",
}
_NO_KEY = re.compile(r"Could not (?:override|delete from config\.|delete) '([^']+)'")
_NO_PRIMARY = re.compile(r"Cannot find primary config '([^']+)'")


@contextmanager
def hydra_errors_in_one_sentence(config_dir: Path, default_config: str) -> Iterator[None]:
    """Ends the process with one sentence and status 2 when Hydra or OmegaConf refuses the command line."""
    settle_surroundings()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra's exceptions out instead of printing them
    try:
        sys.argv[1:] = prepared(sys.argv[1:], config_dir)
        yield
    except CONFIG_ERRORS as error:
        fail(sentence(error, config_dir, _config_name(sys.argv, default_config), sys.argv[1:]))
    except (OSError, ValueError, RuntimeError) as error:
        if (told := job_sentence(error)) is None:
            raise
        fail(told)


@contextmanager
def job_errors_in_one_sentence(cfg: DictConfig) -> Iterator[None]:
    """Ends the process with one sentence and status 2 if a job fails. In a multirun, the other jobs go on.

    Raises:
        UserError: if the job belongs to a multirun.
    """
    try:
        yield
    except Exception as error:
        if (told := job_sentence(error)) is None:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            let_go(error)
            raise UserError(told) from error
        remove_if_empty(cfg.run_dir)
        fail(told)  # before Hydra adds lines of its own


def sentence(error: BaseException, config_dir: Path, config_name: str, arguments: Sequence[str]) -> str:
    """Returns a sentence that says what is wrong with `arguments` and names the nearest valid key or option."""
    if (told := _in_a_part(error)) is not None:
        return told
    text = str(error)
    if match := _NO_PRIMARY.search(text):
        names = [name for name in _options(config_dir) if name != "base"]
        hint = nearest(match[1], names)
        return f"-cn {match[1]}: there is no config/{match[1]}.yaml.{hint} Choose one of {', '.join(names)}"
    if isinstance(error, MissingConfigException) and (match := _NOT_FOUND.search(text)):
        group, _, option = match[1].rpartition("/")
        while not (config_dir / group).is_dir() and "/" in group and not group.startswith("hydra/"):
            group, _, parent = group.rpartition("/")
            option = f"{parent}/{option}"
        if group == "hydra/launcher" and option in LAUNCHER_EXTRAS:
            return f"{group}={option} is not installed; install it with 'uv sync --extra {LAUNCHER_EXTRAS[option]}'"
        options = _options(config_dir / group)
        return f"{group}={option}: no such option.{nearest(option, options)} Choose one of {', '.join(options)}"
    if match := _NO_KEY.match(text):
        key = match[1]
        if key in INSTEAD:
            return f"{key}: the config has no such key; use {INSTEAD[key]} instead"
        known = _known_keys(config_dir, config_name, arguments)
        return (
            f"{key}: the config has no such key.{_nearest_key(key, known)} See all keys with --cfg job; "
            f"to add a new key on purpose, write +{key}=..."
        )
    return _all_lines(error) + "; see --cfg job for the composed config"


def job_sentence(error: Exception) -> str | None:
    """Returns the sentence for an error that the user can mend, or None for a bug of the program."""
    if isinstance(error, CONFIG_ERRORS):
        return _in_a_part(error) or _first_line(error)
    if isinstance(error, OSError):
        return refusal(error)
    return next((told for begins, told in _FOREIGN.items() if str(error).startswith(begins)), None)


def let_go(error: BaseException | None) -> None:
    """Clears the local variables in the tracebacks of an error and of its causes.

    A multirun keeps the errors of its jobs. Without this, they would keep each job's model in GPU memory.
    """
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _in_a_part(error: BaseException) -> str | None:
    """Returns the sentence for a `UserError`, a missing value or a failed `instantiate`; None for other errors."""
    if (ours := user_error(error)) is not None:
        return str(ours)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value here: give it one with {error.full_key}=..."
    if isinstance(error, InstantiationException):
        where = re.search(r"full_key: (\S+)", str(error))
        cause = _first_line(error.__cause__ or error)
        return f"{where[1] if where else 'config'}: {cause}; see --cfg job for what it accepts"
    return None


def user_error(error: BaseException | None) -> UserError | None:
    """Returns the first `UserError` in the chain of `error` and its causes, or None."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _known_keys(config_dir: Path, config_name: str, arguments: Sequence[str]) -> list[str]:
    """Returns all dotted keys of the config that is composed with the group choices in `arguments`."""
    choices = [a for a in arguments if "=" in a and a[0] not in "-+~" and (config_dir / a.split("=")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        try:
            config = compose(config_name, overrides=choices)
        except HydraException:
            config = compose(config_name)
    return list(_dotted(config))


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """Returns the hint of `nearest`, but prefers keys with the same last part, first those of the same group."""
    group, name = key.split(".")[0], key.split(".")[-1]
    alike = [other for other in known if other.split(".")[-1] == name]
    alike = [other for other in alike if other.split(".")[0] == group] or alike
    if not alike or ("." not in key and len(alike) > 3 and not any("default" in other for other in alike)):
        return nearest(key, list(known))
    return f" Did you mean {min(alike, key=lambda other: ('default' not in other, len(other)))!r}?"


def _dotted(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield prefix + key
        value: Any = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _dotted(value, f"{prefix}{key}.")


def _options(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def _config_name(argv: list[str], default: str) -> str:
    for flag, value in pairwise(argv):
        if flag in ("-cn", "--config-name"):
            return value
    return next((a.split("=", 1)[1] for a in argv if a.startswith("--config-name=")), default)


def _all_lines(error: BaseException) -> str:
    """Returns all lines of Hydra's message in one line: the lines after the first hold its advice."""
    text = str(error).partition("Config search path")[0]
    return "; ".join(
        " ".join(line.split()).rstrip(";,.:") for line in text.splitlines() if line.strip()
    ) or _first_line(error)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
