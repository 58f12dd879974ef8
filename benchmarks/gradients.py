"""Which pairs carry the gradient of the Circle losses, and how much of the whole gradient that is.

    uv run benchmarks/gradients.py                              a table, from the tiny CLIP
    uv run benchmarks/gradients.py --start CHECKPOINT.ckpt      a table, from another start
    uv run benchmarks/gradients.py --curves outputs/methods --out docs/gradients.svg

The first two forms print a table. Batches of training pairs of the drawn dataset, two images of a person each, are
encoded once, and each loss is computed on them together with N-ITC, without a step. Per loss and batch size:

share      norm of the term's weighted gradient at the features, divided by the sum of that norm and that of N-ITC
negatives  effective number of negative pairs: exp of the entropy of |dL/ds_ij| over the negatives of the batch
positives  the same over the positives

The third form draws `train/gradient/<term>` of the runs of benchmarks/methods.py, means over seeds.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from prettytable import PrettyTable, TableStyle

ROOT: Final = Path(__file__).parents[1]
PAIRS: Final = 512  # of each row of the table
BATCH_SIZES: Final = (16, 64, 256)
CURVES: Final = {
    "hybrid": ("cross_modal_circle", "Circle over the batch, gamma 128, weight 0.1"),
    "anchor": ("cross_modal_circle", "Circle per anchor, gamma 32, weight 1"),
    "in_modal": ("in_modal_circle", "Circle within a modality"),
    "hybrid_3": ("cross_modal_circle", "over the batch, three epochs"),
    "curriculum_3": ("cross_modal_circle", "the same with a ramp"),
}


def losses() -> dict[str, tuple[float, Callable[..., Any]]]:
    """Returns name -> (weight, loss of unit-norm images ``(B, E)``, texts ``(B, E)`` and identities)."""
    from model.objectives import circle

    def in_modal(image: Any, text: Any, pids: Any) -> Any:
        return (circle.in_modal_circle(image, pids) + circle.in_modal_circle(text, pids)) / 2

    cross = circle.cross_modal_circle
    return {
        "cross-modal, batch, gamma 128, weight 0.1": (0.1, cross),
        "cross-modal, batch, gamma 32, weight 0.1": (0.1, partial(cross, gamma=32.0)),
        "cross-modal, anchor, gamma 128, weight 1": (1.0, partial(cross, scope="anchor")),
        "cross-modal, anchor, gamma 32, weight 1": (1.0, partial(cross, gamma=32.0, scope="anchor")),
        "in-modal, batch, gamma 128, weight 0.1": (0.1, in_modal),
        "NC-ITC, gamma 80": (1.0, circle.nc_itc),
    }


def encoded(start: str | None, pairs: int) -> tuple[Any, Any, Any, float]:
    """Returns features before normalisation of images and captions ``(N, D)``, identities ``(N,)``, and the scale."""
    import torch
    from hydra import compose, initialize_config_dir

    import trainer  # noqa: F401  registers the resolvers of the config
    from lightning_data import build_data
    from lightning_run import prepare
    from model.tbps import build_encoder
    from utils.checkpoints.weights import encoder_weights, load_weights, read_checkpoint

    overrides = ["experiment=irra", "loss=itc", f"dataset.batch_size={pairs}", "dataset.num_workers=0", "run_dir=."]
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        cfg = compose("demo", overrides=overrides)
    prepare(cfg)
    data, encoder = build_data(cfg), build_encoder(cfg)
    if start is not None:
        load_weights(encoder, encoder_weights(read_checkpoint(Path(start))), source=start)
    data.set_views(frozenset({"image", "text", "pids"}))
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        sides = encoder.eval().encode_image(batch["image"]), encoder.encode_text(*batch["text"])
        scale, _ = encoder.logit_scale_and_bias()
    return sides[0].pooled, sides[1].pooled, batch["pids"], float(scale)


def effective(weights: Any) -> float:
    """Returns exp of the entropy of the weights: n if n of them are equal and the others are zero."""
    share = weights / weights.sum().clamp_min(1e-30)
    return float((-(share * share.clamp_min(1e-30).log()).sum()).exp())


def table(start: str | None) -> PrettyTable:
    """Returns the table for the tiny CLIP, or for a checkpoint."""
    import torch
    from torch.nn import functional as F

    from model.objectives.base import gradient_shares
    from model.objectives.contrastive import nitc

    images, texts, pids, scale = encoded(start, PAIRS)
    found = PrettyTable(["loss", "batch", "raw value", "share of the gradient", "negatives", "positives"], align="r")
    found.align["loss"] = "l"
    for name, (weight, loss) in losses().items():
        for size in BATCH_SIZES:
            figures = defaultdict(list)
            for first in range(0, PAIRS, size):
                rows = slice(first, first + size)
                sources = [side[rows].detach().requires_grad_() for side in (images, texts)]
                image, text = (F.normalize(side, dim=1) for side in sources)
                value = loss(image, text, pids[rows])
                both = {"term": weight * value, "nitc": nitc(image, text, pids[rows], scale, sigmoid=False)}
                figures["share"].append(float(gradient_shares(both, sources)["term"]))
                figures["value"].append(float(value.detach()))
                same = pids[rows, None] == pids[rows]
                if not name.startswith("in-modal"):
                    similarity = (image @ text.T).detach().requires_grad_()
                    loss(similarity, torch.eye(size), pids[rows]).backward()
                    pull = similarity.grad.abs()
                    figures["negatives"].append(effective(pull[~same]))
                    figures["positives"].append(effective(pull[same]))
            means = {key: sum(values) / len(values) for key, values in figures.items()}
            pairs = [f"{means[key]:.0f}" if key in means else "" for key in ("negatives", "positives")]
            found.add_row([name, size, f"{means['value']:.2f}", f"{100 * means['share']:.0f} %", *pairs])
    return found


def draw(outputs: Path, file: Path) -> None:
    """Draws the share of the Circle term in the gradient over the steps of the runs in `outputs`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"], mpl.rcParams["svg.fonttype"] = "0", "none"
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for row, (term, label) in CURVES.items():
        shares: dict[int, list[float]] = defaultdict(list)
        for steps in sorted((outputs / row).glob("*/logs/steps.csv")):
            with steps.open(encoding="utf-8") as lines:
                for line in csv.DictReader(lines):
                    if value := line.get(f"train/gradient/{term}"):
                        shares[int(line["step"]) + 1].append(100 * float(value))
        axes.plot(list(shares), [sum(values) / len(values) for values in shares.values()], label=label)
    axes.set(xlabel="step", ylabel="share of the Circle loss in the gradient, %", ylim=(0, 100))
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", help="a checkpoint; default: the tiny CLIP")
    parser.add_argument("--curves", type=Path, help="the folder of the runs of benchmarks/methods.py")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gradients.svg")
    options = parser.parse_args()
    if options.curves is not None:
        draw(options.curves, options.out)
        return 0
    found = table(options.start)
    found.set_style(TableStyle.MARKDOWN)
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
