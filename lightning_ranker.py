"""LitRanker: the Lightning module that encodes a split and ranks it in both directions."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.utilities.distributed import gather_all_tensors

from data.batch import COPIES, IMAGE, INDEX, PIDS, TEXT, Batch
from model.tbps import TBPS
from utils.ranking.metrics import STANDARD, Metric, RetrievalMetrics, measure
from utils.ranking.positives import Ranks
from utils.ranking.retrieval import Retrieval
from utils.training.precision import AUTOCAST, autocast, encoding_precision
from utils.training.progress import Bar


class LitRanker(L.LightningModule):
    """A Lightning module that encodes a split and ranks it in both directions. It has no losses.

    Args:
        encoder: the encoder to evaluate.
        precision: precision of encoding, see `encoding_precision`.
        measures: metric name -> function of the ranks.

    Attributes:
        retrieval: the last split that was ranked.
        ranks, metrics: direction -> ranks or metrics of that split. If its captions have several languages, metrics has
            also those of the queries in each: "t2i/vi", ...
    """

    retrieval: Retrieval
    ranks: dict[str, Ranks]
    metrics: dict[str, RetrievalMetrics]

    def __init__(self, encoder: TBPS, precision: str, measures: Mapping[str, Metric] = STANDARD) -> None:
        super().__init__()
        self.encoder = encoder
        self.measures = measures
        self._precision = precision
        self._encoded: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {IMAGE: [], TEXT: []}

    def figures(self, split: str) -> dict[str, float]:
        """Returns the metrics of the last ranking in percent: ``{split}/t2i/R1``, ``{split}/i2t/mAP``, ..."""
        return {
            f"{split}/{direction}/{name}": value
            for direction, metrics in self.metrics.items()
            for name, value in metrics.as_dict().items()
        }

    @property
    def encodes_in(self) -> str:
        """The precision in which splits are encoded on this device."""
        device = self.trainer.strategy.root_device  # after a test Lightning has moved the module to the CPU
        return encoding_precision(self._precision, str(self.trainer.precision), device.type)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._encode(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._encode(batch)

    def encode(self, loaders: Iterable[DataLoader[Batch]]) -> Retrieval:
        """Returns the encoded split of these evaluation loaders, as for ranking. All processes take part."""
        images, captions = loaders
        return Retrieval(*self.encode_side(images, IMAGE), *self.encode_side(captions, TEXT))

    @torch.no_grad()
    def encode_side(self, loader: DataLoader[Batch], side: str) -> tuple[Tensor, Tensor]:
        """Returns embeddings ``(N, E)`` and identities ``(N,)`` of an evaluation loader. All processes take part.

        The module has to be on the device of the trainer.

        Args:
            side: `IMAGE` or `TEXT`.
        """
        modes = {module: module.training for module in self.modules()}
        self.eval()
        with self.trainer.precision_plugin.val_step_context():
            for batch in Bar(loader, desc=f"encoding {side}", unit="batch", leave=False):
                self._encode(self.trainer.strategy.batch_to_device(batch))
        for module, mode in modes.items():
            module.training = mode
        return self._collect(side)

    def on_validation_epoch_end(self) -> None:
        self._rank("val")

    def on_test_epoch_end(self) -> None:
        self._rank("test")

    def _encode(self, batch: Batch) -> None:
        precision = self.encodes_in
        with autocast(precision, self.device.type) if precision in AUTOCAST else nullcontext():
            if IMAGE in batch:
                modality, embedding = IMAGE, self.encoder.encode_image(batch[IMAGE]).embedding
            else:
                each = self.encoder.encode_text(*batch[TEXT]).embedding
                modality = TEXT
                embedding = each.repeat_interleave(batch[COPIES], dim=0, output_size=len(batch[INDEX]))
        self._encoded[modality].append((batch[INDEX], batch[PIDS], embedding))

    def _rank(self, split: str) -> None:
        dataset: Any = self.trainer.datamodule.dataset  # type: ignore[attr-defined]
        described = dataset.captions(split), dataset.image_paths(split)
        self.retrieval = Retrieval(*self._collect(IMAGE), *self._collect(TEXT), *described)
        self.ranks = self.retrieval.ranks()
        self.metrics = {direction: measure(ranks, self.measures) for direction, ranks in self.ranks.items()}
        languages = np.array(dataset.caption_languages(split))
        for language in dict.fromkeys(languages.tolist()):
            own = self.ranks["t2i"].take(np.flatnonzero(languages == language))
            self.metrics[f"t2i/{language}"] = measure(own, self.measures)
        # trainer.validate ranks the chosen checkpoint again, which is not a point of the training curve.
        is_on_curve = self.trainer.state.fn != TrainerFn.VALIDATING and bool(self.trainer.loggers)
        for name, value in self.figures(split).items():
            self.log(name, value, logger=is_on_curve)
        if dataset.limits:  # logs contain only numbers, so the number of queries shows that the split was cut
            for direction, metrics in self.metrics.items():
                self.log(f"{split}/{direction}/queries", float(metrics.queries), logger=is_on_curve)

    def _collect(self, modality: str) -> tuple[Tensor, Tensor]:
        """Returns embeddings ``(N, E)`` and pids ``(N,)`` of all processes, in the order of the split."""
        parts = [torch.cat(column) for column in zip(*self._encoded[modality], strict=True)]
        self._encoded[modality].clear()
        if self.trainer.world_size > 1:
            parts = [torch.cat(gather_all_tensors(part)) for part in parts]
        index, pids, embeddings = parts
        order = index.argsort()
        return embeddings[order], pids[order]
