"""Builds image views on the device of training, beside what it is busy with."""

import torch
from torch import Tensor

from data.batch import SEEDS, SOURCE, Batch
from data.views import Views


class DeviceViews:
    """Replaces the `SOURCE` and `SEEDS` of a batch by the image views, built on `device`.

    On a GPU the images travel and the views are made on a stream of their own. Some transforms wait for small tensors
    of theirs to arrive there; on the stream of training they would wait for the whole step before.

    Args:
        views: builds them.
        device: where.
    """

    def __init__(self, views: Views, device: torch.device) -> None:
        self._views = views
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with image views in the place of what they are made of; the rest stays where it is."""
        rest = {key: value for key, value in batch.items() if key not in (SOURCE, SEEDS)}
        return rest | self._made(batch[SOURCE], batch[SEEDS])

    def _made(self, images: Tensor, seeds: list[int]) -> dict[str, Tensor]:
        if self._stream is None:
            return self._views.of_images(images.to(self._device), seeds)
        training = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            made = self._views.of_images(images.to(self._device, non_blocking=True), seeds)
        training.wait_stream(self._stream)
        for view in made.values():
            view.record_stream(training)  # so that its memory is not given away while training reads it
        return made
