"""Identity classification: one classifier per embedding of a sample, shared by images and texts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.pairs import at_least_fp32


def id_loss(image_logits: Tensor, text_logits: Tensor, pids: Tensor) -> Tensor:
    """Returns the mean of the cross-entropy of images and that of texts, a scalar in fp32 or wider.

    Source: Zheng et al. (TOMM 2020), the instance loss, as in IRRA (CVPR 2023).

    Args:
        image_logits, text_logits: scores ``(B, C)``, or ``(B, K, C)`` for K slots, whose losses are summed.
        pids: int64 ``(B,)`` from 0 to C - 1.
    """
    entropies = []
    for logits in (image_logits, text_logits):
        slots = logits[:, None] if logits.ndim == 2 else logits
        targets = pids[:, None].expand(slots.shape[:2])
        entropy = F.cross_entropy(at_least_fp32(slots).flatten(0, 1), targets.flatten(), reduction="sum")
        entropies.append(entropy / len(pids))
    return torch.stack(entropies).mean()


class SlotClassifier(nn.Linear):
    """A linear classifier for each of K slots, in fp32.

    The weight ``(K * C, D)`` stacks the classifiers. With one slot it is a plain `nn.Linear`. Weights start close to
    zero (normal, std 0.001), so all identities start with nearly the same score.
    """

    def __init__(self, width: int, slots: int, classes: int) -> None:
        super().__init__(width, slots * classes)
        self.slots = slots
        nn.init.normal_(self.weight, std=0.001)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Returns scores ``(B, K, C)`` of slots ``(B, K, D)``."""
        weight, bias = self.weight.unflatten(0, (self.slots, -1)), self.bias.unflatten(0, (self.slots, -1))
        return torch.einsum("bkd,kcd->bkc", at_least_fp32(input), weight) + bias


class ID(LossTerm):
    """`id_loss` of every embedding of a sample, taken before normalisation. Both modalities share the classifiers.

    Other terms can read the scores ``(W*B, K, C)`` as "id_logits".
    """

    provides = frozenset({"id_logits"})

    def __init__(self, *, spec: ModelSpec) -> None:
        super().__init__(spec=spec)
        parts = {"parts"} if len(spec.slots) > 1 else set()
        self.needs = frozenset({"image", "text", "pids"} | parts)
        self.classifier = SlotClassifier(spec.pooled_dim, sum(spec.slots.values()), spec.num_classes)

    def register_in(self, features: Features) -> None:
        features.register("id_logits", lambda view: self.classifier(features.slots(view)))

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = (features.shared("id_logits", view) for view in ("image", "text"))
        pids = features.pids
        return id_loss(image, text, pids), lambda: {
            f"{modality}_accuracy": (logits.argmax(dim=2) == pids[:, None]).float().mean()
            for modality, logits in (("image", image), ("text", text))
        }
