"""LitTBPS: encoder, objective and optimizer in Lightning's loop. Owns no loss maths."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.utilities.distributed import gather_all_tensors

from data.batch import IMAGE, IMAGE_VIEWS, INDEX, LABELS, PIDS, TEXT, TEXT_VIEWS, Batch
from model.features import Features, alone
from model.grad_cache import GradCache, refuse_tokens
from model.lora import add_lora
from model.objectives.base import Facts, LossReport, Objective
from model.objectives.build import build_objective
from model.tbps import TBPS
from solver.optimizers import learning_rates
from utils.checkpoints import frozen_names, load_weights
from utils.errors import UserError
from utils.retrieval import RetrievalMetrics, retrieval_metrics

MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]


@dataclass(frozen=True)
class Encodings:
    """One encoded split, in the order of its records: embeddings ``(N, E)`` unit norm, raw ids ``(N,)``."""

    images: Tensor
    image_pids: Tensor
    texts: Tensor
    text_pids: Tensor

    def metrics(self) -> dict[str, RetrievalMetrics]:
        """Text-to-image ("t2i") and image-to-text ("i2t") retrieval."""
        return {
            "t2i": retrieval_metrics(self.texts, self.images, self.text_pids, self.image_pids),
            "i2t": retrieval_metrics(self.images, self.texts, self.image_pids, self.text_pids),
        }


class LitRanker(L.LightningModule):
    """Encodes a split and ranks it in both directions. Knows no losses.

    Args:
        encoder: what is evaluated.
    """

    encodings: Encodings
    metrics: dict[str, RetrievalMetrics]

    def __init__(self, encoder: TBPS) -> None:
        super().__init__()
        self.encoder = encoder
        self._encoded: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {IMAGE: [], TEXT: []}

    def figures(self, split: str) -> dict[str, float]:
        """Returns the last ranking's metrics in percent: ``{split}/t2i/R1``, ``{split}/i2t/mAP``, ..."""
        return {
            f"{split}/{direction}/{name}": value
            for direction, metrics in self.metrics.items()
            for name, value in metrics.as_dict().items()
        }

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._encode(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._encode(batch)

    def on_validation_epoch_end(self) -> None:
        self._rank("val")

    def on_test_epoch_end(self) -> None:
        self._rank("test")

    def _encode(self, batch: Batch) -> None:
        if IMAGE in batch:
            modality, encoded = IMAGE, self.encoder.encode_image(batch[IMAGE])
        else:
            modality, encoded = TEXT, self.encoder.encode_text(*batch[TEXT])
        self._encoded[modality].append((batch[INDEX], batch[PIDS], encoded.embedding))

    def _rank(self, split: str) -> None:
        images, image_pids = self._collect(IMAGE)
        texts, text_pids = self._collect(TEXT)
        self.encodings = Encodings(images, image_pids, texts, text_pids)
        self.metrics = self.encodings.metrics()
        for name, value in self.figures(split).items():
            self.log(name, value, prog_bar=name == "val/t2i/R1")

    def _collect(self, modality: str) -> tuple[Tensor, Tensor]:
        """Returns (embeddings ``(N, E)``, pids ``(N,)``) of all processes, in the order of the split."""
        parts = [torch.cat(column) for column in zip(*self._encoded[modality], strict=True)]
        self._encoded[modality].clear()
        if self.trainer.world_size > 1:
            parts = [torch.cat(gather_all_tensors(part)) for part in parts]
        index, pids, embeddings = parts
        order = index.argsort()
        return embeddings[order], pids[order]


class LitTBPS(LitRanker):
    """Trains an encoder with an objective and ranks with the encoder alone.

    Args:
        encoder: what is trained and evaluated.
        objective: the weighted losses.
        make_optimizer: named parameters -> optimizer with named groups.
        make_scheduler: (optimizer, steps_per_epoch=, max_epochs=) -> per-step schedule.
        config: the resolved config as plain containers; travels in every checkpoint.
        seed: with the number of the batch, fixes dropout, so a resumed run repeats it.
        log_every_n_steps: how often figures leave the device.
        micro_batch: of `GradCache`; None: the whole batch is encoded at once.
    """

    def __init__(
        self,
        encoder: TBPS,
        objective: Objective,
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler,
        config: dict[str, Any],
        seed: int,
        log_every_n_steps: int,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(encoder)
        self.objective = objective
        self.strict_loading = False
        self._make_optimizer = make_optimizer
        self._make_scheduler = make_scheduler
        self._config = config
        self._seed = seed
        self._log_every_n_steps = log_every_n_steps
        self._micro_batch = micro_batch
        self._unchecked: list[tuple[int, dict[str, Tensor]]] = []

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.named_parameters())
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError(f"trainer.max_epochs: {epochs} given, expected at least 1: schedules need to know the end")
        scheduler = self._make_scheduler(optimizer, steps_per_epoch=self._steps_per_epoch(), max_epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps_per_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: it sets the loaders up before the state of a checkpoint is
        # known, and Lightning then forgets the position within the epoch.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        return math.ceil(batches / self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(self._seed * 1_000_003 + number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        epoch = self.current_epoch + batch_idx / self.trainer.num_training_batches
        report = self.objective(self.features(batch, epoch, self._gather))
        self._unchecked.append((self.global_step, report.raw))
        if self.device.type == "cpu" or len(self._unchecked) >= self._log_every_n_steps:
            self._stop_on_non_finite()
        self._log_report(report)
        return report.total

    def features(self, batch: Batch, epoch: float = 0.0, gather: Callable[[Tensor], Tensor] = alone) -> Features:
        """Returns what the losses may look at of a training batch; `epoch` and `gather` as in `Features`."""
        return Features(
            self.encoder if self._micro_batch is None else GradCache(self.encoder, self._micro_batch),
            images={view: batch[view] for view in IMAGE_VIEWS if view in batch},
            texts={view: batch[view] for view in TEXT_VIEWS if view in batch},
            labels={label: batch[label] for label in LABELS if label in batch},
            epoch=epoch,
            gather=gather,
            one_pass=self._micro_batch is None,
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._is_logging_step():
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def _gather(self, rows: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return rows
        return self.all_gather(rows, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]

    def _log_report(self, report: LossReport) -> None:
        self.log("train/loss", report.total.detach(), prog_bar=True)
        if not self._is_logging_step():
            return
        scale, bias = self.encoder.temperature()
        values: dict[str, Any] = {f"train/loss/{term}": value for term, value in report.raw.items()}
        values |= {f"train/weighted/{term}": value for term, value in report.weighted.items()}
        values |= {f"train/stat/{t}/{name}": v for t, stats in report.stats.items() for name, v in stats.items()}
        values |= {"train/logit_scale": scale.detach(), "train/logit_bias": bias.detach()}
        optimizer: Any = self.optimizers()
        values |= {f"lr/{group}": lr for group, lr in learning_rates(optimizer).items()}
        self.log_dict(values)

    def _is_logging_step(self) -> bool:
        return (self.global_step + 1) % self._log_every_n_steps == 0

    def _stop_on_non_finite(self) -> None:
        """Raises `UserError` for the first NaN or infinite loss; one host synchronisation for many steps."""
        if not self._unchecked:
            return
        losses = torch.stack([torch.stack(list(raw.values())) for _, raw in self._unchecked]).cpu()
        steps, names = [step for step, _ in self._unchecked], list(self._unchecked[0][1])
        self._unchecked.clear()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(
                f"loss term {names[column]!r} became {losses[row, column].item()} at step {steps[row]}: "
                "lower optimizer.param_groups.default.lr, clip with trainer.gradient_clip_val=1.0, or rule "
                "out AMP with trainer.precision=32-true; the last checkpoint is from before"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_on_non_finite()
        frozen = frozen_names(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["config"] = self._config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        load_weights(self, checkpoint["state_dict"], source="the checkpoint to continue")


def build_encoder(cfg: DictConfig, *, weights: bool = True) -> TBPS:
    """Returns the encoder that `cfg.backbone`, `cfg.lora` and `cfg.head` describe; `weights` as in `load_backbone`."""
    backbone = instantiate(cfg.backbone, **({} if weights else {"weights": False}))
    if cfg.lora.r > 0:
        add_lora(backbone, **{k: v for k, v in cfg.lora.items() if k != "name"})
    return TBPS(backbone, instantiate(cfg.head)(backbone.embed_dim))


def build_module(cfg: DictConfig, encoder: TBPS, num_classes: int) -> LitTBPS:
    """Returns the module that trains `encoder` as `cfg.loss`, `cfg.optimizer` and `cfg.scheduler` say.

    Args:
        num_classes: identities in the training set, for the classifiers of losses.
    """
    facts = Facts(encoder.embed_dim, encoder.backbone.embed_dim, num_classes, encoder.backbone.vocab_size)
    objective = build_objective(instantiate(cfg.loss.terms), facts)
    micro_batch = cfg.grad_cache.micro_batch
    if micro_batch is not None:
        if micro_batch < 1:
            raise UserError(f"grad_cache.micro_batch: {micro_batch} given, expected at least 1, or null")
        refuse_tokens(objective)
    return LitTBPS(
        encoder,
        objective,
        make_optimizer=instantiate(cfg.optimizer),
        make_scheduler=instantiate(cfg.scheduler),
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        micro_batch=micro_batch,
    )
