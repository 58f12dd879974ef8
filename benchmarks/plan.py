"""Planned memory of a training step of every experiment on one GPU. Nothing is computed.

    uv run benchmarks/plan.py [--memory-gb 12] [any Hydra overrides...]

It prints a Markdown table. A row is a primary config with an experiment at its defaults, with the peak of a step in GiB
and the largest batch that fits. If a config does not fit, its row names options that make it fit.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra import compose, initialize_config_dir

from lightning_plan import trace_step
from utils.config.resolvers import register_resolvers
from utils.memory.plan import MOST, gib, make_plan
from utils.training.log_filters import quiet_libraries

CONFIG = Path(__file__).parents[1] / "config"
HYBRID, FULL, LORA = "loss=hybrid_circle", "lora=none", "lora=default"
RUNS = (
    ("demo", ()),
    ("cir_msiglip", ()),
    ("cir_msiglip", (FULL,)),
    ("m_siglip", ()),
    ("m_siglip", (LORA,)),
    ("m_siglip", ("lora=dora",)),
    ("m_siglip", (HYBRID, LORA)),
    ("clip", ()),
    ("clip", (LORA,)),
    *(
        (name, (f"experiment={experiment}",))
        for name in ("clip", "m_siglip")
        for experiment in ("irra", "fmfa", "cpcl", "rde")
    ),
    ("m_siglip", ("experiment=irra", LORA)),
    *((name, ("experiment=part_cmr",)) for name in ("resnet50_bert", "clip", "m_siglip")),
    ("resnet50_bert", ("experiment=part_cmr", "backbone=vit_bert")),
)
HEADER = ("config", "million parameters", "trained", "weights", "gradients", "optimizer", "activations", "peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--memory-gb", type=float, default=12.0, help="of the GPU")
    options, overrides = parser.parse_known_args()

    register_resolvers()
    quiet_libraries()
    print(f"| {' | '.join((*HEADER, 'batch', 'largest', 'fits'))} |")
    print(f"|{'---|' * (len(HEADER) + 3)}", flush=True)
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        for name, own in RUNS:
            cfg = compose(name, overrides=["run_dir=.", f"plan.memory_gb={options.memory_gb}", *own, *overrides])
            plan = make_plan(cfg, trace_step)
            step = plan.traced.step
            row = [
                " ".join([f"-cn {name}", *own]),
                *(f"{number / 1e6:.1f}" for number in plan.traced[1:]),
                *map(gib, (step.weights, step.gradients, step.optimizer, step.activations, plan.peak)),
                str(plan.size),
                f">= {MOST}" if plan.largest >= MOST else str(plan.largest),
                "yes" if plan.fits else "no; " + "; ".join(plan.advice[1:]),
            ]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
