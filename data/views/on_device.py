"""Building of image views on the training device, in parallel with the training step."""

import torch
from torch import Tensor

from data.batch import SEEDS, SOURCE, Batch
from data.views.build import Views


class DeviceViews:
    """A function that replaces `SOURCE` and `SEEDS` of a batch by the image views, built on a device.

    On a GPU it copies the images and builds the views on a separate stream. Some transforms wait until small tensors
    are copied to the GPU; on the training stream they would wait for the whole previous step.

    Args:
        views: builds the views.
    """

    def __init__(self, views: Views) -> None:
        self._views = views
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, batch: Batch, device: torch.device) -> Batch:
        """Returns the batch with image views on `device` in place of `SOURCE` and `SEEDS`; other entries stay."""
        if SOURCE not in batch:
            return batch
        rest = {key: value for key, value in batch.items() if key not in (SOURCE, SEEDS)}
        return rest | self._made(batch[SOURCE], batch[SEEDS], device)

    def _made(self, images: Tensor, seeds: list[int], device: torch.device) -> dict[str, Tensor]:
        if device.type != "cuda":
            return self._views.of_images(images.to(device), seeds)
        self._stream = self._stream or torch.cuda.Stream(device)
        training = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._stream):
            made = self._views.of_images(images.to(device, non_blocking=True), seeds)
        training.wait_stream(self._stream)
        for view in made.values():
            view.record_stream(training)  # so that its memory is not reused while training reads it
        return made
