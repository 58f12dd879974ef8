"""Muon for the matrices of the towers' layers, AdamW for every other parameter, in one optimizer."""

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import AdamW

LAYER: Final = re.compile(r"\.layers?\.")
MOMENTUM: Final = 0.95
NEWTON_SCHULZ: Final = (3.4445, -4.775, 2.0315)


class MuonAdamW(AdamW):
    """AdamW that moves the matrices of layers by an orthogonal step (Muon, Jordan et al., 2024).

    The step is scaled to the root mean square of AdamW's (Liu et al., 2025), so that learning rates and decay are
    comparable. Groups carry `names`, of their parameters.
    """

    def moments_of(self, parameter: Tensor) -> tuple[str, ...]:
        """Returns the names of the running means that the state of a parameter has."""
        return ("exp_avg",) if parameter in self._layers else ("exp_avg", "exp_avg_sq")

    @property
    def _layers(self) -> set[Tensor]:
        """The parameters that Muon moves."""
        return {
            parameter
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter.ndim == 2 and LAYER.search(name)
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[Tensor, Tensor] = {}
        layers = self._layers
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in layers and parameter.grad is not None:
                    gradients[parameter], parameter.grad = parameter.grad, None
                    self._move(parameter, gradients[parameter], group["lr"], group["weight_decay"])
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(gradient)}  # AdamW expects "step"
        momentum = state["exp_avg"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        step = orthogonal(gradient.lerp(momentum, MOMENTUM))
        parameter.mul_(1 - lr * weight_decay).add_(step, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Returns about the nearest matrix whose singular values are all 1, by Newton-Schulz."""
    a, b, c = NEWTON_SCHULZ
    tall = len(matrix) > matrix.shape[1]
    found = (matrix.T if tall else matrix).float()
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return (found.T if tall else found).to(matrix.dtype)
