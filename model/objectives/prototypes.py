"""Losses of CPCL, which learns from pseudo labels: prototypical matching (PCM) and instance matching (ICPM).

Labels are int64 ``(B,)``: the cluster of each sample in its own modality, or -1 for an outlier. A loss is a scalar in
fp32 or wider. The terms learn from clustered pairs: pairs whose image and text are both in a cluster.
"""

from functools import partial
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Features
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.distribution import divergences
from model.objectives.pairs import masked_mean, same_identity, similarities
from model.prototypes import Modality, PrototypeMemory
from model.prototypes.memory import Start
from utils.errors import UserError, check_choice

Matching = Literal["cross_modal", "single_modal"]
MATCHINGS: Final = get_args(Matching)
MIN_TEMPERATURE = 0.01


def pcm(features: Tensor, prototypes: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns one direction of prototypical contrastive matching: cross-entropy over all prototypes.

    Source: CPCL, eqs. (3), (4), (6) and (7). The mean is over the samples whose label is a cluster. If there are
    none, the loss is a zero that is connected to the graph.

    Args:
        features: Shape: ``(B, D)``, unit norm.
        prototypes: Shape: ``(C, D)``, unit norm.
        labels: ``(B,)``, the prototype of each feature. In cross-modal matching it is that of the paired sample.
        temperature: divisor of the cosines.
    """
    logits = similarities(features, prototypes) / temperature
    if len(prototypes) == 0:
        return logits.sum()
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return losses / (labels >= 0).sum().clamp_min(1)


def icpm(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    logit_scale: float | Tensor = 50.0,
    eps: float = 1e-8,
) -> Tensor:
    """Returns instance-level cross-modal projection matching: KL(p || q) as in `sdm`, both directions summed.

    Source: CPCL, eqs. (9)-(13), where logit_scale is 1 / tau. The positives of sample i are its paired sample and
    every sample of the target modality with the same label as the paired sample. The mean is over clustered pairs; if
    there are none, the loss is a zero that is connected to the graph.
    Decision: all pairs stay among the targets, and an outlier is a positive of its own pair only.

    Args:
        image, text: Shape: ``(B, D)``, unit norm; row i of both is one pair.
        eps: added to q before its logarithm.
    """
    logits = logit_scale * similarities(image, text)
    clustered = (image_labels >= 0) & (text_labels >= 0)
    to_text = masked_mean(divergences(logits, _outliers_apart(text_labels), eps), clustered)
    to_image = masked_mean(divergences(logits.T, _outliers_apart(image_labels), eps), clustered)
    return to_text + to_image


def _outliers_apart(labels: Tensor) -> Tensor:
    """Returns `labels` ``(B,)`` in which every outlier has a different negative number."""
    return torch.where(labels >= 0, labels, -1 - torch.arange(len(labels), device=labels.device))


class PCM(LossTerm):
    """The sum of `pcm` of images and of texts. The term keeps prototypes of both modalities.

    Args:
        matching: "cross_modal" (eq. (5)): images are compared with text prototypes under the label of their caption,
            and texts with image prototypes. "single_modal" (eq. (8)): each with the prototypes of its own modality.
        temperature: initial value of both learned temperatures, which stay at or above 0.01.
        momentum, start: see `PrototypeMemory`.
    """

    needs = frozenset({"image", "text", "image_labels", "text_labels"})

    def __init__(
        self, *, spec: ModelSpec, matching: Matching, temperature: float, momentum: float, start: Start
    ) -> None:
        super().__init__(spec=spec)
        check_choice("matching", matching, MATCHINGS)
        if temperature < MIN_TEMPERATURE:
            raise UserError(f"temperature: {temperature} given, expected at least {MIN_TEMPERATURE}")
        self.matching = matching
        self.image_memory = PrototypeMemory(spec.embed_dim, momentum=momentum, start=start)
        self.text_memory = PrototypeMemory(spec.embed_dim, momentum=momentum, start=start)
        self.image_log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.text_log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = features.embedding("image"), features.embedding("text")
        image_labels, text_labels = _clustered_labels(features)
        to_images = (self.image_memory.prototypes, image_labels, _temperature(self.image_log_temperature))
        to_texts = (self.text_memory.prototypes, text_labels, _temperature(self.text_log_temperature))
        of_image, of_text = (to_texts, to_images) if self.matching == "cross_modal" else (to_images, to_texts)
        loss = features.checkpointed(pcm, image, *of_image) + features.checkpointed(pcm, text, *of_text)
        return loss, lambda: {"image_temperature": to_images[2].detach(), "text_temperature": to_texts[2].detach()}

    def reset_prototypes(self, images: Modality, texts: Modality, seed: int) -> None:
        """Replaces the prototypes of both memories. `seed` is used to draw members if `start` is "member"."""
        self.image_memory.reset_prototypes(*images, seed=seed)
        self.text_memory.reset_prototypes(*texts, seed=seed)

    def after_step(self, features: Features) -> None:
        """Moves the prototypes towards the features of the step."""
        image_labels, text_labels = _clustered_labels(features)
        self.image_memory.update(features.embedding("image").detach(), image_labels)
        self.text_memory.update(features.embedding("text").detach(), text_labels)


class ICPM(LossTerm):
    """`icpm` of the embeddings of images and texts.

    Args:
        logit_scale: a fixed number, 1 / tau.
    """

    needs = frozenset({"image", "text", "image_labels", "text_labels"})

    def __init__(self, *, spec: ModelSpec, logit_scale: float) -> None:
        super().__init__(spec=spec)
        self.logit_scale = logit_scale

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image_labels, text_labels = _labels(features)
        image, text = features.embedding("image"), features.embedding("text")
        compare = partial(icpm, logit_scale=self.logit_scale)
        return features.checkpointed(compare, image, text, image_labels, text_labels), lambda: {
            f"{name}_positives": same_identity(_outliers_apart(labels)).float().sum(dim=1).mean()
            for name, labels in (("image", image_labels), ("text", text_labels))
        }


def _temperature(logarithm: Tensor) -> Tensor:
    """Returns the temperature, a scalar. Below the lower bound it has no gradient."""
    return logarithm.exp().clamp_min(MIN_TEMPERATURE)


def _labels(features: Features) -> tuple[Tensor, Tensor]:
    """Returns the pseudo labels of images and texts, both ``(B,)``."""
    return features.labels("image_labels"), features.labels("text_labels")


def _clustered_labels(features: Features) -> tuple[Tensor, Tensor]:
    """Returns the pseudo labels of images and texts, both ``(B,)``, with -1 where the pair is not clustered."""
    image, text = _labels(features)
    clustered = (image >= 0) & (text >= 0)
    return image.where(clustered, -1), text.where(clustered, -1)
