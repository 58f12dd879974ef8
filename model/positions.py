"""Positions of image patches: resized to another grid, kept exactly where a published model's grid is no square."""

from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

FILE: Final = "positions.safetensors"


def resize_positions(table: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns positions ``(prefix + new[0] * new[1], D)`` of the grid `new`, bicubic; those before the grid stay.

    Args:
        table: ``(prefix + grid[0] * grid[1], D)``; a prefix is the position of [CLS].
    """
    if grid == new:
        return table.clone()
    prefix, own = table.split([len(table) - grid[0] * grid[1], grid[0] * grid[1]])
    image = own.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)])


def write_positions(folder: Path, table: Tensor, grid: tuple[int, int]) -> None:
    """Keeps positions beside the weights of transformers' format, which has room for a square grid only."""
    save_file(
        {"positions": table.contiguous()}, folder / FILE, metadata={"rows": str(grid[0]), "columns": str(grid[1])}
    )


def read_positions(folder: Path) -> tuple[Tensor, tuple[int, int]] | None:
    """Returns what `write_positions` left in `folder`, or None."""
    if not (folder / FILE).is_file():
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        grid = file.metadata()
        return file.get_tensor("positions"), (int(grid["rows"]), int(grid["columns"]))
