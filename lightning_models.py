"""LitTBPS: encoder, objective and optimizer in Lightning's loop. Owns no loss maths."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torchmetrics.utilities.distributed import gather_all_tensors

from data.batch import IMAGE, IMAGE_VIEWS, INDEX, LABELS, PIDS, TEXT, TEXT_VIEWS, Batch
from data.loading.dummy_batch import blank_batch, published_identities
from model.backbones.lora import add_lora
from model.features import Features, no_gather
from model.grad_cache import GradCache, refuse_tokens
from model.objectives.base import LossReport, ModelSpec, Objective
from model.objectives.build import build_objective
from model.objectives.nan_guard import FiniteLosses
from model.prototypes import Labeller, Modality, PrototypeMemory
from model.tbps import TBPS
from solver.fake_adamw8bit import AdamW8bitStates
from solver.optimizers import can_fuse, learning_rates, under_settings_of
from utils.checkpoints.schema import check_moments, check_restorable
from utils.checkpoints.weights import frozen_names, load_weights, refused_to_continue
from utils.config.evaluation import build_measures
from utils.errors import UserError, check_positive
from utils.memory.plan import Traced, processes
from utils.memory.trace import fake_gpu, measure_step
from utils.ranking.metrics import STANDARD, Metric, RetrievalMetrics, measure
from utils.ranking.positives import Ranks
from utils.ranking.retrieval import Retrieval
from utils.training.gather import gather_rows
from utils.training.precision import AUTOCAST, autocast, encoding_precision
from utils.training.progress import Bar

MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]
Result = TypeVar("Result")


class LitRanker(L.LightningModule):
    """Encodes a split and ranks it in both directions. Knows no losses.

    Args:
        encoder: what is evaluated.
        precision: in which it encodes, see `encoding_precision`.
        measures: the metrics by name, functions of the ranks.

    Attributes:
        retrieval: the last split that was ranked.
        ranks, metrics: what that gave, by direction.
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
        """Returns the last ranking's metrics in percent: ``{split}/t2i/R1``, ``{split}/i2t/mAP``, ..."""
        return {
            f"{split}/{direction}/{name}": value
            for direction, metrics in self.metrics.items()
            for name, value in metrics.as_dict().items()
        }

    @property
    def encodes_in(self) -> str:
        """The precision in which splits are encoded here."""
        return encoding_precision(self._precision, str(self.trainer.precision), self.device.type)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._encode(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._encode(batch)

    @torch.no_grad()
    def encode(self, loaders: Iterable[DataLoader[Batch]]) -> Retrieval:
        """Returns the split of these evaluation loaders, encoded as for ranking; all processes take part."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        with self.trainer.precision_plugin.val_step_context():
            for name, loader in zip(("images", "captions"), loaders, strict=True):
                for batch in Bar(loader, desc=f"encoding {name}", unit="batch", leave=False):
                    self._encode(self.trainer.strategy.batch_to_device(batch))
        for module, mode in modes.items():
            module.training = mode
        return Retrieval(*self._collect(IMAGE), *self._collect(TEXT))

    def on_validation_epoch_end(self) -> None:
        self._rank("val")

    def on_test_epoch_end(self) -> None:
        self._rank("test")

    def _encode(self, batch: Batch) -> None:
        precision = self.encodes_in
        with autocast(precision, self.device.type) if precision in AUTOCAST else nullcontext():
            if IMAGE in batch:
                modality, encoded = IMAGE, self.encoder.encode_image(batch[IMAGE])
            else:
                modality, encoded = TEXT, self.encoder.encode_text(*batch[TEXT])
        self._encoded[modality].append((batch[INDEX], batch[PIDS], encoded.embedding))

    def _rank(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        described = data.captions(split), data.image_paths(split)
        self.retrieval = Retrieval(*self._collect(IMAGE), *self._collect(TEXT), *described)
        self.ranks = self.retrieval.ranks()
        self.metrics = {direction: measure(ranks, self.measures) for direction, ranks in self.ranks.items()}
        # trainer.validate ranks the chosen checkpoint once more, which is no point of the curve over training.
        is_on_curve = self.trainer.state.fn != TrainerFn.VALIDATING
        for name, value in self.figures(split).items():
            self.log(name, value, logger=is_on_curve)
        if data.dataset.limits:  # logs hold numbers only: these say that the split was cut
            for direction, metrics in self.metrics.items():
                self.log(f"{split}/{direction}/queries", float(metrics.queries), logger=is_on_curve)

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
        precision, measures: as of `LitRanker`.
        seed: with the number of the batch, fixes dropout, so a resumed run repeats it.
        log_every_n_steps: how often figures leave the device.
        labeller: gives the pairs pseudo labels, where training does without identities.
        micro_batch: of `GradCache`; None: the whole batch is encoded at once.
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
        labeller: Labeller | None = None,
        micro_batch: int | None = None,
        measures: Mapping[str, Metric] = STANDARD,
    ) -> None:
        super().__init__(encoder, precision, measures)
        self.objective = objective
        self.labeller = labeller
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

    def check_optimizer(self) -> None:
        """Passes when optimizer and schedule can be built.

        Raises:
            UserError: they cannot.
        """
        # Of a training without end: whether the warm-up ends within this one is told when it begins.
        self._make_scheduler(self._make_optimizer(self.named_parameters()), steps_per_epoch=1, max_epochs=sys.maxsize)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.named_parameters())
        scheduler = self._make_scheduler(
            optimizer, steps_per_epoch=self._steps_per_epoch(), max_epochs=self.trainer.max_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps_per_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: it sets the loaders up before the state of a checkpoint is
        # known, and Lightning then forgets the position within the epoch.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        return math.ceil(batches / self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        if self.labeller is not None and len(self.labeller.stages):  # of the checkpoint that is continued
            self.trainer.datamodule.set_stages(self.labeller.stages)  # type: ignore[attr-defined]
        rates = learning_rates(self.trainer.optimizers[0])
        if self._rates_before not in ({}, rates) and self.trainer.is_global_zero:
            was, goes_on = (", ".join(f"{k} {v:.3g}" for k, v in r.items()) for r in (self._rates_before, rates))
            print(f"rates   were {was} at step {self.global_step}; this run goes on at {goes_on}", flush=True)

    def on_train_epoch_start(self) -> None:
        if self.labeller is not None and self.labeller.due(self.current_epoch):
            self._relabel(self.labeller)

    def _relabel(self, labeller: Labeller) -> None:
        """Finds pseudo labels for the training set: all processes encode, one clusters."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        text_images = data.text_images
        if self.trainer.is_global_zero:
            print(f"labels  encoding and clustering {len(data.dataset.train):,} images, {len(text_images):,} captions")
        encoded = self.encode(data.relabel_dataloaders())
        seed = self._seed * 1_000_003 + self.current_epoch
        found = self._from_first(lambda: labeller.find(encoded.images, encoded.texts, text_images, seed))
        labeller.take(found, text_images)
        images, texts = map(Modality, (encoded.images, encoded.texts), found.after)
        self.objective.reset_prototypes(images, texts, seed)
        data.set_stages(labeller.stages)
        if self.trainer.is_global_zero:
            figures = found.statistics(encoded.image_pids.cpu(), encoded.text_pids.cpu())
            for logger in self.trainer.loggers:
                logger.log_metrics({f"pseudo_label/{name}": value for name, value in figures.items()}, self.global_step)
            print(labeller.describe(), flush=True)

    def _from_first(self, work: Callable[[], Result]) -> Result:
        """Returns what `work` gives on the first process, on all of them; a `UserError` reaches them all as well."""
        result: Result | UserError | None = None
        if self.trainer.is_global_zero:
            try:
                result = work()
            except UserError as error:
                result = error
        result = self.trainer.strategy.broadcast(result)
        if isinstance(result, UserError):
            raise result
        return result  # type: ignore[return-value]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(self._seed * 1_000_003 + number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        epoch = self.current_epoch + batch_idx / self.trainer.num_training_batches
        features = self.features(batch, epoch, no_gather if self.trainer.world_size == 1 else gather_rows)
        report = self.objective(features, with_stats=self._is_logging_step())
        self._step = features if self.labeller is not None else None
        self._finite.add(self.global_step, report.raw)
        if self.device.type == "cpu" or len(self._finite) >= self._log_every_n_steps:
            self._check_losses()
        self._log_report(report)
        if self.trainer.world_size == 1:
            return report.total
        # DDP waits for a gradient at every parameter, and not every objective reads the temperature.
        return report.total + 0 * torch.stack(self.encoder.logit_scale_and_bias()).sum()

    def features(self, batch: Batch, epoch: float = 0.0, gather: Callable[[Tensor], Tensor] = no_gather) -> Features:
        """Returns what the losses may look at of a training batch; `epoch` and `gather` as in `Features`."""
        labels: dict[str, Tensor] = {label: batch[label] for label in LABELS if label in batch}
        if self.labeller is not None:
            labels |= self.labeller.of(batch[INDEX])
        return Features(
            self.encoder if self._micro_batch is None else GradCache(self.encoder, self._micro_batch),
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
        optimizer.zero_grad()  # Lightning would keep the gradients until the next forward pass is through

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._is_logging_step():
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            # A fused optimizer takes the scale of fp16 away itself, later.
            is_scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
            scaler = getattr(self.trainer.precision_plugin, "scaler", None) if is_scaled else None
            self.log("train/grad_norm", norm if scaler is None else norm / scaler.get_scale())

    def _log_report(self, report: LossReport) -> None:
        self.log("train/loss", report.total.detach())  # prog_bar=True would read it, and wait, at every step
        if not self._is_logging_step():
            return
        scale, bias = self.encoder.logit_scale_and_bias()
        values: dict[str, Any] = {f"train/loss/{term}": value for term, value in report.raw.items()}
        values |= {f"train/weighted/{term}": value for term, value in report.weighted.items()}
        values |= {f"train/stat/{t}/{name}": v for t, stats in report.stats.items() for name, v in stats.items()}
        values |= {"train/logit_scale": scale.detach(), "train/logit_bias": bias.detach()}
        rates = learning_rates(self.trainer.optimizers[0])
        values |= {f"lr/{group}": lr for group, lr in rates.items()}
        self.log_dict(values)

    def _check_losses(self) -> None:
        """Passes when no loss since the last look is NaN or infinite.

        Raises:
            UserError: the first that is, with what is left to do about it and the checkpoint from before.
        """
        bad = self._finite.first_bad()
        if bad is None:
            return
        advice = ["lower optimizer.param_groups.default.lr"]
        clip = self.trainer.gradient_clip_val
        if clip is None or clip > 1:
            advice.append("clip gradients with trainer.gradient_clip_val=1.0")
        if self.trainer.precision not in ("32-true", "64-true"):
            advice.append("rule out AMP with trainer.precision=32-true")
        last = Path(self._config["run_dir"]) / "checkpoints" / "last.ckpt"
        before = f"{last} is from before" if last.is_file() else "there is no checkpoint from before"
        raise UserError(
            f"loss term {bad.term!r} became {bad.value} at step {bad.step} (epoch {self.current_epoch + 1}): "
            f"{' or '.join(advice)}; {before}"
        )

    def _is_logging_step(self) -> bool:
        return (self.global_step + 1) % self._log_every_n_steps == 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_losses()
        frozen = frozen_names(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["config"] = self._config

    def optimizer_state_of(self, checkpoint: Mapping[str, Any], trainer: L.Trainer, path: Path | str) -> dict[str, Any]:
        """Returns the optimizer's state in a checkpoint to continue, under this run's settings.

        Raises:
            UserError: the optimizer has other parameters, or something that is restored is not as `trainer` writes it.
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
        if self._continued is not None:  # by now the weights are on the GPU, if any, where an optimizer is fused
            state = self.optimizer_state_of(self._continued, self.trainer, self.trainer.ckpt_path or "")
            self._rates_before = learning_rates(self._continued["optimizer_states"][0])
            self._continued["optimizer_states"] = [state]
            self._continued = None


def build_encoder(cfg: DictConfig, *, weights: bool = True) -> TBPS:
    """Returns the encoder that `cfg.backbone`, `cfg.lora` and `cfg.head` describe.

    Args:
        weights: as in `load_backbone`; without, towers are not compiled either.
    """
    backbone = instantiate(cfg.backbone, **({} if weights else {"weights": False}))
    if cfg.lora.r > 0:
        add_lora(backbone, **{k: v for k, v in cfg.lora.items() if k != "name"})
    if cfg.compile and weights:
        backbone.compile_towers()
    return TBPS(backbone, instantiate(cfg.head)(backbone.embed_dim, backbone.grid))


def build_module(cfg: DictConfig, encoder: TBPS, num_classes: int) -> LitTBPS:
    """Returns the module that trains `encoder` as `cfg.loss`, `cfg.optimizer` and `cfg.scheduler` say.

    Args:
        num_classes: identities in the training set, for the classifiers of losses.
    """
    backbone, slots = encoder.backbone, encoder.head.slots
    rows, columns = backbone.grid
    spec = ModelSpec(encoder.embed_dim, backbone.embed_dim, num_classes, backbone.vocab_size, slots, rows * columns)
    objective = build_objective(instantiate(cfg.loss.terms), spec)
    micro_batch = cfg.grad_cache.micro_batch
    if micro_batch is not None:
        check_positive("grad_cache.micro_batch", micro_batch)
        refuse_tokens(objective)
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
        labeller=None if cfg.pseudo_label.name == "none" else instantiate(cfg.pseudo_label),
        micro_batch=micro_batch,
        measures=build_measures(cfg.evaluation),
    )


def trace_step(cfg: DictConfig, batch_size: int) -> Traced:
    """Returns what a training step of `cfg` takes on a GPU; nothing is computed, and no file need be there.

    It is this module's own step, on fake tensors, with AMP, LoRA, GradCache and recomputed activations as `cfg` has
    them; towers are not compiled, which takes less. Captions fill all their positions, there are as many clusters as
    identities, and one fused kernel updates all parameters.

    Args:
        batch_size: pairs in a batch of one process.

    Raises:
        UserError: what training would refuse as well, or a precision that is not in `AUTOCAST`.
    """
    precision = str(cfg.trainer.precision)
    if precision not in AUTOCAST:
        raise UserError(f"trainer.precision: {precision} cannot be planned, only {', '.join(AUTOCAST)}")
    identities = published_identities(cfg.dataset.name, cfg.dataset.proportion)
    together = processes(cfg)
    with torch.device("meta"):
        module = build_module(cfg, build_encoder(cfg, weights=False), identities).train()
    with fake_gpu():
        module.to_empty(device="cpu")
        for memory in (part for part in module.modules() if isinstance(part, PrototypeMemory)):
            memory.prototypes = memory.prototypes.new_zeros(identities, memory.prototypes.shape[1])
        batch = blank_batch(module.objective.needs, batch_size, cfg.img_size, cfg.backbone.max_length)

        def loss() -> Tensor:
            with torch.autocast("cpu", dtype=AUTOCAST[precision], enabled=AUTOCAST[precision] is not None):
                return module.objective(module.features(batch, gather=lambda rows: torch.cat([rows] * together))).total

        parameters = list(module.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if cfg.optimizer.algorithm == "adamw8bit":
            optimizer: Optimizer = AdamW8bitStates(trained)
        else:
            optimizer = instantiate(cfg.optimizer, fused=True)(module.named_parameters())
        step = measure_step(
            module,
            loss,
            optimizer,
            [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)],
            accumulated=cfg.trainer.accumulate_grad_batches,
            ddp=together > 1,
        )
    return Traced(step, *(sum(parameter.numel() for parameter in some) for some in (parameters, trained)))
