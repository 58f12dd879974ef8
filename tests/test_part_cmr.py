"""Part-level correspondence as composed: the paper's settings, and its ablations as single overrides."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_models import build_module
from model.tbps import build_encoder
from tests.small_run import ANY_METHOD, CONFIG_DIR
from utils.config.resolvers import register_resolvers

register_resolvers()


def composed(root: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("demo", ["experiment=part_cmr", *ANY_METHOD, f"dataset_root_dir={root}", *overrides])


@pytest.mark.parametrize(
    ("override", "slots", "by_ranking", "by_cmr", "decoders"),
    [
        ("seed=1", (4, 4), 5, 4, 1),
        ("head=part_baseline", (0, 0), 1, 0, 1),
        ("head.fine=0", (4, 0), 5, 0, 1),
        ("~loss.terms.cmr", (4, 4), 9, None, 1),
        ("loss.terms.cmr.levels=[coarse,fine]", (4, 4), 1, 8, 1),
        ("head.separate_decoders=true", (4, 4), 5, 4, 2),
        ("head.coarse=6", (6, 4), 7, 4, 1),
    ],
)
def test_each_row_of_the_papers_tables_is_one_override(
    override: str,
    slots: tuple[int, int],
    by_ranking: int,
    by_cmr: int | None,
    decoders: int,
    small_root: Path,
) -> None:
    cfg = composed(small_root, override)
    encoder = build_encoder(cfg)
    assert dict(encoder.head.slots) == {"global": 1, "coarse": slots[0], "fine": slots[1]}
    terms = build_module(cfg, encoder, num_classes=5).objective.terms
    assert len(terms["ranking"].slots.names) == by_ranking  # type: ignore[union-attr, arg-type]
    assert ("cmr" in terms) == (by_cmr is not None)
    if "cmr" in terms:
        assert len(terms["cmr"].slots.names) == by_cmr  # type: ignore[union-attr, arg-type]
    assert sum(name.endswith("tokens") and "decoder" in name for name, _ in encoder.head.named_parameters()) == decoders


def test_it_has_the_papers_settings(small_root: Path) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("resnet50_bert", overrides=["experiment=part_cmr"])
    assert (cfg.backbone.name, cfg.backbone.freeze_text) == ("resnet50_bert", True)
    assert (cfg.img_size, cfg.dataset.batch_size, cfg.trainer.max_epochs) == ([384, 128], 32, 60)
    assert (cfg.head.coarse, cfg.head.fine) == (4, 4)
    assert (cfg.scheduler.name, cfg.scheduler.milestones, cfg.scheduler.factor) == ("multistep", [20, 40, 50, 55], 0.1)
    assert (cfg.optimizer.algorithm, cfg.optimizer.param_groups.default.lr) == ("adam", 5e-4)
    cfg = composed(small_root)
    encoder = build_encoder(cfg)
    optimizer = instantiate(optimizer_config())(build_module(cfg, encoder, num_classes=5).named_parameters())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: rates.get(id(p)) for name, p in encoder.named_parameters()}
    for name, rate in names.items():
        frozen = "text_model" in name or "vision_model.pooler" in name
        tower = "vision_model" in name or "logit_scale" in name
        assert rate == (None if frozen else pytest.approx(5e-5 if tower else 5e-4)), name


def optimizer_config() -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("optimizer/part_cmr").optimizer
