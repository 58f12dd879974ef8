"""Functions of the pixels of a batch, with a parameter for each image, from which random transforms are made."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

Change = Callable[[Tensor, Tensor], Tensor]


def of_rows(images: Tensor, values: Tensor, chosen: Tensor, change: Change) -> Tensor:
    """Returns images whose `chosen` rows, bool ``(B,)`` on the CPU, are replaced by ``change(rows, their values)``."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows) in (0, len(images)):
        return change(images, values) if len(rows) else images
    there = on_device_of(images, rows)
    return images.index_copy(0, there, change(images[there], values[rows]))


def on_device_of(images: Tensor, values: Tensor) -> Tensor:
    """Returns `values` on the device of `images`, in fp32 if they are fractions; nothing waits for the copy."""
    values = values.float() if values.is_floating_point() else values
    return values.to(images.device, non_blocking=True)


def between(limits: tuple[float, float], draws: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * draws


def below(bound: Tensor | int, draws: Tensor) -> Tensor:
    """Returns a whole number from 0 up to, but not including, `bound`."""
    return (bound * draws).long()


def inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Returns bool ``(B, size)``, true in the `length` places from `start` on."""
    places = torch.arange(size)
    return (places >= start[:, None]) & (places < (start + length)[:, None])


def stretched(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Returns where `size` new pixels lie in the part of `length` pixels from `start` on. Shape: ``(B, size)``."""
    places = (torch.arange(size, dtype=torch.float64) + 0.5) * (length / size)[:, None] - 0.5
    return start[:, None] + places.clamp(min=0).minimum(length[:, None] - 1)


def sampling_grid(columns: Tensor, rows: Tensor, height: int, width: int) -> Tensor:
    """Returns ``(B, H, W, 2)`` for `grid_sample` from the columns and rows to read, in pixels."""
    scaled = (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1
    return torch.stack(torch.broadcast_tensors(*scaled), dim=-1)


def sampled(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(images.float(), grid, mode, align_corners=False).round_().to(images.dtype)


def _blended(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    share = on_device_of(images, factor)[..., None, None]
    return (images * share + other * (1 - share)).clamp_(0, 255).to(images.dtype)


def brighten(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(images, 0.0, factor)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    total = functional.rgb_to_grayscale(images).flatten(1).sum(dim=1).float()
    return _blended(images, (total / prod(images.shape[-2:])).view(-1, 1, 1, 1), factor)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(images, functional.rgb_to_grayscale(images).float(), factor)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Returns the images after their hue, in HSV, was turned by `turns` ``(B, 1)`` of the circle."""
    pixels = images.float() / 255
    low, high = pixels.aminmax(dim=1)
    spread = high - low
    red, green, blue = (pixels / spread.where(spread > 0, 1.0)[:, None]).unbind(1)
    most_green = torch.where(pixels[:, 1] == high, 2 + blue - red, 4 + red - green)
    hue = torch.where(pixels[:, 0] == high, green - blue, most_green) + 6 * on_device_of(images, turns)[..., None]
    corners = on_device_of(images, torch.tensor([5.0, 3.0, 1.0])).view(3, 1, 1)
    place = (hue[:, None] + corners).remainder(6)
    turned = high[:, None] - spread[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)
    return (turned * 255.999).to(images.dtype)
