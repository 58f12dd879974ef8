"""What makes a run of the embedded default as small as can be, on the dataset of the fixture `small_root`."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

CONFIG_DIR = Path(__file__).parents[1] / "config"
ANY_METHOD = (
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "dataset.num_instance=2",
    "dataset.num_workers=0",
    "scheduler.warmup_epochs=0.5",
    "shown_queries=2",
    "~evaluation.plots.tsne",  # takes as long as a training step or two
)
SMALL = (*ANY_METHOD, "loss=hybrid_circle", "loss.terms.simclr.hidden_dim=16", "trainer.max_epochs=1")


@lru_cache(maxsize=64)  # composing takes a quarter of a second
def composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


@contextmanager
def command(*overrides: str, name: str = "demo") -> Iterator[DictConfig]:
    """Gives the config that Hydra composes of a command line, and lets the project know the command line meanwhile."""
    cfg = deepcopy(composed(name, overrides))
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        yield cfg
    finally:
        HydraConfig.instance().cfg = None
