from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torchvision.transforms.v2 import RandomErasing, RandomHorizontalFlip
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import PreTrainedTokenizerFast

from data.annotations import DatasetSplits, Record
from data.batch import (
    COPIES,
    IMAGE,
    IMAGE_AUG,
    IMAGE_SS1,
    IMAGE_SS2,
    IMAGE_VIEWS,
    INDEX,
    MLM_LABELS,
    MLM_POSITIONS,
    NOT_PREDICTED,
    PIDS,
    SOURCE,
    TEXT,
    TEXT_MASKED,
    TOKEN_DRAWS,
    Batch,
    Tokens,
)
from data.text.masking import TokenNoise
from data.views.augmentation import Augmentation, RandomWordDeletion
from data.views.build import PROVIDED_BY
from lightning_data import TBPSDataModule
from utils.config.resolvers import register_resolvers
from utils.errors import UserError

register_resolvers()
CONFIG = Path(__file__).parents[1] / "config"
WORDS = ["[PAD]", "[UNK]", "a", "red", "blue", "shirt", "bag", "zebra"]
AUGMENTATION = Augmentation(
    "test",
    image=[RandomHorizontalFlip()],
    image_aug=[RandomErasing(1.0)],
    image_ss=[RandomErasing(1.0)],
    text=[RandomWordDeletion(0.3)],
)
ALL_VIEWS = frozenset({IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, TEXT, PIDS})


def split(folder: Path, persons: range, captions: tuple[str, ...]) -> list[Record]:
    """Returns two images for each person, each of its own grey."""
    records = []
    for image in range(2 * len(persons)):
        path = folder / f"{persons[0]}-{image}.png"
        Image.new("RGB", (8, 16), (5 * image,) * 3).save(path)
        records.append(Record(persons[image // 2], image, path, captions))
    return records


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSplits:
    train = split(tmp_path, range(101, 113), ("a red shirt", "a blue shirt a bag a bag"))
    val, test = (
        split(tmp_path, range(201, 204), ("a zebra",)),
        split(tmp_path, range(301, 306), ("a bag", "red")),
    )
    told = {"validation": "own", "doctor": "uv run python -m data.doctor toy"}
    return DatasetSplits("toy", "en", tmp_path, train, val, test, **told)  # type: ignore[arg-type]


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def settings(tokenizer_path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "tokenizer_path": tokenizer_path,
        "max_length": 5,
        "img_size": [16, 8],
        "interpolation": "bicubic",
        "aug": AUGMENTATION,
        "sampler": "random",
        "num_instance": 4,
        "batch_size": 8,
        "eval_batch_size": 4,
        "num_workers": 0,
        "cache": False,
        "cache_dir": tmp_path / "cache",
        "augment_on": "worker",
        "seed": 1,
    }


def batches(dataset: DatasetSplits, settings: dict[str, Any], needs: frozenset[str] = ALL_VIEWS) -> list[Batch]:
    data = TBPSDataModule(dataset, **settings)
    data.set_views(needs)
    return list(data.train_dataloader())


def assert_same(first: Batch, second: Batch) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        mine, others = (value, second[key]) if isinstance(value, Tokens) else ((value,), (second[key],))
        assert all(map(torch.equal, mine, others))


class TestPadding:
    def test_captions_are_padded_to_the_longest_of_their_batch_and_masked_alike(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        made = []
        for fixed_length in (True, False):
            data = TBPSDataModule(dataset, **settings | {"max_length": 40})
            data.set_views({TEXT, TEXT_MASKED, MLM_LABELS})
            data.set_padding(training=fixed_length, evaluation=fixed_length)
            made.append(list(data.train_dataloader()) + list(data.test_dataloader()[1]))
        for whole, short in zip(*made, strict=True):
            assert (whole[TEXT].ids.shape[1], short[TEXT].ids.shape[1]) == (40, 8)
            for view in {TEXT, TEXT_MASKED} & whole.keys():
                assert torch.equal(short[view].ids, whole[view].ids[:, :8])
                assert torch.equal(short[view].mask, whole[view].mask[:, :8])
            if MLM_LABELS in whole:
                assert torch.equal(short[MLM_LABELS], whole[MLM_LABELS][:, :8])
                original = short[MLM_LABELS].flatten()[short[MLM_POSITIONS]]
                assert torch.equal(original, whole[MLM_LABELS].flatten()[whole[MLM_POSITIONS]])


class TestTraining:
    def test_a_batch_holds_what_was_asked_for_in_its_shapes(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        result = batches(dataset, settings)
        assert len(result) == 48 // 8
        for batch in result:
            assert set(batch) == ALL_VIEWS | {INDEX}
            for view in (IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2):
                assert (batch[view].shape, batch[view].dtype) == ((8, 3, 16, 8), torch.uint8)
            assert isinstance(batch[TEXT], Tokens)
            assert batch[TEXT].ids.shape == batch[TEXT].mask.shape == (8, 5)
            assert (batch[PIDS].dtype, batch[INDEX].dtype) == (torch.int64, torch.int64)
        seen = torch.cat([batch[INDEX] for batch in result])
        assert sorted(seen.tolist()) == list(range(48))
        assert torch.equal(torch.cat([batch[PIDS] for batch in result]), seen // 4)

    def test_fewer_needs_make_smaller_batches(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        (batch, *_) = batches(dataset, settings, frozenset({IMAGE, TEXT}))
        assert set(batch) == {IMAGE, TEXT, PIDS, INDEX}

    def test_identity_batches(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        for batch in batches(dataset, settings | {"sampler": "identity"}):
            persons = batch[PIDS].view(2, 4)
            assert (persons == persons[:, :1]).all()
            assert persons[0, 0] != persons[1, 0]
            assert all(len(set(images.tolist())) == 2 for images in batch[INDEX].view(2, 4) // 2)

    def test_the_number_of_workers_changes_nothing(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        alone, helped = (batches(dataset, settings | {"num_workers": workers}) for workers in (0, 2))
        assert len(alone) == len(helped)
        for first, second in zip(alone, helped, strict=True):
            for key in (IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, INDEX, PIDS):
                assert torch.equal(first[key], second[key])
            assert torch.equal(first[TEXT].ids, second[TEXT].ids)

    def test_without_pids_no_batch_has_them(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        settings["with_pids"] = False
        assert all(PIDS not in batch for batch in batches(dataset, settings, ALL_VIEWS - {PIDS}))
        with pytest.raises(UserError, match="sampler=identity reads identities"):
            TBPSDataModule(dataset, **settings | {"sampler": "identity"})

    def test_pids_are_provided_if_training_may_read_them(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        assert PIDS in TBPSDataModule(dataset, **settings).provides
        assert PIDS not in TBPSDataModule(dataset, **settings | {"with_pids": False}).provides

    def test_words_are_changed_in_training_alone_and_masking_sees_the_changed_ones(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        plain = TBPSDataModule(dataset, **settings)
        aug = replace(settings["aug"], tokens=partial(TokenNoise, p=0.5, masked=0.5, replaced=0.2))
        noisy = TBPSDataModule(dataset, **settings | {"aug": aug})
        for data in (plain, noisy):
            data.set_views({TEXT, MLM_LABELS})
        assert noisy.mask_token_added
        for clean, changed in zip(plain.train_dataloader(), noisy.train_dataloader(), strict=True):
            assert clean[INDEX].equal(changed[INDEX])
            assert not clean[TEXT].ids.equal(changed[TEXT].ids)
            assert (changed[TEXT].mask.sum(dim=1) <= clean[TEXT].mask.sum(dim=1)).all()
            told = changed[MLM_LABELS] != NOT_PREDICTED
            assert changed[TEXT].ids[told].equal(changed[MLM_LABELS][told])
            assert TOKEN_DRAWS not in changed
        for loaders in zip(plain.val_dataloader(), noisy.val_dataloader(), strict=True):
            for clean, changed in zip(*loaders, strict=True):
                assert TEXT not in clean or clean[TEXT].ids.equal(changed[TEXT].ids)

    def test_without_pids_pairs_come_in_stages(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        data = TBPSDataModule(dataset, **settings | {"with_pids": False})
        data.set_views({TEXT})
        assert data.text_images.tolist() == [pair // 2 for pair in range(48)]
        loader = data.train_dataloader()
        data.set_stages(torch.tensor([2] * 16 + [1] * 32))
        assert [int(batch[INDEX].max() < 16) for batch in loader] == [0, 0, 0, 0, 1, 1]
        with pytest.raises(UserError, match="pseudo labels of 47 pairs, but this training set has 48"):
            data.set_stages(torch.ones(47))

    def test_masked_captions_come_with_their_labels_and_stay_below_the_grown_table(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        data = TBPSDataModule(dataset, **settings)
        before = data.max_token_id
        data.set_views(frozenset({TEXT, TEXT_MASKED, MLM_LABELS, MLM_POSITIONS}))
        assert data.mask_token_added
        assert data.max_token_id == before + 1
        for batch in data.train_dataloader():
            assert batch.keys() == {TEXT, TEXT_MASKED, MLM_LABELS, MLM_POSITIONS, INDEX, PIDS}
            masked, plain, labels = batch[TEXT_MASKED].ids, batch[TEXT].ids, batch[MLM_LABELS]
            assert torch.equal(torch.where(labels == -100, masked, labels), plain)
            assert (labels != -100).any(dim=1).all()
            assert masked.max() <= data.max_token_id
            assert torch.equal(labels.flatten()[batch[MLM_POSITIONS]], labels[labels != -100])

    def test_a_view_that_is_not_offered_fails_before_training(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        data = TBPSDataModule(dataset, **settings | {"aug": Augmentation("none")})
        with pytest.raises(UserError, match="'image_aug', which aug=none does not offer"):
            data.set_views({IMAGE, IMAGE_AUG})

    def test_the_views_must_be_known(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        with pytest.raises(RuntimeError, match="set_views"):
            TBPSDataModule(dataset, **settings).train_dataloader()

    def test_each_process_gets_its_share(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        alone, shares = batches(dataset, settings), []
        for rank in range(2):
            data = TBPSDataModule(dataset, **settings)
            data.set_views(ALL_VIEWS)
            strategy = SimpleNamespace(root_device=torch.device("cpu"))
            data.trainer = SimpleNamespace(  # type: ignore[assignment]
                global_rank=rank, world_size=2, num_devices=2, strategy=strategy
            )
            shares.append(list(data.train_dataloader()))
        for whole, first, second in zip(alone, *shares, strict=True):
            assert torch.equal(whole[IMAGE_AUG], torch.cat([first[IMAGE_AUG], second[IMAGE_AUG]]))


class TestImageCache:
    def test_no_image_file_is_read_after_the_cache_was_filled(
        self, dataset: DatasetSplits, settings: dict[str, Any]
    ) -> None:
        plain = TBPSDataModule(dataset, **settings)
        cached = TBPSDataModule(dataset, **settings | {"cache": True, "num_workers": 1})
        loaded: list[list[Batch]] = []
        for data in (plain, cached):
            data.set_views(ALL_VIEWS)
            if data is cached:
                for record in (*dataset.train, *dataset.val, *dataset.test):
                    record.image_path.unlink()
            loader = data.train_dataloader()
            evaluation = (*data.val_dataloader(), *data.test_dataloader(), *data.relabel_dataloaders())
            loaded.append([batch for each in (loader, loader, *evaluation) for batch in each])
        assert len(loaded[0]) == 2 * 6 + (2 + 1) + (3 + 1) + (6 + 1)
        for first, second in zip(*loaded, strict=True):
            assert_same(first, second)

    @pytest.mark.parametrize("cache", [False, True])
    def test_a_test_decodes_no_other_split(self, dataset: DatasetSplits, settings: dict[str, Any], cache: bool) -> None:
        for record in dataset.train:
            record.image_path.unlink()
        data = TBPSDataModule(dataset, **settings | {"cache": cache, "splits": ["test"]})
        assert (len(dataset.test), len(list(data.test_dataloader()[0]))) == (10, 3)
        with pytest.raises(UserError, match="there is no such file"):
            TBPSDataModule(dataset, **settings | {"cache": cache})


class TestAugmentOnDevice:
    @pytest.mark.parametrize("choice", sorted(path.stem for path in CONFIG.glob("aug/*.yaml")))
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_worker_and_device_build_the_same_batches(
        self, dataset: DatasetSplits, settings: dict[str, Any], choice: str, num_workers: int
    ) -> None:
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            aug = instantiate(compose("demo", overrides=[f"aug={choice}", "img_size_str=16x8"]).aug)
        offered = {view for view in IMAGE_VIEWS if getattr(aug, PROVIDED_BY[view]) is not None}
        settings |= {"aug": aug, "num_workers": num_workers}
        epochs = []
        for augment_on in ("worker", "device"):
            data = TBPSDataModule(dataset, **settings | {"augment_on": augment_on})
            data.set_views(offered | {TEXT, MLM_LABELS})
            batches = list(data.train_dataloader())
            assert (SOURCE in batches[0]) == (augment_on == "device")
            epochs.append([data.transfer_batch_to_device(batch, torch.device("cpu"), 0) for batch in batches])
        for first, second in zip(*epochs, strict=True):
            assert offered <= first.keys()
            assert_same(first, second)

    @pytest.mark.parametrize(("device", "elsewhere"), [("cpu", False), ("cuda", True)])
    def test_auto_is_the_device_where_it_is_a_gpu(
        self, dataset: DatasetSplits, settings: dict[str, Any], device: str, elsewhere: bool
    ) -> None:
        data = TBPSDataModule(dataset, **settings | {"augment_on": "auto"})
        data.set_views({IMAGE})
        assert IMAGE in next(iter(data.train_dataloader()))
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=0, world_size=1, num_devices=1, strategy=strategy
        )
        loader = data.train_dataloader()
        loaders = [loader, *data.val_dataloader()]
        assert [loader.pin_memory for loader in loaders] == [elsewhere] * 3  # whatever GPU the machine has
        assert (SOURCE in next(iter(loader))) == elsewhere

    def test_batches_without_images_pass(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        data = TBPSDataModule(dataset, **settings | {"augment_on": "device"})
        data.set_views({TEXT})
        batch = next(iter(data.train_dataloader()))
        assert_same(batch, data.transfer_batch_to_device(batch, torch.device("cpu"), 0))


class TestEvaluation:
    def test_the_training_set_is_encoded_as_it_is(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        images, texts = map(list, TBPSDataModule(dataset, **settings).relabel_dataloaders())
        grays = torch.cat([batch[IMAGE] for batch in images])[:, 0, 0, 0]
        assert grays.tolist() == [5 * image for image in range(24)]
        assert torch.cat([batch[INDEX] for batch in texts]).sort().values.tolist() == list(range(48))

    @pytest.mark.parametrize(("name", "persons", "captions"), [("val", 3, 1), ("test", 5, 2)])
    def test_images_once_then_captions_with_raw_identities(
        self, dataset: DatasetSplits, settings: dict[str, Any], name: str, persons: int, captions: int
    ) -> None:
        data = TBPSDataModule(dataset, **settings)
        images, texts = map(list, getattr(data, f"{name}_dataloader")())
        records = getattr(dataset, name)
        assert all(set(batch) == {IMAGE, PIDS, INDEX} for batch in images)
        assert all(set(batch) == {TEXT, PIDS, INDEX, COPIES} for batch in texts)
        assert sum(int(batch[COPIES].sum()) for batch in texts) == len(records) * captions
        assert torch.cat([batch[INDEX] for batch in images]).tolist() == list(range(2 * persons))
        assert torch.cat([batch[PIDS] for batch in images]).tolist() == [record.pid for record in records]
        order = torch.cat([batch[INDEX] for batch in texts]).argsort()
        assert torch.cat([batch[PIDS] for batch in texts])[order].tolist() == [
            record.pid for record in records for _ in range(captions)
        ]
        grays = torch.cat([batch[IMAGE] for batch in images])[:, 0, 0, 0]
        assert grays.tolist() == [5 * image for image in range(2 * persons)]


class Reader(L.LightningModule):
    """Reads batches and learns nothing."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        assert len(batch[INDEX]) == len(batch[IMAGE_AUG]) == 8

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int) -> None:
        assert (IMAGE in batch) == (dataloader_idx == 0)

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore")  # what Lightning advises for real trainings
class TestUnderLightning:
    @staticmethod
    def trainer(folder: Path) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    @pytest.mark.parametrize("augment_on", ["auto", "device"])
    def test_it_trains_and_tests(
        self, dataset: DatasetSplits, settings: dict[str, Any], tmp_path: Path, augment_on: str
    ) -> None:
        data = TBPSDataModule(dataset, **settings | {"cache": True, "augment_on": augment_on})
        data.set_views(ALL_VIEWS)
        trainer = self.trainer(tmp_path)
        trainer.fit(Reader(), datamodule=data)
        assert trainer.fit_loop.total_batch_idx == 5
        trainer.test(Reader(), datamodule=data, verbose=False)
        assert [int(batches) for batches in trainer.num_test_batches] == [3, 1]

    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n"], ids=["missing", "empty", "broken"])
    def test_one_sentence_names_a_bad_image_whatever_process_reads_it(
        self,
        dataset: DatasetSplits,
        settings: dict[str, Any],
        tmp_path: Path,
        num_workers: int,
        content: bytes | None,
    ) -> None:
        data = TBPSDataModule(dataset, **settings | {"num_workers": num_workers})
        data.set_views(ALL_VIEWS)
        for bad in (dataset.train[7], dataset.test[3]):  # after all were looked at
            bad.image_path.unlink()
            if content is not None:
                bad.image_path.write_bytes(content)
        for run, bad in (
            (self.trainer(tmp_path).fit, dataset.train[7]),
            (self.trainer(tmp_path).test, dataset.test[3]),
        ):
            with pytest.raises(UserError) as error:
                run(Reader(), datamodule=data)
            assert str(error.value).startswith(f"{bad.image_path} (identity {bad.pid}) cannot be read (")
            assert "\n" not in str(error.value)


class TestDescription:
    def test_counts_classes_and_tokens(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        data = TBPSDataModule(dataset, **settings)
        assert data.num_classes == 12
        assert data.max_token_id == WORDS.index("zebra")
        assert data.counts.splits == {"train": (12, 24, 48, 24), "val": (3, 6, 6, 0), "test": (5, 10, 20, 0)}
        assert data.describe() == (
            "toy (en): train 24 images, 48 captions, 12 identities; val 6 images, 6 captions, 3 identities; "
            "test 10 images, 20 captions, 5 identities; 24 captions cut to 5 tokens (the longest has 7); "
            "images of one color: 40 (`uv run python -m data.doctor toy` names them)"
        )

    def test_what_was_left_out_of_training_is_no_class(
        self, dataset: DatasetSplits, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        for record in dataset.train[:3]:
            record.image_path.write_bytes(b"broken")
        data = TBPSDataModule(dataset, **settings | {"on_broken": "skip", "list_in": tmp_path / "run"})
        assert (data.num_classes, len(data.text_images)) == (11, 42)
        assert "left out of train because images cannot be read: images 3, captions 6, identities 1" in data.describe()
        assert (tmp_path / "run" / "broken_images.txt").is_file()

    def test_what_a_picture_of_results_shows(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        data = TBPSDataModule(dataset, **settings)
        assert data.dataset.captions("test") == ["a bag", "red"] * 10
        assert data.dataset.image_paths("test") == [record.image_path for record in dataset.test]
        pair = data.test_pair(7)
        images, [captions] = (list(loader) for loader in data.test_dataloader())
        assert torch.equal(pair["image"][0], torch.cat([batch["image"] for batch in images])[3])
        assert captions[COPIES].tolist() == [10, 10]
        row = captions[INDEX].tolist().index(7) // 10
        for own, every in zip(pair["text"], captions["text"], strict=True):
            assert torch.equal(own[0], every[row])

    def test_validation_on_test_is_said(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        paper = DatasetSplits("toy", "en", dataset.folder, dataset.train, dataset.test, dataset.test, validation="test")
        text = TBPSDataModule(paper, **settings | {"max_length": 9}).describe()
        assert text.startswith("toy (en), validated on test: train 24 images")
        assert "cut" not in text


class TestSettings:
    def test_a_misspelt_sampler(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=r"dataset\.sampler=identiy is unknown.*Did you mean 'identity'"):
            TBPSDataModule(dataset, **settings | {"sampler": "identiy"})

    def test_a_misspelt_place_to_augment(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=r"augment_on=devise is unknown; expected auto or.*Did you mean 'device'"):
            TBPSDataModule(dataset, **settings | {"augment_on": "devise"})

    def test_a_misspelt_interpolation(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=r"interpolation=bilinaer is unknown.*Did you mean 'bilinear'"):
            TBPSDataModule(dataset, **settings | {"interpolation": "bilinaer"})

    @pytest.mark.parametrize("cache", [True, False])
    def test_images_of_all_splits_are_resized_as_the_backbones_folder_says_or_as_asked(
        self, dataset: DatasetSplits, settings: dict[str, Any], tokenizer_path: Path, cache: bool
    ) -> None:
        noise = torch.randint(0, 256, (30, 20, 3), dtype=torch.uint8).numpy()
        for record in (dataset.train[0], dataset.test[0]):
            Image.fromarray(noise).save(record.image_path)
        (tokenizer_path / "preprocessor_config.json").write_text('{"resample": 2}')
        for asked, used in ((None, "bilinear"), ("bicubic", "bicubic"), ("bilinear", "bilinear")):
            data = TBPSDataModule(dataset, **settings | {"interpolation": asked, "cache": cache})
            expected = Image.fromarray(noise).resize((8, 16), getattr(Image.Resampling, used.upper()))
            for split in ("train", "test"):
                images, _ = data._evaluation_loaders(split)
                assert torch.equal(next(iter(images))[IMAGE][0], pil_to_tensor(expected))
            assert data.describe_images() == f"resized to 16x8, {used}"
            assert data.provenance["interpolation"] == used

    def test_a_missing_tokenizer(self, dataset: DatasetSplits, settings: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="nowhere does not exist"):
            TBPSDataModule(dataset, **settings | {"tokenizer_path": "nowhere"})

    def test_auto_workers_leave_a_core_to_training(
        self, dataset: DatasetSplits, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for cores, workers in ((1, 1), (4, 3), (64, 4)):
            monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
            data = TBPSDataModule(dataset, **settings | {"num_workers": "auto"})
            data.set_views(ALL_VIEWS)
            assert data.train_dataloader().num_workers == workers
            images, texts = data.val_dataloader()
            assert (images.num_workers, texts.num_workers) == (workers, 0)
