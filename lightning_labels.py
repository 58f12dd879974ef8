"""The search of labels of training pairs before an epoch, such as pseudo labels, over all processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L

from model.labeling import EncodedPairs, Labeling
from utils.errors import UserError

if TYPE_CHECKING:
    from lightning_models import LitTBPS

Result = TypeVar("Result")


def relabel(module: "LitTBPS", labeler: Labeling, seed: int) -> None:
    """Finds labels for the training pairs. All processes encode, and the first process finds the labels."""
    trainer = module.trainer
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    text_images = data.text_images
    if trainer.is_global_zero:
        print(f"labels  encoding {len(data.dataset.train):,} images and {len(text_images):,} captions", flush=True)
    encoded = module.encode(data.relabel_dataloaders())
    pairs = EncodedPairs(
        encoded.images,
        encoded.texts,
        text_images,
        encoded.image_pids,
        encoded.text_pids,
        *module.encoder.logit_scale_and_bias(),
        true_pairs=data.true_pairs,
    )
    found = _from_first(trainer, lambda: labeler.find(pairs, module.objective, seed))
    labeler.take(found, pairs, module.objective, seed)
    data.set_stages(labeler.stages)
    if trainer.is_global_zero:
        figures = labeler.statistics(found, pairs)
        for logger in trainer.loggers:
            logger.log_metrics({f"pseudo_label/{name}": value for name, value in figures.items()}, module.global_step)
        print(labeler.describe(), flush=True)


def _from_first(trainer: L.Trainer, work: Callable[[], Result]) -> Result:
    """Runs `work` in the first process, and returns its result, or raises its `UserError`, in all processes."""
    result: Result | UserError | None = None
    if trainer.is_global_zero:
        try:
            result = work()
        except UserError as error:
            result = error
    result = trainer.strategy.broadcast(result)
    if isinstance(result, UserError):
        raise result
    return result  # type: ignore[return-value]
