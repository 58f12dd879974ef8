"""A replacement for bitsandbytes' AdamW8bit on machines without a GPU, to plan memory."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class AdamW8bitStates(Optimizer):
    """An optimizer with the same state in memory as bitsandbytes' AdamW8bit. Its step changes no parameter.

    The state has two bytes per weight, and two fp32 scales for every 256 weights. Small parameters have fp32 states.
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
