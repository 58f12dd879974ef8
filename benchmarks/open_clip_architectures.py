"""Architectures of open_clip with random weights: are ids and embeddings those of the library, and 384x128 encoded?

    uv run benchmarks/open_clip_architectures.py [ARCHITECTURE ...]

At the native size, embeddings are compared with `encode_image` and `encode_text` of the library (largest difference of
unit-norm embeddings), and ids with its tokenizer. Tokenizers that are on the hub are replaced by small ones of the same
class and format, because weights and vocabularies are not read from the hub here.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.text.tokens import Tokenize, load_tokenizer
from model.backbones import Backbone, load_backbone
from model.published.open_clip import prepare_open_clip
from utils.checkpoints.backbone_facts import library_config, read_facts
from utils.errors import UserError

NAMES: Final = (
    *("ViT-B-16", "ViT-B-16-quickgelu", "ViT-B-32", "ViT-B-32-256", "ViT-S-16", "ViT-M-16-alt", "ViT-B-32-plus-256"),
    *("ViT-B-16-SigLIP-256", "ViT-B-16-SigLIP-i18n-256", "ViT-B-16-SigLIP2-256", "ViT-B-32-SigLIP2-256"),
    *("PE-Core-T-16-384", "PE-Core-S-16-384", "PE-Core-B-16", "EVA02-B-16", "ViTamin-S", "ViTamin-B"),
    *("MobileCLIP-S1", "MobileCLIP2-S0", "MobileCLIP2-S2", "MobileCLIP2-B", "MobileCLIP2-L-14"),
    *("convnext_tiny", "convnext_base", "convnext_large_d", "RN50", "RN101-quickgelu", "swin_base_patch4_window7_224"),
    *("vit_medium_patch16_gap_256", "vit_relpos_medium_patch16_cls_224", "ViT-L-14-CLIPA", "coca_ViT-B-32"),
    *("roberta-ViT-B-32", "nllb-clip-base"),
)
SIZE: Final = (384, 128)
CAPTIONS: Final = (
    "A man in a Red coat, blue jeans & white shoes; he carries a bag.",
    "  Ein Mann\u2019s   \ufb01tted T-shirt &amp; cap!  ",
    "Một người phụ nữ mặc áo khoác đỏ, quần đen và đi giày trắng.",
    "a " * 100 + "woman",
)


class Row(NamedTuple):
    """What was found of an architecture; `refused` is the sentence with which it was refused, if it was."""

    name: str
    image: float = 0.0
    text: float = 0.0
    ids_equal: bool = False
    grid: tuple[int, int] = (0, 0)
    refused: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.refused:
            return f"| {self.name} | refused: {self.refused} | | | |"
        patches = f"{self.grid[0]} x {self.grid[1]}" if any(self.grid) else "none"
        ids = "equal" if self.ids_equal else "DIFFERENT"
        return f"| {self.name} | {self.image:.1e} | {self.text:.1e} | {ids} | {patches} |"


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer in the format of tokenizer.json, with at most 400 tokens, which keeps case."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    core.train_from_iterator([*CAPTIONS, *map(str.lower, CAPTIONS)], trainer)
    core.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    roles = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, padding_side="right", **roles).save_pretrained(folder)


def check(name: str, root: Path) -> Row:
    """Returns what is found of the architecture `name`, whose folder is written to `root` and removed."""
    start, folder = time.monotonic(), root / f"{name}_checkpoints"
    try:
        text = library_config(name)["text_cfg"]
        if text.get("hf_tokenizer_name"):
            folder.mkdir()
            write_tokenizer(folder)
        with redirect_stdout(None):
            prepare_open_clip(name, folder, pretrained="random")
        load_tokenizer(folder)
        with drawing_no_weights():
            return compare(folder)._replace(name=name, seconds=time.monotonic() - start)
    except UserError as error:
        return Row(name, refused=str(error).replace(str(root), ""), seconds=time.monotonic() - start)


@contextmanager
def drawing_no_weights() -> Iterator[None]:
    """Saves the time for initial weights, which are replaced by loaded ones."""
    drawing = ("normal_", "uniform_", "erfinv_")
    with ExitStack() as stack:
        for name in drawing:
            stack.enter_context(patch.object(torch.Tensor, name, lambda tensor, *_, **__: tensor))
        yield


@torch.no_grad()
def compare(folder: Path) -> Row:
    """Returns how a folder of open_clip is read here and by the library."""
    import open_clip

    library: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    size = library.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    facts = read_facts(folder)
    ids, mask = Tokenize(load_tokenizer(folder), facts.max_length)(CAPTIONS)
    expected_ids = open_clip.get_tokenizer(f"local-dir:{folder}")(list(CAPTIONS))

    backbone = load(folder, (height, width))
    pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    normalized = (pixels / 255 - backbone.mean) / backbone.std  # type: ignore[operator]
    image, text = backbone.image(pixels), backbone.text(ids, mask)
    differences = [
        float((F.normalize(ours.pooled, dim=-1) - F.normalize(theirs, dim=-1)).abs().max())
        for ours, theirs in ((image, library.encode_image(normalized)), (text, library.encode_text(expected_ids)))
    ]
    pad = getattr(backbone, "_pad", None)
    given = ids if pad is None else ids.masked_fill(~mask, pad)
    del library, backbone
    tall = load(folder, SIZE)
    found = tall.image(torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8))
    if found.tokens.shape[1:] != (found.mask.shape[1], tall.embed_dim) or not found.pooled.isfinite().all():
        raise AssertionError(f"{folder.name}: tokens {tuple(found.tokens.shape)}, embedding {tall.embed_dim}")
    return Row("", *differences, torch.equal(given, expected_ids), tall.grid)


def load(folder: Path, size: tuple[int, int]) -> Backbone:
    """Returns the backbone in `folder` for images of `size`."""
    facts = read_facts(folder)._asdict()
    return load_backbone(folder=folder, img_size=size, **facts).eval()


def main() -> None:
    """Prints a row of a Markdown table for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    logging.disable(logging.WARNING)
    print("| architecture | images differ by | captions differ by | ids | patches at 384x128 |\n|---|---|---|---|---|")
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as root:
            print(check(name, Path(root)), flush=True)


if __name__ == "__main__":
    main()
