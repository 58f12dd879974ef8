"""TBPSDataModule: the data loaders of a dataset, with its views and its sampler."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.annotations import DatasetSplits
from data.annotations.layouts import SPLITS
from data.batch import IMAGE, INDEX, MLM_LABELS, TEXT, TEXT_MASKED, TEXT_VIEWS, VIEWS, Batch, provided
from data.images.read import FILTERS, Resize
from data.images.readers import open_images
from data.loading.chosen import USED, chosen_dataset
from data.loading.counts import DatasetCounts, count, describe, provenance
from data.loading.datasets import CaptionChoice, CaptionDataset, Collate, ImageDataset, PairDataset, captions_of
from data.loading.loader import ResumableLoader, evaluation_loader, worker_processes
from data.loading.samplers import EpochSampler
from data.loading.sampling import Sampling
from data.text.masking import Masker, Vocabulary
from data.text.tokens import Tokenize, clean_dataset, load_tokenizer
from data.views.augmentation import Augmentation
from data.views.build import Views
from data.views.on_device import DeviceViews
from utils.checkpoints.folder import read_interpolation
from utils.config.surroundings import check_room_for_workers
from utils.errors import UserError, check_choice, check_positive


class TBPSDataModule(L.LightningDataModule):
    """The data loaders of a dataset.

    Training batches contain the views that `set_views` sets. Evaluation uses two loaders per split: one of its images
    and one of its captions (`data/batch.py`). `config/dataset/_base.yaml` describes the arguments not listed here.

    Args:
        dataset: the records to train, validate and test on.
        tokenizer_path, max_length: folder of the backbone, with its tokenizer; tokens of a caption.
        img_size: (height, width) in pixels.
        aug, seed: augmentation that builds the views of training; seed of batches and augmentation.
        with_pids: whether training may read identities. If false, training batches do not contain them, and pairs are
            trained in the stages that `set_stages` sets.
        masks_later: whether `TEXT_MASKED` comes unmasked with its `MASK_DRAWS`; the training step masks it by `masker`.
        splits: splits whose images are needed. Each image is checked, and decoded if it is not in the cache.
        list_in: folder in which to write a list of the images that cannot be read. None: no list is written.

    Raises:
        UserError: a setting is invalid, there is no tokenizer, or images cannot be read.
    """

    def __init__(
        self,
        dataset: DatasetSplits,
        *,
        tokenizer_path: str | Path,
        max_length: int,
        img_size: Sequence[int],
        interpolation: str | None,
        aug: Augmentation,
        sampler: str,
        num_instance: int,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int | Literal["auto"],
        cache: bool,
        cache_dir: str | Path,
        augment_on: str,
        seed: int,
        all_languages: bool = False,
        further_captions: Mapping[str, float] | None = None,
        with_pids: bool = True,
        masks_later: bool = False,
        splits: Sequence[str] = SPLITS,
        on_broken: str = "error",
        list_in: Path | None = None,
    ) -> None:
        super().__init__()
        check_choice("dataset.augment_on", augment_on, ("auto", "worker", "device"))
        check_positive("dataset.eval_batch_size", eval_batch_size)
        self.interpolation = read_interpolation(Path(tokenizer_path)) if interpolation is None else interpolation
        check_choice("dataset.interpolation", self.interpolation, tuple(FILTERS))
        tokenizer = load_tokenizer(tokenizer_path)
        dataset = clean_dataset(dataset, tokenizer)
        self.tokenize = Tokenize(tokenizer, max_length, cleaned=True)
        self._in_training: dict[str, Any] = {}  # arguments of `Collate`
        self._in_evaluation: dict[str, Any] = {}
        self._aug, self._further = aug, dict(further_captions or {})
        self._sampling = Sampling(sampler, num_instance, batch_size, seed, with_pids, all_languages)
        self._eval_batch_size, self._num_workers = eval_batch_size, num_workers
        self._augment_on, self._with_pids, self._masks_later = augment_on, with_pids, masks_later
        self._views: Views | None = None
        self._device_views: DeviceViews | None = None
        self._vocabulary: Vocabulary | None = None
        self.masker: Masker | None = None
        self.mask_token_added = False  # to the backbone's tokenizer
        self._img_size = img_size[0], img_size[1]
        resize = Resize(self._img_size, self.interpolation)
        own: dict[str, Any] = {"cache_dir": Path(cache_dir) if cache else None, "on_broken": on_broken}
        self.dataset, self._read = open_images(dataset, splits, resize, **own, list_in=list_in)  # last: may take long
        self._stages = np.ones(len(self.text_images), dtype=np.int64)

    @property
    def provides(self) -> frozenset[str]:
        """The needs of losses that the data meets, see `data.batch.provided`."""
        return provided(self._with_pids)

    def set_views(self, needs: Collection[str], mask_id: int | None = None) -> None:
        """Sets the views that training batches contain.

        Args:
            needs: views and labels that the objective needs, all of them in `provides`.
            mask_id: as in `Vocabulary`.

        Raises:
            UserError: the augmentation cannot build one of the views.
        """
        views = set(needs) & set(VIEWS) | ({TEXT_MASKED} if MLM_LABELS in needs else set())
        self._views = Views(views, self.tokenize.max_length, self._aug)
        self._device_views = DeviceViews(self._views)
        make_noise = self._aug.tokens if views & set(TEXT_VIEWS) else None
        if TEXT_MASKED in views or make_noise is not None:
            self._vocabulary = Vocabulary(self.tokenize.tokenizer, mask_id)
            self.mask_token_added = self._vocabulary.added
            self.masker = Masker(self._vocabulary) if TEXT_MASKED in views else None
            masker, noise = None if self._masks_later else self.masker, make_noise and make_noise(self._vocabulary)
            self._in_training |= {"masker": masker, "noise": noise}

    def set_padding(self, *, training: bool, evaluation: bool) -> None:
        """Sets whether captions are padded to the full length; if not, to about the longest of their batch."""
        self._in_training["fixed_length"] = training
        self._in_evaluation["fixed_length"] = evaluation

    def set_stages(self, stages: Tensor) -> None:
        """Sets the stage of each training pair, from the next epoch on.

        Args:
            stages: 1, 2 (trained after all pairs of stage 1) or 0 (not trained). Shape: ``(P,)``.

        Raises:
            UserError: the stages belong to another training set.
        """
        if len(stages) != len(self._stages):
            raise UserError(
                f"the checkpoint has pseudo labels of {len(stages)} pairs, but this training set has "
                f"{len(self._stages)}; continue with the dataset that it was trained on."
            )
        self._stages[:] = stages.cpu().numpy()

    @property
    def text_images(self) -> Tensor:
        """The image index of each training pair. There is one pair per caption. Shape: ``(P,)``."""
        return torch.tensor([caption.image for caption in captions_of(self.dataset.train)])

    @property
    def true_pairs(self) -> Tensor | None:
        """`DatasetSplits.true_pairs` as bool ``(P,)``, for reports: it reads identities, also if training must not."""
        true = self.dataset.true_pairs()
        return None if true is None else torch.tensor(true)

    @property
    def num_classes(self) -> int:
        """Number of identities in the training set. Training pids lie in ``0 .. num_classes - 1``."""
        return len({record.pid for record in self.dataset.train})

    @property
    def max_token_id(self) -> int:
        """The largest token id of any caption, masked or not. The backbone's token table needs a row for it."""
        return max(self.counts.max_token_id, 0 if self._vocabulary is None else self._vocabulary.max_id)

    def test_pair(self, caption: int) -> Batch:
        """Returns a batch of one: the test caption at index `caption`, its image, and the image's index as `INDEX`."""
        image, text = captions_of(self.dataset.test)[caption]
        pixels = self._read(self.dataset.test[image])[None]
        return {INDEX: torch.tensor([image]), IMAGE: pixels, TEXT: self.tokenize([text])}

    @cached_property
    def counts(self) -> DatasetCounts:
        """The counts of images, captions, identities and tokens of the splits."""
        return count(self.dataset, self.tokenize)

    def check_loading(self) -> None:
        """Raises `UserError` if batches cannot be built or shared out, or if memory cannot hold prefetched batches."""
        processes, splits = self._share["world_size"], (self.dataset.train, self.dataset.val, self.dataset.test)
        images = min(self._eval_batch_size, max(map(len, splits)))
        if self._views is not None:
            self.training_batches(processes)
            views = 1 if self._augments_on_device else self._views.image_count
            images = max(images, views * self._sampling.batch_size // processes)
        on_machine = self.trainer.num_devices if self.trainer else 1
        check_room_for_workers(self._workers(), 3 * images * self._img_size[0] * self._img_size[1], on_machine)

    def training_batches(self, world_size: int = 1) -> int:
        """Returns the number of batches in an epoch. It does not depend on the number of processes.

        Raises:
            UserError: this training set gives no batch, or `world_size` does not divide the batch.
        """
        return len(self._sampler(self._training_set(), rank=0, world_size=world_size))

    def describe(self) -> str:
        """Returns one line that describes the dataset, for the first screen."""
        return describe(self.dataset, self.counts, self.tokenize.max_length)

    def describe_images(self) -> str:
        """Returns one line that describes how images are resized, for the first screen."""
        return f"resized to {self._img_size[0]}x{self._img_size[1]}, {self.interpolation}"

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts that identify this version of the dataset, and how its images were resized."""
        return {**provenance(self.dataset, self.counts), "interpolation": self.interpolation}

    def train_dataloader(self) -> ResumableLoader:
        dataset = self._training_set()
        sampler = self._sampler(dataset, **self._share)
        collate = Collate(self.tokenize, **self._in_training)
        return ResumableLoader(dataset, sampler, collate, num_workers=self._workers(), pin_memory=self._feeds_gpu)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if self._device_views is not None:
            batch = self._device_views(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def relabel_dataloaders(self) -> list[DataLoader[Batch]]:
        """Returns loaders of the training images and captions, as in evaluation."""
        return self._evaluation_loaders("train")

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders("test")

    def changed_test(self, of: str, change: Callable[[Any], Any]) -> DataLoader[Batch]:
        """Returns a loader of the test "captions" or "images"; `change` maps texts, or uint8 pixels ``(3, H, W)``."""
        if of == "captions":
            return self._evaluation_loader(CaptionDataset(self.dataset.test, change), 0)
        images = ImageDataset(self.dataset.test, lambda record: change(self._read(record)))
        return self._evaluation_loader(images, self._workers())

    @property
    def _feeds_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def _augments_on_device(self) -> bool:
        return self._feeds_gpu if self._augment_on == "auto" else self._augment_on == "device"

    @property
    def _share(self) -> dict[str, int]:
        trainer = self.trainer
        return {"rank": trainer.global_rank if trainer else 0, "world_size": trainer.world_size if trainer else 1}

    def _training_set(self) -> PairDataset:
        if self._views is None:
            raise RuntimeError("call set_views(objective.needs) before training")
        options: dict[str, Any] = {"with_pids": self._with_pids, "later": self._augments_on_device}
        options["choice"] = CaptionChoice(self.dataset, self._further) if self._further else None
        return PairDataset(self.dataset.train, self._read, self._views, **options)

    def _sampler(self, dataset: PairDataset, **share: int) -> EpochSampler:
        return self._sampling.sampler(dataset, self._stages, self.dataset.caption_languages("train"), **share)

    def _evaluation_loaders(self, split: str) -> list[DataLoader[Batch]]:
        records = getattr(self.dataset, split)
        images = self._evaluation_loader(ImageDataset(records, self._read), self._workers())
        return [images, self._evaluation_loader(CaptionDataset(records), 0)]

    def _evaluation_loader(self, dataset: Dataset[Any], workers: int) -> DataLoader[Batch]:
        options: dict[str, Any] = {"num_workers": workers, "pin_memory": self._feeds_gpu, **self._share}
        collate = Collate(self.tokenize, **self._in_evaluation)
        return evaluation_loader(dataset, collate, self._eval_batch_size, **options)

    def _workers(self) -> int:
        return worker_processes(self._num_workers, self.trainer.num_devices if self.trainer else 1)


def build_data(cfg: DictConfig, splits: Sequence[str] = SPLITS) -> TBPSDataModule:
    """Returns the datamodule that `cfg.dataset`, `cfg.aug` and `cfg.backbone` describe.

    The images of `splits` are checked now. A training ends in a test, so it checks all splits before it starts.

    Raises:
        UserError: the dataset is absent or damaged, images cannot be read, or a setting is invalid.
    """
    options: dict[str, Any] = {
        "tokenizer_path": cfg.backbone.folder,
        "max_length": cfg.backbone.max_length,
        "img_size": cfg.img_size,
        "aug": instantiate(cfg.aug),
        **{key: value for key, value in cfg.dataset.items() if key not in USED},
        "seed": cfg.seed,
        "with_pids": cfg.pseudo_label.name == "none" or get_class(cfg.pseudo_label._target_).reads_pids,  # type: ignore[attr-defined]
        "masks_later": cfg.masking.name != "uniform",
        "list_in": None if rank_zero_only.rank else Path(cfg.run_dir),  # type: ignore[attr-defined]
    }
    if cfg.dataset.shards is not None and "train" in splits:
        from lightning_shards import build_shards

        return build_shards(cfg, splits, options)
    return TBPSDataModule(chosen_dataset(cfg, splits), splits=splits, **options)
