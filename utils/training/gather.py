"""A differentiable gather of rows from all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows ``(W*B, ...)`` of all W processes, in order of rank; `rows` ``(B, ...)`` are this process's.

    Each process computes the loss of the whole batch, and DDP averages the gradients over processes. The backward
    pass sums the gradients of a row over all processes, so that the average is the gradient of one loss.

    ``torch.distributed.nn.functional.all_gather`` (also Lightning's) is not used: it is deprecated, and under gloo it
    returns a wrong gradient if the gradient of the gathered rows is not contiguous, as after a transposition.
    """
    return _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient)
        return own
