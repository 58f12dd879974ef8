"""What a model costs: parameters, operations, width of the embeddings."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.batch import IMAGE, TEXT
from data.loading.dummy_batch import blank_batch
from model.tbps import build_encoder


class Efficiency(NamedTuple):
    """The cost of an encoder.

    parameters, trained: of the encoder, without the modules of losses; `trained` are those that get a gradient.
    image_gflops, caption_gflops: 1e9 floating-point operations of encoding one image and one caption that fills all
        positions. A multiplication and an addition are two operations; only matrix products, convolutions and attention
        count.
    width: of an embedding.
    """

    parameters: int
    trained: int
    image_gflops: float
    caption_gflops: float
    width: int

    def __str__(self) -> str:
        share = "all" if self.trained == self.parameters else f"{self.trained:,}"
        return (
            f"{self.parameters:,} parameters, {share} trained; {self.image_gflops:.3g} GFLOPs an image, "
            f"{self.caption_gflops:.3g} a caption; embeddings of width {self.width:,}"
        )


def measure_efficiency(cfg: DictConfig) -> Efficiency:
    """Returns the cost of the encoder that `cfg` describes. It is built without weights, and nothing is computed."""
    with torch.device("meta"):
        encoder = build_encoder(cfg, weights=False).eval().to("meta")
        batch = blank_batch(frozenset({IMAGE, TEXT}), 1, cfg.img_size, cfg.backbone.max_length)
    parameters = list(encoder.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    encoder.requires_grad_(False)  # the counter would ask for the gradients of a module that gets a parameter
    return Efficiency(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=trained,
        image_gflops=_gflops(lambda: encoder.encode_image(batch[IMAGE])),
        caption_gflops=_gflops(lambda: encoder.encode_text(*batch[TEXT])),
        width=encoder.embed_dim,
    )


@torch.no_grad()
def _gflops(encode: Callable[[], object]) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encode()
    return counter.get_total_flops() / 1e9
