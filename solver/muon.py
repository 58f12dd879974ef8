"""Muon for the matrices of the towers' layers, AdamW for every other parameter, in one optimizer."""

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import AdamW, Muon

LAYER: Final = re.compile(r"\.layers?\.")


class MuonAdamW(AdamW):
    """AdamW whose step leaves the matrices of layers to Muon (Jordan et al., 2024).

    Muon's step is scaled to the root mean square of AdamW's (Liu et al., 2025), so that learning rates and decay are
    comparable. The state and the groups of both are those of this optimizer.

    Args:
        groups: with the `names` of their parameters.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        layers = [
            [p for name, p in zip(group["names"], group["params"], strict=True) if p.ndim == 2 and LAYER.search(name)]
            for group in self.param_groups
        ]
        self._layers = {parameter for own in layers for parameter in own}
        self._muon = Muon([{"params": own} for own in layers], adjust_lr_fn="match_rms_adamw")

    def moments_of(self, parameter: Tensor) -> tuple[str, ...]:
        """Returns the names of the running means that the state of a parameter has."""
        return ("momentum_buffer",) if parameter in self._layers else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.state = self.state
        for group, own in zip(self._muon.param_groups, self.param_groups, strict=True):
            group |= {"lr": own["lr"], "weight_decay": own["weight_decay"]}
        self._muon.step()
        gradients = {parameter: parameter.grad for parameter in self._layers if parameter.grad is not None}
        for parameter in gradients:
            parameter.grad = None  # for AdamW, which skips it
            self.state[parameter].setdefault("step", torch.zeros(()))  # AdamW's loading expects it everywhere
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss
