"""Peak memory and time of a training step for growing batches, with and without GradCache.

    uv run benchmarks/grad_cache.py [--batches 64 128 256 512 1024] [--micro-batch 64] [--base] [--threads 2]

Every measurement runs in a separate process: the losses of hybrid_circle on four image views and a caption of 64
tokens, with a SigLIP of 3 layers and width 128 at 128x64 in fp32. With --base it has 12 layers and width 768 at 384x128
in bf16, which needs a GPU. The peak is the memory that forward and backward allocate in addition to weights and batch,
gradients of the weights included. efa_memory.py explains how it is measured.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hydra import compose, initialize_config_dir
from prettytable import PrettyTable
from torch import nn
from transformers import SiglipConfig, SiglipModel

from benchmarks.efa_memory import MIB, peak_on_cpu, peak_on_gpu
from model.backbones.vision_language import SiglipBackbone
from model.features import Features
from model.grad_cache import GradCache
from model.heads import GlobalHead
from model.objectives import ModelSpec, build_objective
from model.tbps import TBPS

CONFIG = Path(__file__).parents[1] / "config"
VIEWS = ("image", "image_aug", "image_ss1", "image_ss2")
LENGTH, VOCABULARY, PATCH = 64, 2000, 16


class Size(NamedTuple):
    layers: int
    width: int
    height: int
    breadth: int


TINY, BASE = Size(3, 128, 128, 64), Size(12, 768, 384, 128)


class Cost(NamedTuple):
    """The cost of one forward and backward pass: peak in bytes, seconds, and the loss, which both forms must share."""

    peak: int
    seconds: float
    loss: float


def make_model(size: Size) -> nn.ModuleDict:
    torch.manual_seed(0)
    tower = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": max(1, size.width // 64),
    }
    text = {
        **tower,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**tower, "patch_size": PATCH}))
    grid = size.height // PATCH, size.breadth // PATCH
    encoder = TBPS(
        SiglipBackbone(model, [0.5] * 3, [0.5] * 3, grid, sigmoid=True, pos_interpolation="bicubic"),
        GlobalHead(size.width),
    )
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        terms = compose("demo", overrides=["loss=hybrid_circle"]).loss.terms
    spec = ModelSpec(size.width, size.width, num_classes=1, vocab_size=VOCABULARY)
    return nn.ModuleDict({"encoder": encoder, "objective": build_objective(terms, spec)})


def measure(size: Size, batch: int, micro_batch: int | None, threads: int, device: str) -> Cost:
    torch.set_num_threads(threads)
    model = make_model(size).to(device)
    draw = torch.Generator().manual_seed(1)
    shape = batch, 3, size.height, size.breadth
    images = {v: torch.randint(256, shape, generator=draw, dtype=torch.uint8).to(device) for v in VIEWS}
    ids = torch.randint(VOCABULARY, (batch, LENGTH), generator=draw).to(device)
    pids = (torch.arange(batch) // 4).to(device)

    def step(pairs: int) -> float:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=size == BASE):
            features = Features(
                model["encoder"] if micro_batch is None else GradCache(model["encoder"], micro_batch),
                {view: pixels[:pairs] for view, pixels in images.items()},
                {"text": (ids[:pairs], torch.ones_like(ids[:pairs]))},
                {"pids": pids[:pairs]},
                recompute=micro_batch is not None,
            )
            loss = model["objective"](features).total
        del features
        loss.backward()
        return loss.item()

    step(4)  # libraries allocate their workspace
    model.zero_grad()
    peak = (peak_on_gpu if device == "cuda" else peak_on_cpu)(partial(step, batch))
    start = time.perf_counter()
    value = step(batch)
    return Cost(peak, time.perf_counter() - start, value)


def in_own_process(size: Size, batch: int, micro_batch: int | None, threads: int, device: str) -> Cost:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, size, batch, micro_batch, threads, device).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="pairs")
    parser.add_argument("--micro-batch", type=int, default=64, help="images, and captions, encoded at a time")
    parser.add_argument("--base", action="store_true", help="ViT-B/16 at 384x128 under bf16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "KINETO_LOG_LEVEL": "99"}

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = BASE if options.base else TINY
    table = PrettyTable()
    for batch in options.batches:
        plain, cached = (
            in_own_process(size, batch, micro_batch, options.threads, device)
            for micro_batch in (None, options.micro_batch)
        )
        if abs(plain.loss - cached.loss) > (1e-2 if size == BASE else 1e-4) * abs(plain.loss):
            raise AssertionError(f"batch {batch}: the plain step gives {plain.loss}, GradCache {cached.loss}")
        row = {
            "batch": batch,
            "plain MiB": f"{plain.peak / MIB:.0f}",
            "GradCache MiB": f"{cached.peak / MIB:.0f}",
            "times smaller": f"{plain.peak / cached.peak:.1f}",
            "plain s": f"{plain.seconds:.2f}",
            "GradCache s": f"{cached.seconds:.2f}",
            "times as long": f"{cached.seconds / plain.seconds:.2f}",
        }
        table.field_names = list(row)
        table.add_row(list(row.values()))
        print(f"{batch}: done", file=sys.stderr, flush=True)
    print(f"on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, micro-batches of {options.micro_batch}")
    print(table)


if __name__ == "__main__":
    main()
