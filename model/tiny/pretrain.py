"""Contrastive pre-training of a tiny backbone, so that methods have something to fine-tune."""

from collections.abc import Sequence
from math import cos, log, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from model.backbones import Backbone
from model.heads import GlobalHead
from model.objectives import itc, nitc
from model.tbps import TBPS
from utils.training.muon import MuonAdamW, moved_by_muon
from utils.training.progress import Bar

BATCH_SIZE = 64
MATRIX_RATE = 1e-2
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
WARMUP_STEPS = 25


def pretrain(
    backbone: Backbone, images: Tensor, texts: Sequence[tuple[Tensor, Tensor]], *, steps: int, seed: int = 0
) -> None:
    """Trains `backbone` in place with ITC, each image against a caption of any language.

    It sees pairs and no identities, so that methods which do without them can start from it.

    Muon (Jordan et al., 2024) moves the matrices of the layers: on the drawn pedestrians it is after 250 steps
    where AdamW is after 700.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        texts: for each language, the token ids of the C captions of every image ``(N, C, L)``, and their mask.
        steps: optimizer steps.
        seed: of batches.
    """
    encoder = TBPS(backbone, GlobalHead(backbone.embed_dim)).train()
    nn.init.constant_(backbone.hub_model.logit_scale, log(14))
    optimizer = _optimizer(backbone)
    schedule = LambdaLR(optimizer, lambda step: _rate(step, steps))
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    ids, masks = (torch.cat(parts, dim=1) for parts in zip(*texts, strict=True))
    for _ in Bar(range(steps), desc="pre-training", unit="step"):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(images), generator=random)
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        image = encoder.encode_image(images[rows]).embedding
        scale, _ = encoder.logit_scale_and_bias()
        chosen = torch.randint(ids.shape[1], rows.shape, generator=random)
        text = encoder.encode_text(ids[rows, chosen], masks[rows, chosen]).embedding
        backbone.zero_grad()
        itc(image, text, scale).backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if backbone.sigmoid:
        _fit_temperature(backbone, image.detach(), text.detach())


def _optimizer(backbone: Backbone) -> MuonAdamW:
    """Returns the optimizer; the token table learns faster than the rest, because each of its rows is seen seldom."""
    groups: dict[tuple[float, float], dict[str, list[Any]]] = {}
    for name, parameter in backbone.named_parameters():
        if not parameter.requires_grad:
            continue
        if moved_by_muon(name, parameter):
            setting = MATRIX_RATE, WEIGHT_DECAY
        elif parameter is backbone.token_table:
            setting = 3 * LEARNING_RATE, 0.0
        else:
            setting = LEARNING_RATE, WEIGHT_DECAY if parameter.ndim >= 2 else 0.0
        group = groups.setdefault(setting, {"params": [], "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return MuonAdamW([{"lr": lr, "weight_decay": decay, "betas": BETAS, **g} for (lr, decay), g in groups.items()])


def _rate(step: int, steps: int) -> float:
    progress = max(0, step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return min((step + 1) / WARMUP_STEPS, (1 + cos(pi * progress)) / 2 + 1e-3)


def _fit_temperature(backbone: Backbone, image: Tensor, text: Tensor) -> None:
    """Sets scale and bias to what the sigmoid loss of one batch ``(B, D)`` asks for; softmax has no bias."""
    model = backbone.hub_model
    pairs = torch.arange(len(image))
    optimizer = torch.optim.LBFGS([model.logit_scale, model.logit_bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nitc(image, text, pairs, *backbone.logit_scale_and_bias(), sigmoid=True)
        loss.backward()
        return loss

    optimizer.step(closure)
