"""Muon for the matrices of the towers' layers, AdamW for every other parameter, in one optimizer."""

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import AdamW

LAYER: Final = re.compile(r"\.layers?\.")
MOMENTUM: Final = 0.95
STEPS: Final = 5  # of Newton-Schulz
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz (Jordan et al., 2024)
OF_ADAMW: Final = 0.2  # the usual root mean square of AdamW's steps (Liu et al., 2025)


def moved_by_muon(name: str, parameter: Tensor) -> bool:
    """Says whether a parameter is a matrix of a layer."""
    return parameter.ndim == 2 and LAYER.search(name) is not None


class MuonAdamW(AdamW):
    """AdamW whose step leaves the matrices of layers to Muon (Jordan et al., 2024).

    Muon's step is scaled to the root mean square of AdamW's (Liu et al., 2025), so that learning rates and decay are
    comparable. The state and the groups of both are those of this optimizer.

    Decision: this is `torch.optim.Muon`, but on a CPU its matrix products are in fp32. On a CPU without units for bf16,
    they would take a hundred times as long in bf16.

    Args:
        groups: with the `names` of their parameters.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self._layers = {
            parameter
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if moved_by_muon(name, parameter)
        }

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
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._layers and parameter.grad is not None:
                    self._muon_step(parameter, parameter.grad, group["lr"], group["weight_decay"])
        gradients = {parameter: parameter.grad for parameter in self._layers if parameter.grad is not None}
        for parameter in gradients:
            parameter.grad = None  # for AdamW, which skips it
            self.state[parameter].setdefault("step", torch.zeros(()))  # AdamW's loading expects it everywhere
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _muon_step(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        step = orthogonalized(gradient.lerp(buffer, MOMENTUM))
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(step.to(parameter.dtype), alpha=-lr * OF_ADAMW * max(parameter.shape) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Returns a matrix ``(M, N)`` with the same singular vectors, and singular values near 1, by Newton-Schulz."""
    linear, cubic, quintic = COEFFICIENTS
    turned = matrix.shape[0] > matrix.shape[1]
    near = (matrix.T if turned else matrix).to(torch.bfloat16 if matrix.is_cuda else matrix.dtype)
    near = near / near.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = near @ near.T
        near = torch.addmm(near, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), near, beta=linear)
    return near.T if turned else near
