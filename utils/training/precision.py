"""The precision in which splits are encoded for evaluation, whatever the precision of training."""

from collections.abc import Mapping
from typing import Final

import torch

from utils.errors import check_choice

AUTOCAST: Final[Mapping[str, torch.dtype | None]] = {  # trainer.precision -> dtype; None: fp32
    "32": None,
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
CHOICES: Final = ("auto", "trainer", "32-true", "16-mixed", "bf16-mixed")


def encoding_precision(asked: object, training: str, device: str) -> str:
    """Returns the precision in which splits are encoded for ranking: a key of `AUTOCAST`, or `training`.

    ``auto`` is fp16 on a GPU if training uses AMP, else fp32. In a test, bf16 (8 bits of precision) changed the best
    image of 8 of 1,200 queries, fp16 (11 bits) of none. Both are slow on a CPU.

    Args:
        asked: evaluation.precision, one of `CHOICES`.
        training: trainer.precision. If its weights are not fp32 (``bf16-true``), evaluation has to use the same.
        device: device type, such as "cuda".

    Raises:
        UserError: if `asked` is not in `CHOICES`.

    >>> encoding_precision("auto", "bf16-mixed", "cuda"), encoding_precision("auto", "bf16-mixed", "cpu")
    ('16-mixed', '32-true')
    """
    asked = str(asked)
    check_choice("evaluation.precision", asked, CHOICES)
    if asked == "trainer" or training not in AUTOCAST:
        return training
    if asked != "auto":
        return asked
    return "16-mixed" if device == "cuda" and AUTOCAST[training] is not None else "32-true"


def autocast(precision: str, device: str) -> torch.autocast:
    """Returns an autocast context for a precision of `AUTOCAST`; it also works inside another autocast context.

    It does not cache 16-bit copies of weights: cached copies of the outer context have the outer type.
    """
    dtype = AUTOCAST[precision]
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False)
