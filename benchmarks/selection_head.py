"""Cost of token selection beside the global head: planned memory, operations, and time of a training step.

    uv run benchmarks/selection_head.py [--primary clip] [--batch 4] [--pairs 5]

The memory is that of a step of `-cn PRIMARY experiment=rde` at its batch, from `task=plan`. The time is measured on the
CPU with random weights: steps with one head and the other take turns, and the ratio is the median of the pairs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from prettytable import PrettyTable, TableStyle

from data.loading.dummy_batch import blank_batch
from lightning_models import build_module
from lightning_plan import measure_efficiency, trace_step
from model.tbps import build_encoder
from utils.config.resolvers import register_resolvers
from utils.memory.trace import GIB
from utils.training.log_filters import quiet_libraries

CONFIG = Path(__file__).parents[1] / "config"
HEADS = ("global", "token_selection")


class Trainee:
    """A module with random weights whose steps are timed."""

    def __init__(self, cfg: DictConfig, batch: int) -> None:
        torch.manual_seed(0)
        self._module = build_module(cfg, build_encoder(cfg, weights=False), num_classes=1).train()
        self._batch = blank_batch(self._module.objective.needs, batch, cfg.img_size, cfg.backbone.max_length)
        if self._module.labeler is not None:
            self._module.labeler.preset(batch)

    def seconds(self) -> float:
        """Returns the time of a forward and backward pass."""
        start = time.perf_counter()
        self._module.objective(self._module.features(self._batch)).total.backward()
        self._module.zero_grad()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--primary", default="clip")
    parser.add_argument("--batch", type=int, default=4, help="pairs of a timed step")
    parser.add_argument("--pairs", type=int, default=5, help="timed steps of each head")
    options = parser.parse_args()
    register_resolvers()
    quiet_libraries()
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        configs = {
            head: compose(options.primary, overrides=["run_dir=.", "experiment=rde", f"head={head}"]) for head in HEADS
        }
    trainees = {head: Trainee(cfg, options.batch) for head, cfg in configs.items()}
    for trainee in trainees.values():
        trainee.seconds()
    times = [{head: trainee.seconds() for head, trainee in trainees.items()} for _ in range(options.pairs)]
    ratio = statistics.median(pair["token_selection"] / pair["global"] for pair in times)
    table = PrettyTable(["head", "peak GiB", "at batch", "GFLOPs an image", "a caption", "step"], align="r")
    table.set_style(TableStyle.MARKDOWN)
    for head, cfg in configs.items():
        peak, cost = trace_step(cfg, cfg.dataset.batch_size).step.total / GIB, measure_efficiency(cfg)
        relative = 1.0 if head == "global" else ratio
        row = [f"{peak:.2f}", cfg.dataset.batch_size, f"{cost.image_gflops:.2f}", f"{cost.caption_gflops:.2f}"]
        table.add_row([head, *row, f"{relative:.3f}"])
    print(table)


if __name__ == "__main__":
    main()
