"""Contrastive pre-training of a tiny backbone, so that methods have something to fine-tune."""

import math
from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.backbones import Backbone
from model.heads import GlobalHead
from model.objectives import nitc
from model.tbps import TBPS

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_STEPS = 25


def pretrain(
    backbone: Backbone, images: Tensor, pids: Tensor, texts: Sequence[Tensor], *, steps: int, seed: int = 0
) -> None:
    """Trains `backbone` in place with N-ITC (softmax), each image against a caption of every language.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        pids: identities ``(N,)``.
        texts: for each language, the token ids of the C captions of every image ``(N, C, L)``.
        steps: optimizer steps.
        seed: of batches.
    """
    encoder = TBPS(backbone, GlobalHead(backbone.embed_dim)).train()
    nn.init.constant_(backbone.hub_model.logit_scale, math.log(14))
    optimizer = torch.optim.AdamW(_groups(backbone), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in tqdm(range(steps), desc="pre-training", unit="step", disable=None):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(images), generator=random)
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        image = encoder.encode_image(images[rows]).embedding
        scale, _ = encoder.temperature()
        losses = []
        for ids in texts:
            chosen = torch.randint(ids.shape[1], rows.shape, generator=random)
            tokens = ids[rows, chosen]
            text = encoder.encode_text(tokens, torch.ones_like(tokens, dtype=torch.bool)).embedding
            losses.append(nitc(image, text, pids[rows], scale, sigmoid=False))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if backbone.sigmoid:
        _fit_temperature(backbone, image.detach(), text.detach(), pids[rows])


def _groups(backbone: Backbone) -> list[dict[str, object]]:
    """Decayed matrices, vectors, and the token table, whose rows are seen too seldom for the common rate."""
    rest = [p for p in backbone.parameters() if p is not backbone.token_table]
    return [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        {"params": [backbone.token_table], "weight_decay": 0.0, "lr": 3 * LEARNING_RATE},
    ]


def _rate(step: int, steps: int) -> float:
    progress = max(0, step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return min((step + 1) / WARMUP_STEPS, (1 + cos(pi * progress)) / 2 + 1e-3)


def _fit_temperature(backbone: Backbone, image: Tensor, text: Tensor, pids: Tensor) -> None:
    """Sets scale and bias to what the sigmoid loss of one batch ``(B, D)`` asks for; softmax has no bias."""
    model = backbone.hub_model
    optimizer = torch.optim.LBFGS([model.logit_scale, model.logit_bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nitc(image, text, pids, *backbone.temperature(), sigmoid=True)
        loss.backward()
        return loss

    optimizer.step(closure)
