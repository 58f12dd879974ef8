"""What becomes of the config in a checkpoint, under the command that continues or tests it."""

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.small_run import SMALL, command
from utils.config.resolvers import register_resolvers
from utils.continuing import taken_over
from utils.continuing.composed import compose_options, with_composed
from utils.continuing.option_rules import BEFORE
from utils.continuing.plain_values import ForeignValueError, flat, lay_over
from utils.continuing.taken_over import continued_config, model_config
from utils.errors import UserError

register_resolvers()
FILE = Path("somewhere/checkpoints/last.ckpt")


def trained(*overrides: str, name: str = "demo") -> dict[str, Any]:
    """The config that a run of this command line leaves in its checkpoints."""
    with command(*overrides, f"run_dir={FILE.parents[1]}", name=name) as cfg:
        return OmegaConf.to_container(with_composed(cfg), resolve=True)  # type: ignore[return-value]


def continued(config: dict[str, Any], *overrides: str, name: str = "demo") -> tuple[dict[str, Any], list[str]]:
    """What `trainer.py OVERRIDES ckpt_path=FILE` trains, resolved, and what it says of it."""
    with command(*overrides, f"run_dir={FILE.parents[1]}", name=name) as cfg:
        taken = continued_config(cfg, config, FILE)
    return OmegaConf.to_container(taken.config, resolve=True), taken.differences  # type: ignore[return-value]


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = deepcopy(config)
    *path, last = key.split(".")
    node: Any = changed
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value
    return changed


LONG = (
    *SMALL,
    "experiment=irra",
    "backbone=tiny_clip",
    "~loss.terms.simclr",
    "~loss.terms.mlm",
    "+loss/term@loss.terms.words=mlm",
    "loss.terms.words.weight=0.3",
    "optimizer.param_groups.default.lr=3e-4",
    "logger=csv",
    "+trainer.max_steps=7",
)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return trained(*SMALL)


@pytest.mark.parametrize(
    ("overrides", "again"),
    [
        (SMALL, ()),
        (SMALL, SMALL),
        (("experiment=fmfa", "dataset=icfg_pedes", "~loss.terms.efa"), ()),
        (("experiment=cpcl", "pseudo_label=kmeans", "pseudo_label.images.clusters=5"), ("experiment=cpcl",)),
        (("~loss/term@loss.terms.nitc", "+loss/term@loss.terms.more=sdm", "callbacks=early_stopping"), ()),
        (("~optimizer.param_groups.adapters", "head=part_baseline", "head.coarse=2", "aug.image_aug=null"), ()),
    ],
    ids=lambda texts: " ".join(texts)[:30],
)
def test_without_other_options_a_run_goes_on_with_its_own(overrides: tuple[str, ...], again: tuple[str, ...]) -> None:
    config = trained(*overrides)
    assert continued(config, *again) == (config, [])


def test_the_primary_config_comes_with_the_checkpoint_and_another_one_is_refused() -> None:
    config = trained("experiment=irra", "loss.terms.sdm.logit_scale=7", name="clip")
    assert continued(config) == (config, [])
    assert continued(config, name="clip") == (config, [])
    with pytest.raises(UserError, match=r"^-cn m_siglip: .*last\.ckpt was trained with -cn clip"):
        continued(config, name="m_siglip")


def test_an_option_with_another_default_by_now_keeps_the_checkpoints_value(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def later(*arguments: Any, **options: Any) -> DictConfig:
        config = compose_options(*arguments, **options)
        OmegaConf.update(config, "loss.terms.nitc.weight", 9.0)
        OmegaConf.update(config, "optimizer.param_groups.default.lr", 9.0)
        OmegaConf.update(config, "trainer.check_val_every_n_epoch", 9)
        OmegaConf.update(config, "loss.terms.nitc.new_option", 1, force_add=True)
        return config

    monkeypatch.setattr(taken_over, "compose_options", later)
    config, differences = continued(plain)
    assert config == put(plain, "loss.terms.nitc.new_option", 1)
    assert differences == []


def test_options_that_are_free_are_applied_in_full_and_said(plain: dict[str, Any]) -> None:
    given = {
        "trainer.max_epochs": 9,
        "optimizer.param_groups.default.lr": 1e-6,
        "optimizer.param_groups.default.lr_end": 0.0,
        "scheduler.warmup_epochs": 2,
        "dataset.num_workers": 3,
        "logger.csv": False,
        "callbacks.last.every_n_steps": 5,
        "compile": True,
    }
    config, differences = continued(plain, *(f"{key}={value}" for key, value in given.items()))
    values, before = dict(flat(config)), dict(flat(plain))
    assert {key: values[key] for key in given} == given
    assert {key for key in values if not key.startswith("composed.") and values[key] != before[key]} == set(given)
    assert sorted(line.partition("=")[0] for line in differences) == sorted(given)
    assert "trainer.max_epochs=9, the checkpoint has 1" in differences


def test_a_free_group_is_exchanged_as_a_whole(plain: dict[str, Any]) -> None:
    config, differences = continued(plain, "callbacks=early_stopping", "scheduler=constant", "logger=none")
    assert config["callbacks"]["early_stopping"]["patience"] == 10
    assert config["scheduler"] == {**plain["scheduler"], "name": "constant", "warmup_epochs": "10%"}
    assert config["logger"]["name"] == "none"
    assert "scheduler.name=constant, the checkpoint has cosine" in differences
    assert (config["composed"]["choices"]["callbacks"], config["composed"]["choices"]["loss"]) == (
        "early_stopping",
        "hybrid_circle",
    )


def test_paths_are_the_commands_and_what_is_derived_from_them_follows(plain: dict[str, Any]) -> None:
    config, differences = continued(plain, "dataset_root_dir=/data")
    assert config["backbone"]["folder"] == "/data/tiny_siglip_checkpoints"
    assert config["dataset"]["cache_dir"] == "/data/image_cache"
    assert [line.partition("=")[0] for line in differences] == ["backbone.folder"]
    converted = put(plain, "backbone.folder", "irra_checkpoints")
    assert continued(converted, "dataset_root_dir=/data")[0]["backbone"]["folder"] == "irra_checkpoints"
    elsewhere = put(put(plain, "callbacks.last.folder", "/etc"), "output_dir", "/etc")
    assert continued(elsewhere)[0]["callbacks"]["last"]["folder"] == str(FILE.parent)
    assert continued(elsewhere)[0]["output_dir"] == "outputs"


def test_what_a_backbone_and_a_dataset_are_is_never_taken_from_a_checkpoint(plain: dict[str, Any]) -> None:
    """Nor is it missed in a checkpoint from before it stood in a config."""
    without = {**plain, **{part: dict(plain[part]) for part in ("backbone", "dataset")}}
    for part in ("backbone", "dataset"):
        del without[part]["description"]
    foreign = put(plain, "backbone.description.repository", "theirs/model")
    foreign = put(foreign, "backbone.description.architecture", {"text_config": {"hidden_size": 7}, "more": 1})
    foreign = put(foreign, "dataset.description.folder", "/etc")
    del without["backbone"]["_convert_"]
    for config in (foreign, without):
        taken, differences = continued(config)
        assert {part: taken[part] for part in ("backbone", "dataset")} == {
            part: plain[part] for part in ("backbone", "dataset")
        }
        assert differences == []
        with command("task=test") as cfg:
            assert model_config(cfg, config, FILE).backbone.description == plain["backbone"]["description"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.terms.nitc.weight=3", r"^loss\.terms\.nitc\.weight=3: .*last\.ckpt was trained with 1\.0,"),
        ("img_size_str=32x32", r"^img_size=\[32, 32\]: .* was trained with \[64, 32\] \(1 more"),
        ("dataset.batch_size=4", r"^dataset\.batch_size=4: .* was trained with 8,"),
        ("seed=7", r"^seed=7: .* was trained with 42,"),
        ("trainer.precision=bf16-mixed", r"^trainer\.precision=bf16-mixed: .* was trained with 32-true,"),
        ("loss=irra", r"^loss=irra: .* was trained with loss=hybrid_circle,"),
        ("experiment=irra", r"^experiment=irra: .* was trained with experiment=tiny,"),
        ("backbone=clip", r"^backbone=clip: .* was trained with backbone=tiny_siglip,"),
        ("~loss.terms.cross_modal_circle", r"^loss\.terms\.cross_modal_circle\._partial_: .* was trained with True"),
        ("+loss/term@loss.terms.id=id", r"^loss/term@loss\.terms\.id=id: .* was trained with loss/term@.*=None"),
        ("+aug.sharp=1", r"^aug\.sharp=1: .* was trained with nothing of the kind"),
        ("optimizer=irra_no_decay", r"^optimizer\.algorithm=adam: .* was trained with muon,"),
        ("trainer=gpu", r"^trainer\.gradient_clip_val=None: .* was trained with 1\.0 \(2 more options differ, such as"),
    ],
)
def test_what_is_fixed_is_refused_by_name(override: str, message: str, plain: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        continued(plain, override)


def test_another_spelling_of_the_same_option_is_none_other(plain: dict[str, Any]) -> None:
    config, differences = continued(plain, "img_size_str='(64, 32)'", "scheduler.warmup_epochs=5e-1", "compile=False")
    assert config["img_size"] == [64, 32]
    assert [line.partition("=")[0] for line in differences] == ["img_size_str"]


def test_an_option_that_was_added_by_hand_has_to_be_given_again() -> None:
    config = trained("+trainer.max_steps=7", "+aug.sharp=1")
    with pytest.raises(UserError, match=r"^aug\.sharp: .* give it again as it was, with \+aug\.sharp=\.\.\."):
        continued(config)
    _, [line] = continued(config, "+aug.sharp=1")
    assert line.startswith("trainer.max_steps is left out; the checkpoint has 7: give it again with +trainer.max_steps")
    assert continued(config, "+aug.sharp=1", "+trainer.max_steps=7")[1] == []


def test_a_config_that_other_code_composed_counts_as_given_in_whole(plain: dict[str, Any]) -> None:
    with command(*SMALL, "trainer.max_epochs=4", f"run_dir={FILE.parents[1]}") as cfg:
        pass
    assert continued_config(cfg, plain, FILE).differences == ["trainer.max_epochs=4, the checkpoint has 1"]
    with command(*SMALL, "backbone=tiny_clip") as cfg:
        pass
    with pytest.raises(UserError, match=r"^backbone\.name=tiny_clip: .* was trained with tiny_siglip \("):
        continued_config(cfg, plain, FILE)


def test_a_checkpoint_that_does_not_say_how_it_was_composed_goes_on_with_the_options_of_its_parts() -> None:
    overrides = ("experiment=irra", "backbone=tiny_clip", "aug.image=[]", "loss.terms.id.weight=0.5")
    config = trained(*overrides)
    older = {key: value for key, value in config.items() if key != "composed"}
    found, differences = continued(older, *overrides, "trainer.max_epochs=7")
    assert {key: value for key, value in found.items() if key != "composed"} == put(older, "trainer.max_epochs", 7)
    assert differences == ["trainer.max_epochs=7, the checkpoint has 1"]
    with pytest.raises(UserError, match=r"^loss=sdm: .* was trained with loss=irra"):
        continued(older, "experiment=irra", "loss=sdm")


@pytest.mark.parametrize("with_record", [True, False])
def test_the_encoder_of_a_checkpoint_is_tested_under_any_command(with_record: bool) -> None:
    config = trained("experiment=part_cmr", "head.fine=2", "lora=default", "lora.r=3", "seed=5", "dataset.language=vi")
    if not with_record:
        del config["composed"]
    with command("task=test", "loss=baseline", "dataset=rstpreid") as cfg:
        tested = model_config(cfg, config, FILE)
    resolved: Any = OmegaConf.to_container(tested, resolve=True)
    for section in ("img_size", "backbone", "head", "lora"):
        assert resolved[section] == config[section]
    assert (tested.loss.name, tested.seed, tested.dataset.name) == ("part_cmr", 5, "rstpreid")
    assert ("lora.r=3" in tested.composed.overrides) == with_record


@pytest.mark.parametrize("override", ["backbone=clip", "head=part", "lora.r=4", "img_size_str=32x32"])
def test_another_encoder_than_the_checkpoints_is_not_tested(override: str, plain: dict[str, Any]) -> None:
    with (
        command("task=test", override) as cfg,
        pytest.raises(UserError, match=r"was trained with .* leave it out, it comes with the checkpoint"),
    ):
        model_config(cfg, plain, FILE)


def test_a_backbone_may_lie_elsewhere_and_recompute(plain: dict[str, Any]) -> None:
    with command("task=test", "backbone.folder=/x", "backbone.gradient_checkpointing=true") as cfg:
        tested = model_config(cfg, plain, FILE)
    assert (tested.backbone.folder, tested.backbone.gradient_checkpointing) == ("/x", True)


def older(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run of the same options left before the options of `BEFORE` were there."""
    config = deepcopy(config)
    for key in BEFORE:
        section, _, name = key.partition(".")
        del config[section][name]
    del config["evaluation"], config["composed"]["choices"]["evaluation"]
    return config


def test_a_checkpoint_that_is_older_than_an_option_goes_on_as_it_was_trained() -> None:
    config = trained("experiment=irra", name="clip")
    assert (config["dataset"]["interpolation"], config["backbone"]["pos_interpolation"]) == ("bilinear", "bilinear")
    found, differences = continued(older(config), name="clip")
    assert (found["dataset"]["interpolation"], found["backbone"]["pos_interpolation"]) == ("bicubic", "bicubic")
    assert found["evaluation"]["precision"] == "trainer"
    assert list(found["evaluation"]["metrics"]) == ["R1", "R5", "R10", "mAP", "mINP"]
    assert differences == []
    with pytest.raises(UserError, match=r"^dataset\.interpolation=bilinear: .* was trained with bicubic"):
        continued(older(config), "dataset.interpolation=bilinear", name="clip")
    with command("task=test", name="clip") as cfg:
        tested = model_config(cfg, older(config), FILE)
    assert (tested.dataset.interpolation, tested.backbone.pos_interpolation) == ("bicubic", "bicubic")


@pytest.mark.parametrize(
    ("overrides", "expected"), [((), "bilinear"), (("dataset.interpolation=bicubic", "dataset=rstpreid"), "bicubic")]
)
def test_images_are_resized_as_the_checkpoints_were_unless_the_command_says_otherwise(
    overrides: tuple[str, ...], expected: str
) -> None:
    config = trained(name="clip")
    with command("task=test", *overrides, name="m_siglip") as cfg:
        assert cfg.dataset.interpolation != "bilinear"
        assert model_config(cfg, config, FILE).dataset.interpolation == expected


# What a hostile file could name: Python's own, Hydra's, this project's, and a module that tells when it is imported.
CALLS = (
    *("os.system", "os.execv", "posix.system", "builtins.eval", "builtins.exec", "builtins.__import__", "sys.exit"),
    *("subprocess.run", "subprocess.Popen", "shutil.rmtree", "pathlib.Path.unlink", "importlib.import_module"),
    *("runpy.run_path", "pickle.loads", "marshal.loads", "code.interact", "ctypes.CDLL", "webbrowser.open"),
    *("torch.load", "numpy.load", "sympy.sympify", "sympy.parsing.sympy_parser.parse_expr", "pandas.eval"),
    *("hydra.utils.instantiate", "hydra.utils.get_method", "hydra.utils.call", "_target_", "antigravity"),
    *(
        "model.heads.GlobalHead",
        "model.heads.PartHead",
        "utils.download.fetch.main",
        "trainer.main",
        "canary.sing",
        "canary",
    ),
)
PLACES = (
    *("head", "backbone", "lora", "lora.r", "backbone.folder", "backbone.max_length", "img_size", "img_size_str"),
    *("loss", "loss.terms", "loss.terms.nitc", "loss.terms.citc", "aug", "aug.image", "optimizer", "trainer"),
    *("optimizer.param_groups.default", "scheduler", "callbacks", "callbacks.last", "logger", "logger.wandb"),
    *("dataset", "pseudo_label", "compile", "grad_cache.micro_batch", "composed", "composed.choices.head", "new"),
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Says whether anything that a file named has been imported or called."""
    code = f"open({str(tmp_path / 'song')!r}, 'w').write('imported')\ndef sing(*_, **__): pass\n"
    (tmp_path / "canary.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def silent() -> None:
        assert not (tmp_path / "song").exists()
        assert not {"canary", "sympy", "pandas", "antigravity"} & (set(sys.modules) - before)

    yield silent
    silent()


def hostile_parts(call: str) -> tuple[Any, ...]:
    section = {"_target_": call, "a": "__import__('os').system('touch X')", "_args_": ["touch X"]}
    return section, [section], {"name": "x", "inner": {"deep": [section]}}


def assert_calls_are_ours(config: Any, own: Any) -> None:
    """Passes when `config` calls nothing that `own` does not call there."""
    calls = dict(flat(own))
    for key, value in flat(config):
        assert not key.rpartition(".")[2].startswith("_") or calls[key] == value
        assert "_target_" not in str(value) or calls[key] == value


@pytest.fixture(scope="module")
def own() -> DictConfig:
    with command(*SMALL, f"run_dir={FILE.parents[1]}"):
        return compose_options("demo", {}, SMALL, is_whole=False)


def test_whatever_a_file_has_anywhere_no_call_of_it_is_taken(plain: dict[str, Any], own: DictConfig) -> None:
    ours: Any = OmegaConf.to_container(own)
    refused = 0
    for place in (place for place in PLACES if not place.startswith("composed")):
        for part in (part for call in CALLS for part in hostile_parts(call)):
            try:
                assert_calls_are_ours(lay_over(ours, put(plain, place, part), lambda key: False), ours)
            except ForeignValueError:
                refused += 1
    assert refused > 2000


@pytest.fixture
def composed_once(own: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the tests that do not depend on it the time that Hydra takes."""
    monkeypatch.setattr(taken_over, "compose_options", lambda *_, **__: deepcopy(own))


@pytest.mark.parametrize("task", ["train", "test"])
@pytest.mark.usefixtures("composed_once")
def test_no_name_under_target_is_called_or_imported(
    task: str, plain: dict[str, Any], own: DictConfig, canary: Callable[[], None]
) -> None:
    take: Callable[..., Any] = continued_config if task == "train" else model_config
    refused = set()
    with command(*SMALL, f"task={task}", f"run_dir={FILE.parents[1]}") as cfg:
        for place, call in zip(PLACES, cycle(CALLS), strict=False):
            part = hostile_parts(call)[len(place) % 2]
            try:
                taken = take(cfg, put(plain, place, part), FILE)
            except UserError:
                refused.add(place)
            else:
                config = taken if task == "test" else taken.config
                assert_calls_are_ours(OmegaConf.to_container(config), OmegaConf.to_container(own))
            canary()
    assert refused >= {"head", "backbone", "lora", "lora.r", "backbone.folder", "img_size", "composed.choices.head"}
    assert task == "test" or refused == {*PLACES}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head._target_", "sympy.sympify", r"head\._target_: sympy\.sympify, expected model\.heads\.GlobalHead"),
        ("head._partial_", False, r"head\._partial_: False, expected True"),
        ("head._args_", ["x"], r"head\._args_: \['x'\], expected no such key"),
        ("head._recursive_", True, r"head\._recursive_: True, expected no such key"),
        ("backbone._convert_", "object", r"backbone\._convert_: object, expected all"),
        ("backbone.folder", "${oc.env:HOME}", r"backbone\.folder: \$\{oc\.env:HOME\}, expected plain values"),
        ("backbone.max_length", "${oc.decode:1}", r"backbone\.max_length: .*, expected plain values"),
        ("backbone.max_length", "many", r"backbone\.max_length: many, expected a number"),
        ("backbone.max_length", [4], r"backbone\.max_length: \[4\], expected a number"),
        ("backbone.freeze_text", 1, r"backbone\.freeze_text: 1, expected true or false"),
        ("backbone.name", {"x": 1}, r"backbone\.name: \{'x': 1\}, expected text"),
        ("head", None, r"head: None, expected a mapping"),
        ("lora", "os.system", r"lora: os\.system, expected a mapping"),
        ("loss.name", "${seed}", r"loss\.name: \$\{seed\}, expected a plain str"),
        ("seed", "x\x1b[2J", r"seed: x \[2J, expected a plain int"),
        ("composed", [], r"composed: \[\], expected a mapping"),
        ("composed.config", 3, r"composed\.config: 3, expected what trainer\.py writes there"),
        ("composed.choices.head", "../../x", r"head: \.\./\.\./x, expected an option that this project has"),
        ("composed.choices.backbone", ["clip"], r"backbone: \['clip'\], expected an option"),
    ],
)
def test_what_is_no_plain_value_of_ours_is_refused_by_name(
    key: str, value: Any, message: str, plain: dict[str, Any]
) -> None:
    with (
        command("task=test") as cfg,
        pytest.raises(UserError, match=rf"^the config in {FILE} is refused: {message}"),
    ):
        model_config(cfg, put(plain, key, value), FILE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("composed.config", "../x", r"-cn: \.\./x, expected one of"),
        ("composed.choices.loss", "no_such", r"loss: no_such, expected an option that this project has"),
        ("composed.choices.hydra/launcher", "joblib", r"composed\.choices: hydra/launcher, expected groups of"),
        ("composed.choices.loss/term@trainer", "sdm", r"composed\.choices: loss/term@trainer, expected groups of"),
        (
            "aug.image_aug.0._target_",
            "os.system",
            r"aug\.image_aug\.0\._target_: os\.system, expected data\.views\.transf",
        ),
        ("optimizer.param_groups.default.lr", "${x}", r"optimizer\.param_groups\.default\.lr: \$\{x\}, expected plain"),
    ],
)
def test_of_a_config_to_continue_every_part_is_looked_at(
    key: str, value: Any, message: str, plain: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=rf"^the config in {FILE} is refused: {message}"):
        continued(put(plain, key, value))


@pytest.mark.usefixtures("composed_once")
def test_a_config_without_end_is_refused(plain: dict[str, Any]) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(UserError, match=r"aug\.text: a list, expected plain values"):
        continued(put(plain, "aug.text", circle))
    loop: dict[str, Any] = {}
    loop["again"] = loop
    for key in ("aug.text", "grad_cache.micro_batch", "new"):
        with pytest.raises(UserError):
            continued(put(plain, key, loop))
    for config in (None, [], "config", {}, {"composed": {}}):
        with pytest.raises(UserError, match="is refused"), command("task=test") as cfg:
            model_config(cfg, config, FILE)


def test_a_picture_that_was_left_out_stays_out_and_is_no_other_result() -> None:
    config = trained("~evaluation.plots.tsne", "evaluation.rerank=k_reciprocal")
    assert config["composed"]["overrides"] == []
    found, differences = continued(config)
    assert "tsne" not in found["evaluation"]["plots"]
    assert found["evaluation"]["rerank"] == "k_reciprocal"
    assert differences == []
