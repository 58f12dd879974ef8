"""What a part head attends to in some test pairs, drawn."""

from pathlib import Path

import torch
from PIL import Image

from data.batch import IMAGE, TEXT
from data.words import words_of
from lightning_data import TBPSDataModule
from model.heads import PartHead
from model.tbps import TBPS
from utils.part_pictures import PartAttention, attention_picture


@torch.no_grad()
def part_attention(encoder: TBPS, data: TBPSDataModule, number: int) -> PartAttention:
    """Returns what the decoder of a part head attends to in an image of the test split and in its first caption."""
    head, backbone = encoder.head, encoder.backbone
    if not isinstance(head, PartHead):
        raise TypeError("the encoder has no part head")
    pair, device = data.test_pair(number), backbone.token_table.device
    ids, mask = (part.to(device) for part in pair[TEXT])
    return PartAttention(
        path=data.test_image_paths[number],
        words=words_of(data.tokenize.tokenizer, ids[0].tolist()),
        foreground=head.image_attention(backbone.image(pair[IMAGE].to(device)))[0],
        grid=backbone.grid,
        of_words=head.text_attention(backbone.text(ids, mask))[0],
    )


def draw_parts(encoder: TBPS, data: TBPSDataModule, shown: int, path: Path) -> Image.Image | None:
    """Returns a picture of `shown` test pairs, spread over the split, and saves it; None without parts."""
    if not (isinstance(encoder.head, PartHead) and encoder.head.parts):
        return None
    encoder.eval()
    images = len(data.test_image_paths)
    some = range(0, images, max(1, images // shown))[:shown]
    return attention_picture([part_attention(encoder, data, number) for number in some], path)
