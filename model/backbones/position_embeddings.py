"""Position embeddings of image patches: resizing to another grid, and a file for grids that are not square."""

from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from utils.checkpoints.tensor_files import check_finite
from utils.errors import UserError, library_errors

FILE: Final = "positions.safetensors"
MODES: Final = ("bilinear", "bicubic")  # backbone.pos_interpolation
Positions = tuple[Tensor, tuple[int, int]]  # (prefix + rows * columns, D), and (rows, columns)


def resize_positions(table: Tensor, grid: tuple[int, int], new: tuple[int, int], mode: str) -> Tensor:
    """Returns positions ``(prefix + new[0] * new[1], D)`` for the grid `new`. The prefix does not change.

    Args:
        table: ``(prefix + grid[0] * grid[1], D)``. The prefix is the position of [CLS], if there is one.
        mode: one of `MODES`. If both grids are equal, nothing is interpolated.
    """
    if grid == new:
        return table.clone()
    prefix, own = table.split([len(table) - grid[0] * grid[1], grid[0] * grid[1]])
    image = own.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=new, mode=mode, align_corners=False)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)])


def write_positions(folder: Path, table: Tensor, grid: tuple[int, int]) -> None:
    """Writes positions to a file beside the weights, because the format of transformers allows only square grids."""
    save_file(
        {"positions": table.contiguous()}, folder / FILE, metadata={"rows": str(grid[0]), "columns": str(grid[1])}
    )


def read_positions(folder: Path) -> Positions | None:
    """Returns the positions that `write_positions` wrote to `folder`, or None if there is no such file.

    Raises:
        UserError: the file is damaged, or its number of positions does not fit its grid.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    with library_errors(f"{path} cannot be read", "expected positions of image patches"):
        with safe_open(path, framework="pt") as file:
            grid = file.metadata() or {}
            table = file.get_tensor("positions")
        rows, columns = int(grid["rows"]), int(grid["columns"])
    check_finite({"positions": table}, str(path))
    if table.ndim != 2 or not table.is_floating_point() or min(rows, columns) < 1 or rows * columns > len(table):
        raise UserError(f"{path} has positions of shape {tuple(table.shape)} for {rows} x {columns} patches")
    return table, (rows, columns)


def native_positions(native: Positions | None, own: Positions) -> Positions:
    """Returns `native`, or `own` (the model's positions) if `native` is None.

    Raises:
        UserError: `native` and `own` differ in width or in the number of positions before the grid.
    """
    if native is None:
        return own
    (found, found_prefix), (width, prefix) = (
        (table.shape[1], len(table) - grid[0] * grid[1]) for table, grid in (native, own)
    )
    if (found, found_prefix) != (width, prefix):
        raise UserError(
            f"{FILE} has positions of width {found}, {found_prefix} of them before the patches; the model needs width "
            f"{width}, {prefix} before"
        )
    return native
