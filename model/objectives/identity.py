"""Identity classification: one classifier for images and texts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import Facts, LossTerm, Stats
from model.objectives.pairs import at_least_fp32


def id_loss(image_logits: Tensor, text_logits: Tensor, pids: Tensor) -> Tensor:
    """Returns the mean of the images' and the texts' cross-entropy, a scalar in fp32 or wider.

    Source: Zheng et al. (TOMM 2020), the instance loss, as in IRRA (CVPR 2023).

    Args:
        image_logits, text_logits: scores ``(B, C)`` of C identities.
        pids: int64 ``(B,)`` from 0 to C - 1.
    """
    both = [F.cross_entropy(at_least_fp32(logits), pids) for logits in (image_logits, text_logits)]
    return torch.stack(both).mean()


class ID(LossTerm):
    """`id_loss` of the pooled features behind one linear classifier that both modalities share.

    The classifier runs in fp32. It starts close to zero (normal, std 0.001), so all identities start equal.
    """

    needs = frozenset({"image", "text", "pids"})

    def __init__(self, *, facts: Facts, weight: float = 1.0) -> None:
        super().__init__(facts=facts, weight=weight)
        self.classifier = nn.Linear(facts.pooled_dim, facts.num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = (self.classifier(at_least_fp32(features.pooled(view))) for view in ("image", "text"))
        pids = features.pids
        stats = {
            f"{modality}_accuracy": (logits.argmax(dim=1) == pids).float().mean()
            for modality, logits in (("image", image), ("text", text))
        }
        return id_loss(image, text, pids), stats
