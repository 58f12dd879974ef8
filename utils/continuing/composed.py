"""The composition of a config: its primary config, the options of its groups, and its overrides."""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from utils.continuing.option_rules import rule_of
from utils.continuing.plain_values import ForeignValueError
from utils.errors import UserError, library_errors, nearest

CONFIG_DIR = Path(__file__).parents[2] / "config"
DEFAULT_CONFIG = "demo"
KEY = "composed"  # key under which configs in checkpoints and records store their composition
TERM = "loss/term@loss.terms."
GROUP = r"[a-z]\w*|loss/term@loss\.terms\.[A-Za-z]\w*"
OVERRIDE = r"~?[\w.@/]+(=[^\n]*)?"
BY_NAME = ("backbone.folder", "dataset.annotations")  # only the name counts, not where the folder or file lies
# Options that tables and dashboards show in columns of their own.
OF_THEIR_OWN = ("task", "seed", "dataset", "dataset.language", "backbone", "lora", "loss")


class Override(NamedTuple):
    """One override of a command: `key` is a dotted key, or a group with its package, if any."""

    key: str
    text: str
    is_group: bool
    is_deleted: bool


class Composed(NamedTuple):
    """The composition of a config: its primary config, group -> option, and its overrides in `normal_form`.

    Groups that other groups determine (`experiment/on`) are left out.
    """

    config: str | None = None
    choices: Mapping[str, str | None] = MappingProxyType({})
    overrides: Sequence[str] = ()


def given_overrides() -> list[Override]:
    """Returns the overrides of the command line or of the job; empty if other code composed the config."""
    if not HydraConfig.initialized():
        return []
    texts = list(HydraConfig.get().overrides.task)
    parsed = OverridesParser.create().parse_overrides(texts)
    with composer():
        return [
            Override(
                key=p.key_or_group + (f"@{p.package}" if p.package else ""),
                text=text,
                is_group=bool(options_of(p.key_or_group)),
                is_deleted=p.is_delete(),
            )
            for text, p in zip(texts, parsed, strict=True)
        ]


def given_config() -> str | None:
    """Returns the name of the command's primary config, or None if other code composed the config."""
    return HydraConfig.get().job.config_name if HydraConfig.initialized() else None


def is_config_given() -> bool:
    """Returns whether the command names its primary config instead of using the default."""
    flags = ("-cn", "--config-name")
    return given_config() not in (None, DEFAULT_CONFIG) or any(argument.startswith(flags) for argument in sys.argv[1:])


def given_choices() -> dict[str, str | None]:
    """Returns the options of the command's groups; empty if other code composed the config."""
    return own_choices(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}


def own_choices(choices: Mapping[str, str | None]) -> dict[str, str | None]:
    """Returns this project's choices among Hydra's, without groups that others determine (`experiment/on`)."""
    return {group: choices[group] for group in sorted(choices) if "/" not in group or group.startswith(TERM)}


@contextmanager
def composer(config_dir: Path | None = None) -> Iterator[None]:
    """Makes `compose` find this project's YAML, and the folder that the command line gives with --config-dir.

    Args:
        config_dir: a folder to search first; used only if no Hydra command line is active.
    """
    app = GlobalHydra.instance()
    outer = app.hydra
    if outer is not None and options_of("loss/term"):  # the Hydra app is this project's
        yield
        return
    app.hydra = None
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            if config_dir is not None:
                if not config_dir.is_dir():
                    raise UserError(f"--config-dir: there is no folder {config_dir}; name the one above your YAMLs")
                loader = app.config_loader()
                search = loader.get_search_path()
                search.prepend("command-line", f"file://{config_dir.absolute()}")
                loader.repository.initialize_sources(search)  # type: ignore[attr-defined]
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def options_of(group: str) -> list[str]:
    """Returns a group's options, or the primary configs for ""; empty if there is no such group. Needs `composer`."""
    if not re.fullmatch(r"\w*(/\w+)*", group):
        return []
    loader = GlobalHydra.instance().config_loader()
    return [option for option in loader.get_group_options(group) if not option.startswith("_")]


def described(group: str, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Returns one option of the group "backbone" or "dataset", with its `description` and unresolved interpolations.

    Args:
        group, name: the group and its option.
        overrides: overrides of the option's values, ``group.KEY=VALUE``.

    Raises:
        UserError: if there is no such option, its YAML has no description, or an override is wrong.
    """
    with composer():
        options = options_of(group)
        if name not in options:
            hint = nearest(name.lower().replace("-", "_"), options)
            raise UserError(f"There is no {group} {name!r}; expected one of {', '.join(options)}.{hint}")
        file = f"{group}/{name}.yaml"
        with library_errors(f"{file} cannot be composed", "correct it, by the example of the others"):
            option = OmegaConf.select(compose(f"{group}/{name}"), group)
        if overrides:
            with library_errors(f"{' '.join(overrides)}: not options of {file}", f"expected {group}.KEY=VALUE"):
                option = OmegaConf.select(compose(f"{group}/{name}", overrides=list(overrides)), group)
    if OmegaConf.select(option, "description") is None:
        raise UserError(f"{file} does not describe a {group}; begin it with 'defaults: [_base, _self_]'")
    return option


def compose_options(
    config: str, choices: Mapping[str, str | None], overrides: Iterable[str] = (), *, is_whole: bool = True
) -> DictConfig:
    """Returns this project's config with these options and then `overrides`, with unresolved interpolations.

    Args:
        is_whole: whether groups that `choices` does not name are removed; else they stay as in `config`.
    """
    lines = [f"{group}={option}" for group, option in choices.items() if option and not group.startswith(TERM)]
    with composer():
        if is_whole:
            default = compose(config, overrides=lines, return_hydra_config=True).hydra.runtime.choices
            named = {group for group, option in own_choices(default).items() if option}
            terms = {group: option for group, option in choices.items() if option and group.startswith(TERM)}
            lines += [f"{'' if group in named else '+'}{group}={option}" for group, option in terms.items()]
            lines += [f"~{group}" for group in sorted(named) if not choices.get(group)]
        return compose(config, overrides=[*lines, *overrides])


def normal_form(keys: Iterable[str], config: DictConfig, choices: Mapping[str, str | None]) -> list[str]:
    """Returns ``key=value``, sorted, for the options that change a result; ``~key`` for removed options.

    Args:
        keys: keys of overrides: dotted keys and groups, also of deletions.
        config: the config that they led to, resolved or not.
        choices: the options of its groups.
    """
    texts = []
    for key in sorted({key.removeprefix("~") for key in keys}):
        if key == "img_size_str":
            texts.append(f"{key}={'x'.join(map(str, config.img_size))}")
        elif key in BY_NAME:
            named = OmegaConf.select(config, key)  # None in a config that the command line does not describe
            texts.append(f"{key}={as_text(None) if named is None else Path(named).name}")
        elif key in OF_THEIR_OWN or not rule_of(key.split("@")[-1]).changes_result:
            continue
        elif key in choices:
            texts.append(f"{key}={as_text(choices[key])}")
        elif "@" in key or (value := OmegaConf.select(config, key, default=...)) is ...:
            texts.append(f"~{key}")
        else:
            texts.append(f"{key}={as_text(value)}")
    return texts


def as_text(value: Any) -> str:
    """Returns a plain value in one spelling: 1e-4, 0.0001 and 1.0e-04 give the same text, and so do 1 and 1.0."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_text(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def read_record(record: Any, groups: Collection[str] | None = None) -> Composed:
    """Returns the composition of the config in a checkpoint, from the record stored there.

    Args:
        record: the record from the file. Its names are checked against existing options; of overrides only keys count.
        groups: the groups to use; None: all.

    Raises:
        ForeignValueError: if it is not a record, or names something that this project does not have.
    """
    expected = {"config": str | None, "choices": dict, "overrides": list}
    if not isinstance(record, dict):
        raise ForeignValueError(KEY, record, "a mapping")
    for key, kind in expected.items():
        if not isinstance(record.get(key), kind):
            raise ForeignValueError(f"{KEY}.{key}", record.get(key), "what trainer.py writes there")
    with composer():
        name = record["config"]
        if name is not None and groups is None and name not in options_of(""):
            raise ForeignValueError("-cn", name, f"one of {', '.join(options_of(''))}")
        choices = {}
        for group, option in record["choices"].items():
            if groups is not None and group not in groups:
                continue
            if not isinstance(group, str) or not re.fullmatch(GROUP, group):
                raise ForeignValueError(f"{KEY}.choices", group, "groups of this project's config")
            if option is not None and option not in options_of(group.partition("@")[0]):
                raise ForeignValueError(group, option, "an option that this project has")
            choices[group] = option
    overrides = [text for text in record["overrides"] if isinstance(text, str) and re.fullmatch(OVERRIDE, text)]
    return Composed(name, choices, overrides)


def fitted_choices(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Returns group -> option, found by comparing each section's `name` (or `_target_`) with this project's YAML.

    Used for checkpoints that do not store their composition.
    """
    choices: dict[str, str | None] = {}
    for section, own in values.items():
        if not isinstance(own, dict) or not re.fullmatch(r"\w+", str(section)):
            continue
        key = "name" if "name" in own else "_target_"
        for file in sorted((CONFIG_DIR / section).glob("[!_]*.yaml")):
            if key in own and OmegaConf.select(OmegaConf.load(file), key) == own[key]:
                choices[section] = file.stem
                break
    return choices


def with_composed(cfg: DictConfig, before: Composed | None = None, trained: DictConfig | None = None) -> DictConfig:
    """Returns a copy of `cfg` with its composition under `KEY`.

    Args:
        before: the composition of the config of the continued or tested checkpoint; its overrides count too.
        trained: the config that holds the values of these overrides.
    """
    keys = {override.key for override in given_overrides()}
    composed = Composed(given_config(), given_choices(), normal_form(keys, cfg, given_choices()))
    if before is not None:
        earlier = {text.partition("=")[0].removeprefix("~") for text in before.overrides} - keys
        texts = [*composed.overrides, *normal_form(earlier, trained or cfg, before.choices)]
        composed = Composed(before.config or composed.config, before.choices or composed.choices, texts)
    cfg = deepcopy(cfg)
    with open_dict(cfg):
        cfg[KEY] = {**composed._asdict(), "choices": dict(composed.choices), "overrides": sorted(composed.overrides)}
    return cfg
