"""LitTBPS: the Lightning module with encoder, objective and optimizer. It contains no loss maths."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.batch import IMAGE_VIEWS, INDEX, LABELS, TEXT_VIEWS, Batch
from data.text.masking import Masker
from lightning_labels import relabel
from lightning_masking import build_masking, masked_features
from lightning_ranker import LitRanker
from model.features import Encoded, Features, no_gather
from model.grad_cache import GradCache, refuse_unlike
from model.labeling import Labeling
from model.noise_aware_masking import NoiseAwareMasking
from model.objectives.base import LossReport, ModelSpec, Objective
from model.objectives.build import build_objective
from model.tbps import TBPS
from solver.optimizers import can_fuse, learning_rates, under_settings_of
from utils.checkpoints.schema import check_moments, check_restorable
from utils.checkpoints.weights import frozen_names, load_weights, refused_to_continue
from utils.config.evaluation import build_measures
from utils.errors import check_positive
from utils.ranking.metrics import STANDARD, Metric
from utils.training.gather import gather_rows
from utils.training.nan_guard import FiniteLosses

MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]


class LitTBPS(LitRanker):
    """A Lightning module that trains an encoder with an objective, and ranks with the encoder.

    Args:
        encoder: the encoder to train and evaluate.
        objective: the weighted sum of losses.
        make_optimizer: named parameters -> optimizer with named groups.
        make_scheduler: (optimizer, steps_per_epoch=, max_epochs=) -> schedule by step.
        config: the resolved config as plain containers. Every checkpoint contains it.
        precision, measures: as in `LitRanker`.
        seed: seed of dropout, together with the number of the batch, so that a continued run repeats it.
        log_every_n_steps: number of steps between two logs. Only then are figures copied from the device.
        labeler: gives labels to the pairs before an epoch. None: there are no such labels.
        micro_batch: as in `GradCache`. None: the whole batch is encoded at once.
        masking: masks words in the training step. None: batches come masked.
    """

    def __init__(
        self,
        encoder: TBPS,
        objective: Objective,
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler,
        config: dict[str, Any],
        precision: str,
        seed: int,
        log_every_n_steps: int,
        labeler: Labeling | None = None,
        micro_batch: int | None = None,
        measures: Mapping[str, Metric] = STANDARD,
        masking: NoiseAwareMasking | None = None,
    ) -> None:
        super().__init__(encoder, precision, measures)
        self.objective = objective
        self.labeler = labeler
        self.masking = masking
        self._masker: Masker | None = None
        self._ddp_params_and_buffers_to_ignore = ["masking.steps"]  # DDP would send the whole table in every step
        self.strict_loading = False
        self._make_optimizer = make_optimizer
        self._make_scheduler = make_scheduler
        self._config = config
        self._seed = seed
        self._log_every_n_steps = log_every_n_steps
        self._micro_batch = micro_batch
        self._finite = FiniteLosses()
        self._step: Features | None = None
        self._rates_before: dict[str, float] = {}
        self._continued: dict[str, Any] | None = None

    @property
    def provides(self) -> frozenset[str]:
        """The needs of losses that the encoder and the labels before an epoch meet."""
        return self.encoder.provides | (frozenset() if self.labeler is None else self.labeler.provides)

    @property
    def fixed_length(self) -> bool:
        """Whether training needs captions that are padded to the full length."""
        return self.encoder.backbone.fixed_length or self.objective.fixed_length

    def check_optimizer(self) -> None:
        """Raises `UserError` if optimizer or schedule cannot be built."""
        # With endless training: the warning about a warm-up that is too long comes when training starts.
        self._make_scheduler(self._make_optimizer(self.named_parameters()), steps_per_epoch=1, max_epochs=sys.maxsize)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.named_parameters())
        scheduler = self._make_scheduler(
            optimizer, steps_per_epoch=self._steps_per_epoch(), max_epochs=self.trainer.max_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps_per_epoch(self) -> int:
        # trainer.estimated_stepping_batches would set up the loaders before the checkpoint is loaded, and Lightning
        # would then lose the position within the epoch.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        return math.ceil(batches / self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        if self.labeler is not None and len(self.labeler.stages):  # stages from the checkpoint to continue
            self.trainer.datamodule.set_stages(self.labeler.stages)  # type: ignore[attr-defined]
        rates = learning_rates(self.trainer.optimizers[0])
        if self._rates_before not in ({}, rates) and self.trainer.is_global_zero:
            was, goes_on = (", ".join(f"{k} {v:.3g}" for k, v in r.items()) for r in (self._rates_before, rates))
            print(f"rates   were {was} at step {self.global_step}; this run goes on at {goes_on}", flush=True)
        if self.masking is not None:
            self._masker = self.trainer.datamodule.masker.on(self.device)  # type: ignore[attr-defined]
            pairs = len(self.trainer.train_dataloader.dataset)  # type: ignore[union-attr]
            self.masking.begin(pairs, pads_left=self._masker.vocabulary.pads_left)

    def on_train_epoch_start(self) -> None:
        if self.labeler is not None and self.labeler.due(self.current_epoch):
            relabel(self, self.labeler, seed=self._seed * 1_000_003 + self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(self._seed * 1_000_003 + number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        epoch = self.current_epoch + batch_idx / self.trainer.num_training_batches
        gather = no_gather if self.trainer.world_size == 1 else gather_rows
        if self.masking is None or self._masker is None:
            features = self.features(batch, epoch, gather)
        else:
            features = masked_features(self, batch, epoch, gather, self.masking, self._masker)
        report = self.objective(features, with_stats=self._is_logging_step())
        self._step = features if self.labeler is not None else None
        self._finite.add(self.global_step, report.raw)
        if self.device.type == "cpu" or len(self._finite) >= self._log_every_n_steps:
            self._check_losses()
        self._log_report(report)
        if self.trainer.world_size == 1:
            return report.total
        # DDP waits for the gradient of every parameter, but some objectives do not use the logit scale and bias.
        return report.total + 0 * torch.stack(self.encoder.logit_scale_and_bias()).sum()

    def features(
        self,
        batch: Batch,
        epoch: float = 0.0,
        gather: Callable[[Tensor], Tensor] = no_gather,
        observe_images: Callable[[Encoded], None] | None = None,
    ) -> Features:
        """Returns the inputs of the losses for a training batch. Other arguments are as in `Features`, `GradCache`."""
        labels: dict[str, Tensor] = {label: batch[label] for label in LABELS if label in batch}
        if self.labeler is not None:
            labels |= self.labeler.of(batch[INDEX])
        return Features(
            self.encoder if self._micro_batch is None else GradCache(self.encoder, self._micro_batch, observe_images),
            images={view: batch[view] for view in IMAGE_VIEWS if view in batch},
            texts={view: batch[view] for view in TEXT_VIEWS if view in batch},
            labels=labels,
            epoch=epoch,
            gather=gather,
            recompute=self._micro_batch is not None,
        )

    def on_after_backward(self) -> None:
        if self._step is not None:
            self.objective.after_step(self._step)
            self._step = None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()  # Lightning would keep the gradients in memory during the next forward pass

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._is_logging_step():
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            # A fused optimizer unscales fp16 gradients later, in its step.
            is_scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
            scaler = getattr(self.trainer.precision_plugin, "scaler", None) if is_scaled else None
            self.log("train/grad_norm", norm if scaler is None else norm / scaler.get_scale())

    def _log_report(self, report: LossReport) -> None:
        self.log("train/loss", report.total.detach())  # prog_bar=True would wait for the device at every step
        if not self._is_logging_step():
            return
        scale, bias = self.encoder.logit_scale_and_bias()
        values: dict[str, Any] = {f"train/loss/{term}": value for term, value in report.raw.items()}
        values |= {f"train/weighted/{term}": value for term, value in report.weighted.items()}
        values |= {f"train/stat/{t}/{name}": v for t, stats in report.stats.items() for name, v in stats.items()}
        values |= {f"train/gradient/{term}": share for term, share in report.gradients.items()}
        ramped = {name for name, term in self.objective.terms.items() if term.ramp is not None}
        values |= {f"train/weight/{term}": report.weights[term] for term in ramped}
        values |= {"train/logit_scale": scale.detach(), "train/logit_bias": bias.detach()}
        rates = learning_rates(self.trainer.optimizers[0])
        values |= {f"lr/{group}": lr for group, lr in rates.items()}
        self.log_dict(values)

    def _check_losses(self) -> None:
        self._finite.check(self.trainer, Path(self._config["run_dir"]) / "checkpoints" / "last.ckpt")

    def _is_logging_step(self) -> bool:
        return (self.global_step + 1) % self._log_every_n_steps == 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_losses()
        frozen = frozen_names(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["config"] = self._config

    def optimizer_state_of(self, checkpoint: Mapping[str, Any], trainer: L.Trainer, path: Path | str) -> dict[str, Any]:
        """Returns the optimizer's state in a checkpoint to continue, with the settings of this run.

        Raises:
            UserError: the optimizer has other parameters, or a restored value does not have the form of `trainer`'s.
        """
        new = self._make_optimizer(self.named_parameters())
        with refused_to_continue(path):
            check_restorable(checkpoint, trainer)
            state = under_settings_of(new, checkpoint["optimizer_states"][0])
            check_moments(state["state"], new)
        return state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        load_weights(self, checkpoint["state_dict"], source="the checkpoint to continue")
        self._continued = checkpoint

    def on_fit_start(self) -> None:
        if self._continued is not None:  # the weights are on the GPU now, which a fused optimizer needs
            state = self.optimizer_state_of(self._continued, self.trainer, self.trainer.ckpt_path or "")
            self._rates_before = learning_rates(self._continued["optimizer_states"][0])
            self._continued["optimizer_states"] = [state]
            self._continued = None


def build_module(cfg: DictConfig, encoder: TBPS, num_classes: int) -> LitTBPS:
    """Returns the module that trains `encoder` with `cfg.loss`, `cfg.optimizer` and `cfg.scheduler`.

    Args:
        num_classes: number of identities in the training set, for the classifiers of losses.
    """
    backbone, slots = encoder.backbone, encoder.head.slots
    rows, columns = backbone.grid
    spec = ModelSpec(
        embed_dim=encoder.embed_dim,
        pooled_dim=backbone.embed_dim,
        num_classes=num_classes,
        vocab_size=backbone.vocab_size,
        slots=slots,
        patches=rows * columns,
        widths=encoder.widths,
    )
    objective = build_objective(cfg.loss.terms, spec)
    micro_batch = cfg.grad_cache.micro_batch
    if micro_batch is not None:
        check_positive("grad_cache.micro_batch", micro_batch)
        refuse_unlike(encoder, objective)
    fused = can_fuse(cfg.optimizer.fused, str(cfg.trainer.precision), cfg.trainer.gradient_clip_val)
    return LitTBPS(
        encoder,
        objective,
        make_optimizer=instantiate(cfg.optimizer, fused=fused),
        make_scheduler=instantiate(cfg.scheduler),
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        precision=cfg.evaluation.precision,
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
        labeler=None if cfg.pseudo_label.name == "none" else instantiate(cfg.pseudo_label),
        micro_batch=micro_batch,
        measures=build_measures(cfg.evaluation),
        masking=build_masking(cfg, objective.needs, encoder),
    )
