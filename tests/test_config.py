"""Every YAML of config/ composes into the default config and instantiates."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from data.annotations.layouts import layout_of
from data.batch import VIEWS
from data.views.augmentation import Augmentation
from data.views.build import Views
from model.backbones import Backbone
from model.backbones.lora import add_lora
from model.labeling import Labeling
from model.objectives import ModelSpec, build_objective
from model.tbps import TBPS
from solver.groups import split_parameters
from utils.config.evaluation import build_measures, build_plots, build_reranker
from utils.config.resolvers import register_resolvers
from utils.errors import UserError
from utils.ranking.metrics import measure
from utils.ranking.positives import Ranks
from utils.report.loggers import build_loggers

register_resolvers()
CONFIG = Path(__file__).parents[1] / "config"
PRIMARY = sorted(path.stem for path in CONFIG.glob("[!_]*.yaml") if path.stem != "base")
OPTIONS = sorted(
    f"{path.parent.relative_to(CONFIG)}={path.stem}"
    for path in CONFIG.glob("*/*.yaml")
    if not path.stem.startswith("_") and path.parent.name not in ("experiment", "debug")
)
EXPERIMENTS = sorted(path.stem for path in CONFIG.glob("experiment/*.yaml"))
METHODS = ("cpcl", "fmfa", "irra", "part_cmr", "rde")
DATASETS = sorted({path.stem for path in CONFIG.glob("dataset/[!_]*.yaml")} - {"shards"})  # it trains beside another
TERMS = sorted(path.stem for path in CONFIG.glob("loss/term/[!_]*.yaml"))
SPEC = ModelSpec(embed_dim=32, pooled_dim=32, num_classes=5, vocab_size=40)


def composed(*overrides: str, name: str = "demo") -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=False)


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


def check_dataset(cfg: DictConfig, folders: dict[str, Path]) -> None:
    assert layout_of(cfg.dataset.name).folder == cfg.dataset.description.folder
    assert cfg.dataset.batch_size % cfg.dataset.num_instance == 0


def check_backbone(cfg: DictConfig, folders: dict[str, Path]) -> None:
    if "model" in cfg.backbone:  # it says what it is only with a folder or an architecture: tests/test_any_backbone.py
        cfg.backbone.model, cfg.backbone.folder = "ViT-B-16-SigLIP2-256", "nowhere/own_checkpoints"
        assert [cfg.backbone[key] for key in ("name", "family", "sigmoid")] == ["own", "open_clip", True]
        return
    cfg.backbone.folder, cfg.backbone.max_length = folders[cfg.backbone.family], 12
    assert isinstance(instantiate(cfg.backbone), Backbone)


def check_head(cfg: DictConfig, folders: dict[str, Path]) -> None:
    cfg.backbone.folder, cfg.backbone.max_length = folders[cfg.backbone.family], 12
    encoder = TBPS(instantiate(cfg.backbone), instantiate(cfg.head)(32, (4, 4)))
    pixels = torch.zeros(2, 3, *cfg.img_size, dtype=torch.uint8)
    assert encoder.encode_image(pixels).embedding.shape == (2, encoder.embed_dim)


def check_lora(cfg: DictConfig, folders: dict[str, Path]) -> None:
    cfg.backbone.folder, cfg.backbone.max_length = folders[cfg.backbone.family], 12
    if cfg.lora.r > 0:
        add_lora(instantiate(cfg.backbone), **{k: v for k, v in cfg.lora.items() if k != "name"})


def check_loss(cfg: DictConfig, folders: dict[str, Path]) -> None:
    assert build_objective(cfg.loss.terms, SPEC).needs


def check_pseudo_label(cfg: DictConfig, folders: dict[str, Path]) -> None:
    if cfg.pseudo_label.name == "none":
        assert list(cfg.pseudo_label) == ["name"]
        return
    if cfg.pseudo_label.name == "kmeans":
        cfg.pseudo_label.images.clusters = 7
        assert cfg.pseudo_label.texts.clusters == 7
    labeler = instantiate(cfg.pseudo_label)
    assert isinstance(labeler, Labeling)
    assert labeler.name == cfg.pseudo_label.name


def check_masking(cfg: DictConfig, folders: dict[str, Path]) -> None:
    if cfg.masking.name == "uniform":
        assert list(cfg.masking) == ["name"]
        return
    assert instantiate(cfg.masking, max_length=12).steps.shape == (0, 12)


def check_aug(cfg: DictConfig, folders: dict[str, Path]) -> None:
    assert isinstance(instantiate(cfg.aug), Augmentation)


def check_optimizer(cfg: DictConfig, folders: dict[str, Path]) -> None:
    optimizer = instantiate(cfg.optimizer)(linear().named_parameters())
    assert min(group["lr"] for group in optimizer.param_groups) >= cfg.optimizer.param_groups.default.lr


def check_scheduler(cfg: DictConfig, folders: dict[str, Path]) -> None:
    optimizer = instantiate(cfg.optimizer)(linear().named_parameters())
    assert instantiate(cfg.scheduler)(optimizer, steps_per_epoch=5, max_epochs=80).get_last_lr()


def check_trainer(cfg: DictConfig, folders: dict[str, Path]) -> None:
    assert isinstance(instantiate(cfg.trainer, accelerator="cpu"), L.Trainer)


def check_callbacks(cfg: DictConfig, folders: dict[str, Path]) -> None:
    assert all(isinstance(callback, L.Callback) for callback in instantiate(cfg.callbacks).values())


def check_evaluation(cfg: DictConfig, folders: dict[str, Path]) -> None:
    ranks = Ranks.of([np.array([2, 3]), np.array([1])])
    assert measure(ranks, build_measures(cfg.evaluation)) == measure(ranks)
    for name in cfg.evaluation.rerankers:
        cfg.evaluation.rerank = name
        reranker = build_reranker(cfg.evaluation)
        assert reranker is not None
        assert reranker.name == name
    assert all(callable(plot) for plot in build_plots(cfg.evaluation).values())


def check_logger(cfg: DictConfig, folders: dict[str, Path]) -> None:
    cfg.logger.wandb.mode = "disabled"
    loggers = build_loggers(cfg.logger, cfg.run_dir, {}, {})
    assert len(loggers) == cfg.logger.csv + cfg.logger.tensorboard


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_instantiates(
    option: str, hub_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    group = option.split("=")[0]
    size = ["img_size_str=32x32"] if group in ("backbone", "head", "lora") else []
    cfg = composed(option, f"run_dir={tmp_path}", *size)
    check: Any = globals()[f"check_{group}"]
    check(cfg, hub_folders)


@pytest.mark.parametrize("name", PRIMARY)
def test_every_primary_config_resolves_without_a_missing_value(name: str) -> None:
    config = OmegaConf.to_container(composed(name=name), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    assert config["img_size"][0] > 0


@pytest.mark.parametrize("term", TERMS)
def test_every_term_can_be_added_on_the_command_line(term: str) -> None:
    added = composed(f"+loss/term@loss.terms.{term}_too={term}", f"loss.terms.{term}_too.weight=0.3")
    assert added.loss.terms[f"{term}_too"].weight == 0.3
    assert build_objective(added.loss.terms, SPEC).terms[f"{term}_too"].weight == 0.3


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    ("primary", "dataset"),
    [("demo", "drawn"), *((primary, d) for primary in ("clip", "m_siglip") for d in DATASETS)],
)
def test_every_experiment_composes_with_every_backbone_and_dataset(experiment: str, primary: str, dataset: str) -> None:
    cfg = composed(f"experiment={experiment}", f"dataset={dataset}", name=primary)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert cfg.dataset.name == dataset
    embedded = dict.fromkeys(("cpcl", "fmfa", "irra", "pretrain", "rde"), "tiny_clip")
    embedded["part_cmr"] = "tiny_resnet_bert"
    assert cfg.backbone.name == {"demo": embedded.get(experiment, "tiny_siglip")}.get(primary, primary)
    needs = build_objective(cfg.loss.terms, SPEC).needs & set(VIEWS)
    assert Views(needs, cfg.backbone.max_length, instantiate(cfg.aug))
    assert split_parameters(linear().named_parameters(), cfg.optimizer.param_groups)
    assert str(cfg.scheduler.warmup_epochs).endswith("%") or cfg.scheduler.warmup_epochs < cfg.trainer.max_epochs


@pytest.mark.parametrize("experiment", METHODS)
def test_a_recipe_is_the_same_whatever_the_primary_config_has_of_its_own(experiment: str) -> None:
    """A primary that sets a loss, LoRA or a schedule must not train them under another method's name."""
    choices = (f"experiment={experiment}", "dataset=cuhk_pedes", "backbone=clip", "trainer=gpu", "run_dir=here")
    of_primary = {name: OmegaConf.to_container(composed(*choices, name=name), resolve=True) for name in PRIMARY}
    assert all(of_primary[name] == of_primary["clip"] for name in PRIMARY)
    cfg = composed(f"experiment={experiment}", name="cir_msiglip")
    assert (cfg.loss.name, cfg.backbone.name, cfg.lora.name) == (experiment, "m_siglip", "full")
    assert cfg.trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize(
    ("choices", "images", "positions"),
    [
        (("clip",), "bilinear", "bilinear"),
        (("clip", "experiment=irra"), "bilinear", "bilinear"),
        (("clip", "experiment=irra", "dataset=icfg_pedes"), "bilinear", "bilinear"),
        (("clip", "dataset.interpolation=null"), None, "bilinear"),
        (("demo", "backbone=clip"), "bilinear", "bilinear"),
        (("cir_msiglip",), "bilinear", "bicubic"),
        (("cir_msiglip", "experiment=irra"), None, "bicubic"),
        (("m_siglip",), None, "bicubic"),
        (("clip", "backbone=siglip"), None, "bicubic"),
        (("demo",), None, "bicubic"),
        (("demo", "experiment=irra"), None, "bicubic"),
    ],
)
def test_images_and_positions_are_resized_as_in_the_published_recipes(
    choices: tuple[str, ...], images: str | None, positions: str
) -> None:
    cfg = composed(*choices[1:], name=choices[0])
    assert (cfg.dataset.interpolation, cfg.backbone.pos_interpolation) == (images, positions)


@pytest.mark.parametrize("group", ["experiment", "pseudo_label"])
def test_every_file_on_a_dataset_belongs_to_an_option_and_a_dataset(group: str) -> None:
    files = list(CONFIG.glob(f"{group}/on/*/*.yaml"))
    assert files
    assert {file.parent.name for file in files} <= {file.stem for file in CONFIG.glob(f"{group}/*.yaml")}
    assert {file.stem for file in files} <= set(DATASETS)


def test_what_a_labelling_has_of_its_own_on_a_dataset_leaves_other_labellings_and_the_command_line_alone() -> None:
    cfg = composed("experiment=cpcl", "pseudo_label.images.k1=7")
    assert (cfg.pseudo_label.images.k1, cfg.pseudo_label.texts.k1) == (7, 6)
    cfg = composed("experiment=cpcl", "pseudo_label=kmeans", "pseudo_label.images.clusters=5")
    assert set(cfg.pseudo_label.images) == {"_target_", "clusters"}


@pytest.mark.parametrize(
    ("dataset", "margins", "alpha", "epochs"),
    [
        ("cuhk_pedes", (0.1, 0.1), 10, 60),
        ("icfg_pedes", (0.2, 1.0), 10, 100),
        ("rstpreid", (0.2, 0.8), 1, 60),
    ],
)
def test_fmfa_has_the_papers_settings_of_each_dataset(
    dataset: str, margins: tuple[float, float], alpha: float, epochs: int
) -> None:
    cfg = composed("experiment=fmfa", f"dataset={dataset}", name="clip")
    terms = cfg.loss.terms
    assert (terms.efa.margin_text, terms.efa.margin_image) == margins
    assert (terms.a_sdm.alpha, cfg.trainer.max_epochs) == (alpha, epochs)
    assert (cfg.img_size, cfg.dataset.batch_size, cfg.scheduler.warmup_epochs) == ([384, 128], 64, 5)
    assert cfg.optimizer.param_groups.default.lr == 1e-5


ABLATIONS = {
    ("irra", "loss=sdm"): {"sdm"},
    ("irra", "~loss.terms.mlm"): {"sdm", "id"},
    ("irra", "~loss.terms.id"): {"sdm", "mlm"},
    ("fmfa", "~loss.terms.efa"): {"a_sdm", "id", "mlm"},
    ("irra", "+loss/term@loss.terms.efa=efa"): {"sdm", "id", "mlm", "efa"},
    ("part_cmr", "~loss.terms.cmr"): {"id", "ranking"},
}


@pytest.mark.parametrize(("experiment", "override"), ABLATIONS)
def test_each_row_of_the_papers_ablations_is_one_override(experiment: str, override: str) -> None:
    cfg = composed(f"experiment={experiment}", override)
    assert set(build_objective(cfg.loss.terms, SPEC).terms) == ABLATIONS[experiment, override]


CPCL_ROWS = {
    "loss=itc pseudo_label=none": ({"itc"}, "none"),
    "loss=itc": ({"itc"}, "two_stage"),
    "~loss.terms.icpm pseudo_label.oplm=none": ({"pcm", "itc"}, "none"),
    "~loss.terms.pcm pseudo_label.oplm=none": ({"icpm", "itc"}, "none"),
    "pseudo_label.oplm=none": ({"pcm", "icpm", "itc"}, "none"),
    "~loss.terms.pcm": ({"icpm", "itc"}, "two_stage"),
    "~loss.terms.icpm": ({"pcm", "itc"}, "two_stage"),
    "": ({"pcm", "icpm", "itc"}, "two_stage"),
}


@pytest.mark.parametrize("row", CPCL_ROWS)
def test_the_rows_of_cpcls_ablation_are_two_short_overrides_at_most(row: str) -> None:
    """OPLM, PCM and ICPM on and off, in the order of table 4; `itc` is of outliers unless it is the baseline."""
    cfg = composed("experiment=cpcl", *row.split())
    terms = build_objective(cfg.loss.terms, SPEC).terms
    assert (set(terms), cfg.pseudo_label.get("oplm", "none")) == CPCL_ROWS[row]
    assert terms["itc"].pairs == ("all" if "loss=itc" in row else "outliers")


@pytest.mark.parametrize("primary", ["clip", "m_siglip"])
def test_cpcl_has_the_papers_settings(primary: str) -> None:
    cfg = composed("experiment=cpcl", "dataset=cuhk_pedes", name=primary)
    assert (cfg.dataset.batch_size, cfg.dataset.sampler) == (128, "random")
    assert (cfg.trainer.max_epochs, cfg.scheduler.name, cfg.scheduler.warmup_epochs) == (60, "cosine", 5)
    default = cfg.optimizer.param_groups.default
    assert (cfg.optimizer.algorithm, default.lr, default.lr_start) == ("adam", 1e-5, 1e-6)
    assert {(c.k1, c.k2, c.eps, c.min_samples) for c in (cfg.pseudo_label.images, cfg.pseudo_label.texts)} == {
        (20, 6, 0.5, 2),
        (20, 6, 0.6, 4),
    }
    assert (cfg.loss.terms.pcm.momentum, cfg.loss.terms.pcm.start) == (0.9, "mean")
    assert (cfg.loss.terms.pcm.matching, cfg.pseudo_label.oplm) == ("cross_modal", "two_stage")


def test_settings_of_a_loss_that_is_not_there_end_in_the_overrides_that_help() -> None:
    without = ("experiment=fmfa", "loss=sdm", "dataset=icfg_pedes")
    with pytest.raises(UserError, match=r"^loss\.terms\.efa cannot be built: there is no such loss") as caught:
        build_objective(composed(*without).loss.terms, SPEC)
    added, dropped = re.findall(r"'(.*?)'", str(caught.value))
    cfg = composed(*without, *added.split())
    assert (cfg.loss.terms.efa.margin_text, cfg.loss.terms.efa.margin_image) == (0.2, 1.0)
    assert set(build_objective(cfg.loss.terms, SPEC).terms) == {"sdm", "efa"}
    assert set(build_objective(composed(*without, dropped).loss.terms, SPEC).terms) == {"sdm"}


def test_the_circle_strategies_have_the_released_projector_and_augmentation() -> None:
    spec = ModelSpec(embed_dim=768, pooled_dim=768, num_classes=5, vocab_size=40)
    for loss in ("baseline", "in_modal_circle", "nc_itc", "pure_circle", "hybrid_circle"):
        cfg = composed(f"loss={loss}", name="cir_msiglip")
        projector: Any = build_objective(cfg.loss.terms, spec).terms["simclr"]
        sizes = [tuple(p.shape) for p in projector.simclr_projector.parameters()]
        assert sizes == [(768, 768), (768,), (768, 768), (768,)]
        assert (cfg.aug.name, cfg.aug.image) == ("cir", cfg.aug.image_aug)
    assert composed("loss=tbps_clip", name="cir_msiglip").loss.terms.simclr.hidden_layers == 2
    assert composed("experiment=cir", "dataset=drawn", name="m_siglip").aug.image == []


PAPER_TBPS = (
    "img_size_str='(256,256)' dataset=cuhk_pedes dataset.sampler=random loss.softlabel_ratio=0.0 "
    "trainer.max_epochs=60 optimizer=tbps_clip_no_decay optimizer.param_groups.default.lr=1e-5"
)
PAPER_IRRA = (
    "img_size_str='(256,256)' dataset=cuhk_pedes dataset.sampler=identity dataset.num_instance=1 loss=irra "
    "loss.softlabel_ratio=0.0 trainer.max_epochs=60 optimizer=irra_no_decay "
    "optimizer.param_groups.default.lr=1e-5"
)


@pytest.mark.parametrize("overrides", [PAPER_TBPS, PAPER_IRRA], ids=["tbps", "irra"])
def test_the_commands_of_the_papers_readme_compose(overrides: str) -> None:
    cfg = composed(*overrides.split(), name="m_siglip")
    assert cfg.img_size == [256, 256]
    assert cfg.backbone.name == "m_siglip"
    assert cfg.backbone.folder == "./m_siglip_checkpoints"
    assert (cfg.dataset.name, cfg.dataset_root_dir) == ("cuhk_pedes", ".")
    assert (cfg.loss.softlabel_ratio, cfg.trainer.max_epochs) == (0.0, 60)
    assert cfg.optimizer.param_groups.default.lr == 1e-5


@pytest.mark.parametrize("experiment", METHODS)
def test_every_experiment_works_under_the_primary_of_the_circle_strategies(experiment: str) -> None:
    plain, changed = (composed(f"experiment={experiment}", name=name) for name in ("m_siglip", "cir_msiglip"))
    assert changed == plain


def test_a_loss_without_circle_works_under_the_primary_of_the_circle_strategies() -> None:
    assert set(composed("loss=irra", name="cir_msiglip").loss.terms) == {"sdm", "id", "mlm"}


def test_overrides_of_single_terms() -> None:
    cfg = composed("loss=hybrid_circle", "loss.terms.cross_modal_circle.gamma=64", "~loss.terms.citc")
    assert cfg.loss.terms.cross_modal_circle.gamma == 64
    assert set(cfg.loss.terms) == {"nitc", "cross_modal_circle", "simclr"}
