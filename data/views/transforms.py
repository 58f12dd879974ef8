"""Random transforms of a batch of images, composed in `config/aug/`.

Each transform reads its random numbers from the columns of a matrix that has a row for each image, so that an image's
seed alone decides what happens to it, in any batch and on any device. Parameters are computed from the numbers on the
CPU, for all images at once, and the number of kernels does not grow with the batch.
"""

from collections.abc import Sequence
from math import log, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from data.views.chain import Chain, ImageTransform, batched
from data.views.pixels import (
    Change,
    below,
    between,
    brighten,
    change_contrast,
    inside,
    of_rows,
    on_device_of,
    sampled,
    sampling_grid,
    saturate,
    stretched,
    turn_hue,
)
from data.views.settings import LARGEST, SMALLEST, checked, checked_range
from utils.errors import UserError


class RandomHorizontalFlip:
    """A transform that flips an image with probability `p`. Leave it out where captions tell left from right."""

    draws = 1

    def __init__(self, p: float = 0.5) -> None:
        self.p = checked("p", p, 0, 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return of_rows(images, draws, draws[:, 0] < self.p, lambda rows, _: rows.flip(-1))


class RandomGrayscale:
    """A transform that takes the colors of an image away with probability `p`."""

    draws = 1

    def __init__(self, p: float = 0.1) -> None:
        self.p = checked("p", p, 0, 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        grayscale = functional.rgb_to_grayscale
        return of_rows(images, draws, draws[:, 0] < self.p, lambda rows, _: grayscale(rows, num_output_channels=3))


class RandomCrop:
    """A transform that pads an image with black on all sides and cuts a random part of the old size out of it.

    Args:
        padding: pixels on each side.
    """

    draws = 2

    def __init__(self, padding: int) -> None:
        self.padding = int(checked("padding", padding, 0, LARGEST))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        places = (below(2 * self.padding + 1, draw).tolist() for draw in draws.unbind(1))
        padded = F.pad(images, (self.padding,) * 4)
        parts = zip(padded, *places, strict=True)
        return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in parts])


class RandomResizedCrop:
    """A transform that cuts a random part out of an image and resizes it to the image's size, bilinearly.

    torchvision's transform of this name draws aspect ratios around 1 in pixels, so it would cut off the head and
    feet of every standing person. Here `ratio` is relative to the image's aspect ratio.

    Args:
        scale: range of the share of the image's area that is kept.
        ratio: range of the part's aspect ratio (width / height), divided by the image's.
    """

    draws = 4

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        self.scale = checked_range("scale", scale, SMALLEST, 1)
        self.ratio = checked_range("ratio", ratio, SMALLEST, LARGEST)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scale = between(self.scale, draws[:, 0])
        ratio = between((log(self.ratio[0]), log(self.ratio[1])), draws[:, 1]).exp()
        part_height = (height * (scale / ratio).sqrt()).round().clamp(1, height)
        part_width = (width * (scale * ratio).sqrt()).round().clamp(1, width)
        top = below(height - part_height + 1, draws[:, 2])
        left = below(width - part_width + 1, draws[:, 3])
        rows, columns = stretched(top, part_height, height), stretched(left, part_width, width)
        grid = sampling_grid(
            on_device_of(images, columns)[:, None, :], on_device_of(images, rows)[:, :, None], height, width
        )
        return sampled(images, grid, "bilinear")


class RandomRotation:
    """A transform that turns an image around its center by an angle in ``[-degrees, degrees]``; corners become black.

    Each pixel takes the value of its nearest neighbor, as torchvision's default does.
    """

    draws = 1

    def __init__(self, degrees: float) -> None:
        self.degrees = checked("degrees", degrees, 0, 180)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        angle = between((-self.degrees, self.degrees), draws[:, 0]).deg2rad()[:, None, None]
        x, y = torch.arange(width) - (width - 1) / 2, torch.arange(height)[:, None] - (height - 1) / 2
        cos, sin, x, y = (on_device_of(images, value) for value in (angle.cos(), angle.sin(), x, y))
        columns, rows = cos * x - sin * y + (width - 1) / 2, sin * x + cos * y + (height - 1) / 2
        return sampled(images, sampling_grid(columns, rows, height, width), "nearest")


class RandomErasing:
    """A transform that covers a random rectangle of an image with one color, with probability `p`.

    As in torchvision: a rectangle that is higher or wider than the image is drawn again, up to ten times.

    Args:
        scale: range of the rectangle's share of the image's area.
        value: the color, R, G and B from 0 to 255.
        ratio: range of its aspect ratio (height / width).
    """

    _TRIES = 10
    draws = 3 + 2 * _TRIES

    def __init__(
        self,
        scale: tuple[float, float],
        value: Sequence[int],
        p: float = 0.5,
        ratio: tuple[float, float] = (0.3, 3.3),
    ) -> None:
        self.p = checked("p", p, 0, 1)
        self.scale = checked_range("scale", scale, SMALLEST, 1)
        self.ratio = checked_range("ratio", ratio, SMALLEST, LARGEST)
        if not isinstance(value, Sequence) or len(value) != 3:
            raise ValueError(f"value: {value} given, expected three numbers: R, G and B from 0 to 255")
        self.value = [int(checked("value", number, 0, 255)) for number in value]

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return of_rows(images, draws, draws[:, 0] < self.p, self._erase)

    def _erase(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        area = height * width * between(self.scale, draws[:, 3 : 3 + self._TRIES])
        ratio = between((log(self.ratio[0]), log(self.ratio[1])), draws[:, 3 + self._TRIES :]).exp()
        heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (heights < height) & (widths < width)
        first = fits.int().argmax(dim=1, keepdim=True)
        tall, wide = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
        top, left = below(height - tall + 1, draws[:, 1]), below(width - wide + 1, draws[:, 2])
        rows = inside(top, tall.where(fits.any(dim=1), 0), height)[:, None, :, None]
        columns = inside(left, wide, width)[:, None, None, :]
        color = on_device_of(images, torch.tensor(self.value, dtype=images.dtype)).view(3, 1, 1)
        return color.where(on_device_of(images, rows) & on_device_of(images, columns), images)


class ColorJitter:
    """A transform that changes brightness, contrast, saturation and hue by random factors, in random order.

    As in torchvision: a range x of the first three gives factors in ``[max(0, 1 - x), 1 + x]``, a range x of the hue
    turns it by ``[-x, x]`` of the circle, and 0 leaves a property as it is.
    """

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0) -> None:
        named = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        self._changes: list[tuple[tuple[float, float], Change]] = [
            ((max(0.0, 1 - size), 1 + size), change)
            for (name, size), change in zip(named.items(), (brighten, change_contrast, saturate), strict=True)
            if checked(name, size, 0, LARGEST)
        ]
        if checked("hue", hue, 0, 0.5):
            self._changes.append(((-hue, hue), turn_hue))
        self.draws = 2 * len(self._changes)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        places, factors = draws.tensor_split(2, dim=1)
        order = places.argsort(dim=1)
        for place in range(len(self._changes)):
            for number, (limits, change) in enumerate(self._changes):
                factor = between(limits, factors[:, number : number + 1])
                images = of_rows(images, factor, order[:, place] == number, change)
        return images


class GaussianBlur:
    """A transform that blurs an image with a kernel of random width.

    Args:
        kernel_size: pixels of the kernel's side, odd.
        sigma: range of the standard deviation in pixels.
    """

    draws = 1

    def __init__(self, kernel_size: int, sigma: tuple[float, float]) -> None:
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {kernel_size} given, expected an odd number of pixels")
        self.kernel_size = kernel_size
        self.sigma = checked_range("sigma", sigma, SMALLEST, LARGEST)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        half = self.kernel_size // 2
        if half >= min(height, width):
            raise UserError(f"aug: GaussianBlur has kernel_size={self.kernel_size}, too large for {height}x{width}")
        place = torch.linspace(-half, half, self.kernel_size) / sqrt(2)
        kernel = (place / between(self.sigma, draws).float()).square().neg().softmax(dim=1)
        kernel = on_device_of(images, kernel).repeat_interleave(channels, dim=0)[:, None]
        pixels = images.float().view(1, batch * channels, height, width)
        for side, weight in (((0, 0, half, half), kernel[..., None]), ((half, half, 0, 0), kernel[:, :, None])):
            pixels = F.conv2d(F.pad(pixels, side, mode="reflect"), weight, groups=batch * channels)
        return pixels.round_().to(images.dtype).view_as(images)


class RandomApply:
    """A transform that applies `transforms` one after the other, all or none, with probability `p`."""

    def __init__(self, transforms: Sequence[ImageTransform], p: float) -> None:
        self.p = checked("p", p, 0, 1)
        self._chain = Chain(transforms)
        self.draws = 1 + self._chain.draws

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return of_rows(images, draws[:, 1:], draws[:, 0] < self.p, self._chain)


class RandomSubset:
    """A transform that applies `k` different transforms of a pool, drawn for every image (TBPS-CLIP, AAAI 2024)."""

    def __init__(self, transforms: Sequence[ImageTransform], k: int) -> None:
        if not 0 < k <= len(transforms):
            raise ValueError(f"k must lie in 1..{len(transforms)}, the size of the pool, not {k}")
        self._pool = [batched(transform) for transform in transforms]
        self._k = k
        self.draws = len(transforms) + sum(transform.draws for transform in self._pool)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        places, *own = draws.split([len(self._pool), *(transform.draws for transform in self._pool)], dim=1)
        order = places.argsort(dim=1)
        for place in range(self._k):
            for number, transform in enumerate(self._pool):
                images = of_rows(images, own[number], order[:, place] == number, transform)
        return images
