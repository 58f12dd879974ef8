"""How fast this machine trains a tiny backbone."""

import time
from typing import Final

import torch
from torch import nn

PAIRS, TOKENS, STEPS = 64, 72, 3  # an image of 32 patches and a caption of 40 tokens
LAYERS: Final = 3  # of each tower
REST: Final = 1.15  # embeddings, losses, the optimizer and validation, beside layers


def seconds_per_pair() -> float:
    """Returns about how long an image and its caption take in training: a few steps of one layer are timed."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, activation="gelu", batch_first=True)
        tokens = torch.randn(PAIRS, TOKENS, 128, requires_grad=True)
    layer(tokens).sum().backward()
    start = time.monotonic()
    for _ in range(STEPS):
        layer(tokens).sum().backward()
    return (time.monotonic() - start) / (STEPS * PAIRS) * LAYERS * REST
