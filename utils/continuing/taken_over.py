"""The config of a run that continues or tests a checkpoint, made from the checkpoint's config.

Only names of options and plain values are taken from the checkpoint. The config is composed again from this project's
YAML with the options that the checkpoint names, and the checkpoint's values replace its values, key by key. `_target_`
and all other keys that begin with an underscore come from this project or the command line; if the checkpoint has
other values there, it is refused. docs/continuing.md says which options may differ from the checkpoint's.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.continuing.composed import (
    DEFAULT_CONFIG,
    KEY,
    TERM,
    Composed,
    Override,
    compose_options,
    fitted_choices,
    given_choices,
    given_config,
    given_overrides,
    is_config_given,
    read_record,
    with_composed,
)
from utils.continuing.option_rules import BEFORE, GROUPS_BEFORE, rule_of
from utils.continuing.plain_values import ForeignValueError, Skip, flat, is_derived, is_plain, lay_over, same, shown
from utils.errors import UserError

OF_THE_MODEL = ("img_size_str", "img_size", "backbone", "head", "lora")
NAMED_BY_USERS = ("loss.terms", "optimizer.param_groups")  # mappings with keys that users choose
# A key that is missing from one of these was not used in training.
MAY_LACK = (*NAMED_BY_USERS, "evaluation.metrics", "evaluation.plots", "evaluation.changes")
INTERPOLATION = "dataset.interpolation"
ABSENT = object()


class TakenOver(NamedTuple):
    """The config of a run that continues a checkpoint, and a line for each difference from the checkpoint's config."""

    config: DictConfig
    differences: list[str]


def continued_config(cfg: DictConfig, trained: Any, path: Path) -> TakenOver:
    """Returns the config with which the training of a checkpoint continues.

    Args:
        cfg: the command's config. If other code composed it, all of it counts as given on the command line.
        trained: the config stored in the checkpoint.
        path: path of the checkpoint.

    Raises:
        UserError: if `trained` is not a config of this project, or `cfg` gives another value to a fixed option.
    """
    with _named(path):
        checkpoint = _TrainedConfig(trained, path)
        config, covered = cfg, [*NAMED_BY_USERS]
        if HydraConfig.initialized():
            checkpoint.check_config_name()
            own, covered = checkpoint.composed_anew(checkpoint.record.config, given_overrides())
            own.run_dir = cfg.run_dir
            config = checkpoint.over(own, lambda key: _covers(covered, key))
        differences = checkpoint.differences(config, covered)
    return TakenOver(with_composed(config, checkpoint.record), differences)


def model_config(cfg: DictConfig, trained: Any, path: Path) -> DictConfig:
    """Returns `cfg` with the checkpoint's encoder and image interpolation; as labels, its loss name, seed and noise.

    Args:
        cfg, trained, path: as in `continued_config`.

    Raises:
        UserError: if `trained` is not a config of this project, or the command line asks for another encoder.
    """
    with _named(path):
        checkpoint = _TrainedConfig(trained, path, OF_THE_MODEL)
        given = [override for override in given_overrides() if _section(override.key) in OF_THE_MODEL]
        own, covered = checkpoint.composed_anew(None, given)
        laid = checkpoint.over(own, lambda key: _section(key) not in OF_THE_MODEL or _covers(covered, key))
        config = deepcopy(cfg)
        for section in OF_THE_MODEL:
            config[section] = laid._get_node(section)
        checkpoint.differences(config, covered)
        config.loss.name, config.seed = checkpoint.value("loss.name", str), checkpoint.value("seed", int)
        if not any(override.key == INTERPOLATION for override in given_overrides()):
            OmegaConf.update(config, INTERPOLATION, checkpoint.value(INTERPOLATION, str, None))
        config.dataset.noise_rate = checkpoint.value("dataset.noise_rate", float, 0.0)
        config.dataset.noise_file = checkpoint.value("dataset.noise_file", str, None)
        for key in ("name", "language"):  # of the training, for the record of the test
            checkpoint.value(f"dataset.{key}", str, None)
    return with_composed(config, checkpoint.record, OmegaConf.create(checkpoint.plain))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns a `ForeignValueError` into a `UserError` that names the file."""
    try:
        yield
    except ForeignValueError as error:
        raise UserError(
            f"the config in {path} is refused: {error}; it is of another version of this project or not of it at all"
        ) from error


class _TrainedConfig:
    """The config in a checkpoint.

    Args:
        trained: the config as read from the file.
        path: path of the file.
        sections: the parts of the config to use; None: all.
    """

    def __init__(self, trained: Any, path: Path, sections: Collection[str] | None = None) -> None:
        if not isinstance(trained, dict):
            raise ForeignValueError("config", trained, "a mapping of options")
        self._path = path
        self._sections = sections
        self.plain = _completed({key: value for key, value in trained.items() if key != KEY})
        self.record = read_record(trained[KEY], sections) if KEY in trained else Composed()
        self._is_recorded = bool(self.record.choices)
        if not self._is_recorded:  # by an earlier version, or composed by other code
            self.record = self.record._replace(choices=fitted_choices(self._wanted(self.plain)))

    def value(self, key: str, kind: type, *default: Any) -> Any:
        """Returns the plain value at a dotted key; if it is None and a default is given, the default."""
        found: Any = self.plain
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None and default:
            return default[0]
        if kind is float and type(found) is int:
            found = float(found)
        if type(found) is not kind or not is_plain(found) or not str(found).isprintable():
            raise ForeignValueError(key, found, f"a plain {kind.__name__}")
        return found

    def check_config_name(self) -> None:
        """Raises `UserError` if the command names another primary config than the checkpoint's."""
        if is_config_given() and self.record.config not in (None, given_config()):
            self._refuse("-cn " + str(given_config()), f"-cn {self.record.config}")

    def composed_anew(self, config: str | None, given: Iterable[Override]) -> tuple[DictConfig, list[str]]:
        """Returns this project's config with the checkpoint's options and then `given`, and the keys that these set.

        `config` is the primary config; None means the command's.

        Raises:
            UserError: if the command line gives another option for a fixed group.
        """
        known, here = self.record.choices, given_choices()
        choices = {**(GROUPS_BEFORE if self._sections is None else {}), **known}
        if not self._is_recorded and self._sections is None:
            same_loss = here.get("loss") == known.get("loss")
            choices = {group: here[group] for group in here if same_loss or not group.startswith(TERM)} | choices
        covered = [override.key for override in given if not override.is_group]
        for group in (override.key for override in given if override.is_group):
            section = _section(group)
            if group in known and known[group] == here.get(group):
                continue
            if rule_of(section).continued == "free":
                choices[group] = here.get(group)
                covered.append(section)
            elif group in known or self._is_recorded:
                self._refuse(f"{group}={here.get(group)}", f"{group}={known.get(group)}")
        self.record = self.record._replace(choices=choices)
        try:
            config = config or given_config() or DEFAULT_CONFIG
            overrides = [override.text for override in given if not override.is_group]
            return compose_options(config, choices, overrides, is_whole=self._sections is None), covered
        except HydraException as error:
            reason = str(error).splitlines()[0].removesuffix(".")
            raise UserError(f"the command line does not fit the options of {self._path}: {reason}") from error

    def over(self, own: DictConfig, given: Skip) -> DictConfig:
        """Returns `own` with the checkpoint's values, except at keys that are given or whose rule says "here".

        An interpolation in `own` stays if it gives the checkpoint's value with the checkpoint's options. So a
        backbone's folder below dataset_root_dir still follows dataset_root_dir.
        """

        def skip(key: str) -> bool:
            return rule_of(key).continued == "here" or given(key)

        unresolved: Any = OmegaConf.to_container(own)
        ours, theirs = dict(flat(unresolved)), dict(flat(self.plain))
        as_trained = OmegaConf.create(unresolved)
        for key in ours.keys() & theirs.keys():
            if not is_derived(ours[key]) and is_plain(theirs[key]):
                OmegaConf.update(as_trained, key, theirs[key])
        derived = {
            key
            for key in ours.keys() & theirs.keys()
            if is_derived(ours[key]) and not skip(key) and same(_resolved(as_trained, key), theirs[key])
        }
        laid = lay_over(unresolved, self.plain, lambda key: skip(key) or key in derived, MAY_LACK)
        config = OmegaConf.create(laid)
        OmegaConf.set_struct(config, True)
        return config

    def differences(self, config: DictConfig, covered: Collection[str]) -> list[str]:
        """Returns a line for each option in which `config` differs from the checkpoint.

        Args:
            config: the config of the run that continues or tests the checkpoint.
            covered: keys under which the user gave options that the checkpoint lacks; others are newer than it.

        Raises:
            UserError: if a differing option is fixed.
        """
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        ours = dict(flat(self._wanted(resolved)))
        theirs = dict(flat(self._wanted(self.plain)))
        lines, refused = [], []
        for key in sorted(ours.keys() | theirs.keys(), key=_telling_first):
            asked, had = ours.get(key, ABSENT), theirs.get(key, ABSENT)
            rule = rule_of(key).continued
            if rule == "here" or same(asked, had) or (had is ABSENT and not _covers(covered, key)):
                continue
            if rule == "free" or (asked is ABSENT and not self._is_recorded):
                lines.append(_difference(key, asked, had))
            else:
                refused.append((key, asked, had))
        if refused:
            (key, asked, had), *others = refused
            if asked is ABSENT:
                raise UserError(
                    f"{key}: {self._path} was trained with {_value(had)}, but this command has no such option; give it "
                    f"again as it was, with +{key}=..., or start a new run without ckpt_path"
                )
            more = f" ({len(others)} more options differ, such as {others[0][0]})" if others else ""
            self._refuse(f"{key}={_value(asked)}", f"{_value(had)}{more}")
        return lines

    def _wanted(self, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if self._sections is None or key in self._sections}

    def _refuse(self, asked: str, theirs: str) -> NoReturn:
        raise UserError(
            f"{asked}: {self._path} was trained with {theirs}, and only that can be continued or tested; leave it "
            "out, it comes with the checkpoint, or start a new run without ckpt_path"
        )


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's config plus the options that are newer than it, with the values used in its training."""
    for key, value in BEFORE.items():
        section, _, name = key.partition(".")
        before = values.get(section, {})
        if isinstance(before, dict):
            values = {**values, section: {name: value, **before}}
    return values


def _section(key: str) -> str:
    """Returns the config section that an override with this key changes: its first part, or its package's first."""
    return key.partition("@")[2].partition(".")[0] if "@" in key else key.partition(".")[0]


def _telling_first(key: str) -> tuple[bool, int, str]:
    return not key.endswith(".name"), key.count("."), key


def _covers(keys: Collection[str], key: str) -> bool:
    return any(key == given or key.startswith(given + ".") for given in keys)


def _resolved(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return ABSENT
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _value(value: Any) -> str:
    return "nothing of the kind" if value is ABSENT else shown(value)


def _difference(key: str, asked: Any, had: Any) -> str:
    if asked is ABSENT:
        return f"{key} is left out; the checkpoint has {_value(had)}: give it again with +{key}=... if it still holds"
    return f"{key}={_value(asked)}, the checkpoint has {_value(had)}"
