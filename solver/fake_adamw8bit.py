"""What stands in for an optimizer that needs a GPU, where none is at hand."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class AdamW8bitStates(Optimizer):
    """Holds what bitsandbytes' AdamW8bit holds; its step changes nothing.

    Two states of a byte per weight and, for every 256 of them, two scales in fp32; small parameters stay in fp32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            small = parameter.numel() < 4096
            states = [torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8) for _ in range(2)]
            scales = [] if small else [parameter.new_zeros(ceil(parameter.numel() / 256)) for _ in range(2)]
            if parameter not in self.state:
                self.state[parameter] = dict(enumerate([*states, *scales]))
