"""What a transform of a batch of images is, and chains of them; a transform of torchvision is one too."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from utils.errors import UserError

SEEDS: Final = 2**31  # number of seeds for a transform of torchvision


class ImageTransform(Protocol):
    """A transform of a batch of images.

    draws: number of random numbers that it reads for an image.
    """

    draws: int

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Returns the transformed images.

        Args:
            images: uint8 ``(B, 3, H, W)``, on any device.
            draws: fp64 ``(B, draws)``, uniform in [0, 1), on the CPU.
        """
        ...


class Chain:
    """A transform that applies `transforms` one after the other."""

    def __init__(self, transforms: Sequence[Callable[..., Tensor]]) -> None:
        self._transforms = [batched(transform) for transform in transforms]
        self.draws = sum(transform.draws for transform in self._transforms)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        columns = draws.split([transform.draws for transform in self._transforms], dim=1)
        for transform, own in zip(self._transforms, columns, strict=True):
            images = transform(images, own)
        return images


class OneByOne:
    """A transform of torchvision, applied to one image after the other, with a seed of its own for each.

    Args:
        transform: ``(3, H, W) -> (3, H, W)``. It may read torch's random state of the CPU. Those that draw pixels, such
            as ``GaussianNoise``, need ``dataset.augment_on=worker``.
    """

    draws = 1

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self._transform = transform

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, (draws[:, 0] * SEEDS).long().tolist(), strict=True):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
                result = self._transform(image)
                if result.shape != image.shape or result.dtype != image.dtype:
                    raise UserError(
                        f"aug: {self._transform} made {result.dtype} {tuple(result.shape)} of an image of "
                        f"{image.dtype} {tuple(image.shape)}; use a transform that keeps both"
                    )
                changed.append(result)
        return torch.stack(changed)


def batched(transform: Callable[..., Tensor]) -> ImageTransform:
    """Returns a transform of batches as it is, and one of torchvision as `OneByOne`."""
    return transform if hasattr(transform, "draws") else OneByOne(transform)
