"""Attention and similarity maps of a trained encoder, for plots."""

import torch
from torch import Tensor

from model.heads import PartHead
from model.objectives import EFA
from model.objectives.base import Objective
from model.tbps import TBPS


@torch.no_grad()
def part_attention(encoder: TBPS, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns the attention of a part head over patches ``(N,)`` and over words ``(1 + P, L)``, or None without parts.

    Args:
        encoder: in evaluation mode.
        pixels, ids, mask: one image uint8 ``(1, 3, H, W)`` and its caption ``(1, L)``.
    """
    head, backbone = encoder.head, encoder.backbone
    if not (isinstance(head, PartHead) and head.parts):
        return None
    return head.image_attention(backbone.image(pixels))[0], head.text_attention(backbone.text(ids, mask))[0]


@torch.no_grad()
def word_maps(
    objective: Objective, encoder: TBPS, pixels: Tensor, ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Returns EFA's similarities of words and patches ``(L, N)``, before and after sparsification.

    Returns None if no term of the objective is EFA.

    Args:
        encoder, objective: in evaluation mode.
        pixels, ids, mask: one image uint8 ``(1, 3, H, W)`` and its caption ``(1, L)``.
    """
    term = next((term for term in objective.terms.values() if isinstance(term, EFA)), None)
    if term is None:
        return None
    before, after = term.similarity_maps(encoder.encode_text(ids, mask), encoder.encode_image(pixels))
    return before[0], after[0]
