"""The drawn dataset and its tiny backbones, made once for all claims that train on them.

    python -m benchmarks.gpu_claims.drawn FOLDER

makes the larger dataset and its backbones while the first claims use the GPU.
"""

import os
import sys
from pathlib import Path

from filelock import FileLock

from benchmarks.gpu_claims.bench import Bench
from data.synthetic import SyntheticSpec, generate
from prepare_checkpoints import prepare

# Large enough for a meaningful R@1 and small enough to train in seconds; without a GPU, as small as possible.
LARGE, LARGE_STEPS = SyntheticSpec(train=600, val=60, test=100), 40
TINY, TINY_STEPS = SyntheticSpec(train=16, val=4, test=5, images_per_identity=2, height=64, width=32), 2
BACKBONES = ("tiny_siglip", "tiny_clip")  # of the default, and of experiment=pretrain


def drawn_root(bench: Bench) -> Path:
    """Returns a `dataset_root_dir` with the drawn dataset and `BACKBONES`."""
    return _make(bench.folder, *((LARGE, LARGE_STEPS) if bench.on_gpu else (TINY, TINY_STEPS)))


def _make(folder: Path, spec: SyntheticSpec, steps: int) -> Path:
    root = folder / "drawn"
    with FileLock(folder / "drawn.lock"):
        generate(root, spec, workers=2)
        for backbone in BACKBONES:
            prepare(backbone, root, steps=steps)
    return root


if __name__ == "__main__":
    os.nice(10)
    _make(Path(sys.argv[1]), LARGE, LARGE_STEPS)
