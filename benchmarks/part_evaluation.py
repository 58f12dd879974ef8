"""Time of evaluation with a part head, compared with a global embedding of equal width.

    uv run benchmarks/part_evaluation.py [--images 3074] [--captions 6156] [--width 512] [--threads 2]

The part head (D = 4, P = 4) turns the tokens of a backbone (24 x 8 patches, 77 words) into 9 blocks of `width` numbers.
The global embedding is the pooled feature, projected to the same total width. Ranking is both directions of
`utils.ranking.retrieval_metrics`, which computes one inner product in both cases. The time of the backbone is the same:
CLIP ViT-B/16 with random weights encodes a sample of images of 384x128 and of captions, and the time is scaled to all.
Figures are the best of several rounds.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from prettytable import PrettyTable
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BackboneOutput, load_backbone
from model.heads import PartHead
from utils.ranking.retrieval import retrieval_metrics

GRID, LENGTH, BATCH, PARTS = (24, 8), 77, 64, 4
SAMPLE = 16  # number of images, and of captions, to time the backbone
Encode = Callable[[BackboneOutput], Tensor]


def best_of(rounds: int, work: Callable[[], object], device: str) -> float:
    """Returns the seconds of the fastest round."""
    seconds = []
    for _ in range(rounds + 1):  # the first round is a warm-up
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def drawn_outputs(width: int, device: str) -> tuple[BackboneOutput, BackboneOutput]:
    """Returns random outputs of a backbone for a batch of images and a batch of captions."""
    draw = torch.Generator().manual_seed(0)
    outputs = []
    for length in (GRID[0] * GRID[1], LENGTH):
        tokens = torch.randn(BATCH, length, width, generator=draw).to(device)
        outputs.append(BackboneOutput(tokens[:, 0], tokens, torch.ones(BATCH, length, dtype=torch.bool, device=device)))
    return outputs[0], outputs[1]


def encoding_seconds(width: int, images: int, captions: int, rounds: int, device: str) -> tuple[float, float]:
    """Returns the seconds for all images and captions: of the part head, and of the projection."""
    head = PartHead(width, GRID, coarse=PARTS, fine=PARTS).to(device).eval()
    project = nn.Linear(width, head.embed_dim).to(device)

    def projected(output: BackboneOutput) -> Tensor:
        return F.normalize(project(output.pooled), dim=-1)

    parts: tuple[Encode, Encode] = (lambda output: head.image(output).embedding, lambda o: head.text(o).embedding)
    sums = []
    for encoders in (parts, (projected, projected)):
        total = 0.0
        pairs = zip(encoders, drawn_outputs(width, device), (images, captions), strict=True)
        for encode, output, items in pairs:
            total += best_of(rounds, lambda encode=encode, output=output: encode(output), device) * items / BATCH
        sums.append(total)
    return sums[0], sums[1]


def backbone_seconds(images: int, captions: int, rounds: int, device: str) -> float:
    """Returns the seconds that both towers of CLIP ViT-B/16 need for all images and captions, in fp32."""
    size = (16 * GRID[0], 16 * GRID[1])
    backbone = load_backbone("clip", "clip", "no folder", size, sigmoid=False, max_length=LENGTH, weights=False)
    backbone = backbone.to(device).eval()
    pixels = torch.zeros(SAMPLE, 3, *size, dtype=torch.uint8, device=device)
    ids = torch.ones(SAMPLE, LENGTH, dtype=torch.int64, device=device)
    image = best_of(rounds, lambda: backbone.image(pixels), device)
    text = best_of(rounds, lambda: backbone.text(ids, ids.bool()), device)
    return (image * images + text * captions) / SAMPLE


def ranking_seconds(blocks: int, width: int, images: int, captions: int, rounds: int, device: str) -> float:
    """Returns the seconds of ranking in both directions, with embeddings of `blocks` unit blocks of `width`."""
    draw = torch.Generator().manual_seed(0)
    text, image = (
        F.normalize(torch.randn(items, blocks, width, generator=draw), dim=2).flatten(1).to(device)
        for items in (captions, images)
    )
    text_pids, image_pids = (torch.arange(items, device=device) % (images // 3) for items in (captions, images))

    def rank() -> None:
        retrieval_metrics(text, image, text_pids, image_pids)
        retrieval_metrics(image, text, image_pids, text_pids)

    return best_of(rounds, rank, device)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=3074, help="of the gallery (CUHK-PEDES)")
    parser.add_argument("--captions", type=int, default=6156)
    parser.add_argument("--width", type=int, default=512, help="of a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (options.images, options.captions, options.rounds, device)
    blocks = 1 + 2 * PARTS
    encoding = encoding_seconds(options.width, *sizes)
    ranking = [ranking_seconds(*shape, *sizes) for shape in ((blocks, options.width), (1, blocks * options.width))]

    of_parts, of_one = f"part head, {blocks} x {options.width}", f"global, {blocks * options.width}"
    table = PrettyTable(["seconds", "ratio", of_parts, of_one])
    backbone = backbone_seconds(*sizes)
    total = tuple(backbone + head + rank for head, rank in zip(encoding, ranking, strict=True))
    rows = {
        "evaluation": total,
        "- backbone": (backbone, backbone),
        "- head": encoding,
        "- ranking, both directions": ranking,
    }
    for name, (part, plain) in rows.items():
        table.add_row([name, f"{part / plain:.2f}", f"{part:.2f}", f"{plain:.2f}"])
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads"
    print(f"{options.captions:,} captions, {options.images:,} images, {name}")
    print(table)


if __name__ == "__main__":
    main()
