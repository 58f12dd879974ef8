"""What makes a run of the embedded default as small as can be, on the dataset of the fixture `small_root`."""

from pathlib import Path

CONFIG_DIR = Path(__file__).parents[1] / "config"
ANY_METHOD = (
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "dataset.num_instance=2",
    "dataset.num_workers=0",
    "scheduler.warmup_epochs=0.5",
    "shown_queries=2",
)
SMALL = (*ANY_METHOD, "loss.terms.simclr.hidden_dim=16")
