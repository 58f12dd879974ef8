"""Checks of the config's values, made before the run builds or logs anything."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.errors import UserError, nearest

# Keys of whole numbers -> the minimum.
WHOLE: Final = {
    "seed": 0,
    "split_seed": 0,
    "shown_queries": 0,
    "lora.r": 0,
    "backbone.max_length": 1,
    "dataset.batch_size": 1,
    "dataset.num_instance": 1,
    "dataset.eval_batch_size": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_nodes": 1,
}
# Keys that accept a number or a word.
WORDS: Final = ("dataset.num_workers", "scheduler.warmup_epochs", "trainer.deterministic", "trainer.devices")
LIMITS: Final = {"train": "limit_train_batches", "val": "limit_val_batches", "test": "limit_test_batches"}
# Lightning options with which a run writes no records -> the option that does the same here.
INSTEAD: Final = {"fast_dev_run": "debug=fast", "overfit_batches": "debug=overfit"}


def check_options(cfg: DictConfig) -> None:
    """Checks that the values of `cfg` are valid for its task.

    Raises:
        UserError: for the first invalid value; the message says what was expected.
    """
    for sentence in _wrong(cfg):
        raise UserError(sentence)


def check_overrides(cfg: DictConfig) -> None:
    """Checks that each override has the type of the config's value: a number for a number, a group for a group.

    Raises:
        UserError: for the first override of another type; the message says what the config has.
    """
    hydra = HydraConfig.get()
    given = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    for section, _, name in (override.key_or_group.partition(".") for override in given):
        if section in ("backbone", "dataset") and name.partition(".")[0] == "description":
            raise UserError(
                f"{section}.{name}: {section}.description says what {section}={cfg[section].name} is, and is no option "
                f"of a run; for another {section}, write a YAML beside config/{section}/{cfg[section].name}.yaml"
            )
    groups = [str(override.input_line) for override in given if override.key_or_group in hydra.runtime.choices]
    loader = GlobalHydra.instance().config_loader()
    usual = loader.load_configuration(hydra.job.config_name, groups, run_mode=RunMode.RUN)
    for key in (override.key_or_group for override in given if not override.is_delete()):
        if key in hydra.runtime.choices:
            continue
        value, before = OmegaConf.select(cfg, key), None
        with suppress(OmegaConfBaseException):  # of a backbone that only its folder describes
            before = OmegaConf.select(usual, key)
        if isinstance(before, int | float) and isinstance(value, str) and key not in WORDS:
            kind = "true or false" if isinstance(before, bool) else f"a number, such as {before}"
            raise UserError(f"{key}: {value!r} given, expected {kind}")
        if isinstance(before, DictConfig) and not isinstance(value, DictConfig) and not key.startswith("callbacks."):
            raise UserError(f"{key}: {_shown(value)} given, but {', '.join(before)} are set below {key}, one by one")


def limited(cfg: DictConfig, of_data: Sequence[str]) -> str:
    """Returns a text that says how this run is limited (its metrics are not comparable); empty for a full run.

    Args:
        of_data: texts that say what was left out of the dataset.
    """
    told = [] if cfg.debug is None else [f"debug={cfg.debug}"]
    batches = cfg.trainer.limit_train_batches
    if cfg.task == "train" and batches is not None and not (isinstance(batches, float) and batches == 1):
        share = f"{100 * batches:g} % of the" if isinstance(batches, float) else f"{batches} of the"
        told.append(f"{share} batches of a training epoch")
    return "; ".join([*told, *of_data])


def noise_told(cfg: DictConfig) -> str:
    """Returns a text that says with which moved captions the tested weights were trained; empty if with none."""
    if cfg.task == "test" and cfg.ckpt_path is None:
        return ""
    if cfg.dataset.noise_file is not None:
        return f"trained with captions moved as in {Path(cfg.dataset.noise_file).name}"
    rate = cfg.dataset.noise_rate
    return f"trained with {100 * rate:g} % of the captions permuted" if rate else ""


def _wrong(cfg: DictConfig) -> Iterator[str]:
    training = cfg.task == "train"
    for key, least in WHOLE.items():
        value = OmegaConf.select(cfg, key)
        several = key == "shown_queries" and isinstance(value, ListConfig)
        if not all(_whole(one, least) for one in (value if several else [value])):
            yield f"{key}: {_shown(value)} given, expected at least {least}, a whole number"
    for option, ours in INSTEAD.items():
        if option in cfg.trainer:
            yield f"trainer.{option} would leave the run without checkpoint and table; use {ours} instead"
    for split, option in LIMITS.items():
        value = cfg.trainer[option]
        if (split == "test" or training) and value is not None and not _limit(value):
            yield (
                f"trainer.{option}: {_shown(value)} given, expected a number of batches (1 or more), a share (above "
                "0.0, 1.0 for all) or null for all"
            )
    for key in ("annotations", "images"):
        path = cfg.dataset[key]
        if path is not None and (not isinstance(path, str) or not path):
            yield f"dataset.{key}: {_shown(path)} given, expected the path of a {'file' if key[0] == 'a' else 'folder'}"
    file, further = cfg.dataset.noise_file, cfg.dataset.further_captions
    if file is not None and not isinstance(file, str):
        yield f"dataset.noise_file: {_shown(file)} given, expected the path of a .npy file or null"
    if further is not None and not isinstance(further, DictConfig):
        yield f"dataset.further_captions: {_shown(further)} given, expected a mapping such as {{captions_para: 0.5}}"
    rerankers = ["none", *cfg.evaluation.rerankers]
    if cfg.evaluation.rerank not in rerankers:
        name = str(cfg.evaluation.rerank)
        yield f"evaluation.rerank={name}: no such re-ranker.{nearest(name, rerankers)} Choose {' or '.join(rerankers)}"
    if not training:
        return
    monitor = str(OmegaConf.select(cfg, "callbacks.last.monitor"))
    metric = monitor.rpartition("/")[2]
    if monitor.startswith(("val/t2i/", "val/i2t/")) and cfg.evaluation.metrics.get(metric) is None:
        yield (
            f"callbacks.last.monitor={monitor}: evaluation.metrics has no {metric}; choose one of "
            f"{', '.join(name for name, value in cfg.evaluation.metrics.items() if value is not None)}"
        )
    epochs, every = cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch
    if not _whole(epochs, 1):
        yield (
            f"trainer.max_epochs: {_shown(epochs)} given, expected at least 1, a whole number: schedules need to know "
            "the end"
        )
    elif not _whole(every, 1):
        yield f"trainer.check_val_every_n_epoch: {_shown(every)} given, expected at least 1, a whole number"
    elif every > epochs:
        yield (
            f"trainer.check_val_every_n_epoch={every} is above trainer.max_epochs={epochs}: no epoch would be "
            "validated, so there would be no best checkpoint to test; lower the first or raise the second"
        )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _limit(value: Any) -> bool:
    return _whole(value, 1) or (isinstance(value, float) and 0 < value <= 1)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)
