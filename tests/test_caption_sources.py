"""Further captions in training, and captions in several languages: from the annotation file to the tables."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import trainer
from data.batch import INDEX, TEXT, Batch
from data.loading.datasets import captions_of
from lightning_data import TBPSDataModule, build_data
from tests.small_run import ANY_METHOD, command
from utils.continuing.composed import with_composed
from utils.continuing.taken_over import continued_config
from utils.errors import UserError
from utils.ranking.metrics import measure
from utils.ranking.positives import Ranks, load_ranks

FURTHER = "dataset.further_captions={captions: 1.5}"  # Vietnamese, beside captions in English
MIXED = ("dataset.language=mixed", "dataset.all_languages=true")


def train(root: Path, out: Path, *overrides: str) -> dict[str, float]:
    options = (*ANY_METHOD, "loss=itc", "logger=csv", "trainer.max_epochs=1", f"dataset_root_dir={root}")
    with command(*options, f"run_dir={out}", *overrides) as cfg:
        return trainer.TASKS[cfg.task](cfg)


def data_of(root: Path, *overrides: str, splits: tuple[str, ...] = ("train", "val", "test")) -> TBPSDataModule:
    with command(*ANY_METHOD, f"dataset_root_dir={root}", "aug.text=[]", *overrides) as cfg:
        cfg.backbone.folder = str(root / "tiny_siglip_checkpoints")
        data = build_data(cfg, splits)
    data.set_views({TEXT})
    return data


def texts(data: TBPSDataModule, batches: list[Batch]) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (pair, tuple(ids))
        for batch in batches
        for pair, ids in zip(batch[INDEX].tolist(), batch[TEXT].ids.tolist(), strict=True)
    ]


def tokens_of(data: TBPSDataModule, captions: tuple[str, ...]) -> set[tuple[int, ...]]:
    return {tuple(ids) for ids in data.tokenize(captions).ids.tolist()}


def test_a_pair_is_trained_with_its_own_caption_or_a_further_one_of_its_image(small_root: Path) -> None:
    data = data_of(small_root, FURTHER)
    pairs = captions_of(data.dataset.train)
    loader = data.train_dataloader()
    counts: Counter[str] = Counter()
    for epoch in range(8):
        loader.batch_sampler.set_epoch(epoch)
        for pair, ids in texts(data, list(loader)):
            image_id = data.dataset.train[pairs[pair].image].image_id
            is_own = ids in tokens_of(data, (pairs[pair].text,))
            assert is_own or ids in tokens_of(data, data.dataset.further["captions"][image_id])
            counts["own" if is_own else "further"] += 1
    assert counts["own"] / counts.total() == pytest.approx(1 / 2.5, abs=0.08)  # of 384; three standard deviations


def test_draws_are_the_same_after_a_kill_and_with_workers(small_root: Path) -> None:
    plain = texts(first := data_of(small_root, FURTHER), list(first.train_dataloader()))
    helped = texts(other := data_of(small_root, FURTHER, "dataset.num_workers=2"), list(other.train_dataloader()))
    assert plain == helped
    loader = data_of(small_root, FURTHER).train_dataloader()
    begun = iter(loader)
    head = [next(begun) for _ in range(2)]
    resumed = data_of(small_root, FURTHER).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert texts(first, [*head, *resumed]) == plain


def test_the_pairs_and_seeds_are_those_of_a_run_without_further_captions(small_root: Path) -> None:
    with_more, without = (data_of(small_root, *options).train_dataloader() for options in ((FURTHER,), ()))
    assert list(with_more.batch_sampler) == list(without.batch_sampler)


def test_further_captions_are_never_validated_or_tested_on_and_a_test_needs_none(small_root: Path) -> None:
    more, plain = data_of(small_root, FURTHER), data_of(small_root)
    for name in ("val_dataloader", "test_dataloader", "relabel_dataloaders"):
        batches = [list(getattr(data, name)()[1]) for data in (more, plain)]
        for first, second in zip(*batches, strict=True):
            assert torch.equal(first[TEXT].ids, second[TEXT].ids)
    tested = data_of(small_root, "dataset.further_captions={no_such_key: 1}", splits=("test",))
    assert tested.dataset.further == {}


def test_further_captions_are_counted_and_their_tokens_fit_the_table(small_root: Path) -> None:
    more, plain = data_of(small_root, FURTHER), data_of(small_root)
    further = [caption for own in more.dataset.further["captions"].values() for caption in own]
    counts = more.tokenize.count(further)
    assert len(further) == 48
    assert more.max_token_id == max(plain.max_token_id, counts.max_id)
    assert more.counts.most_tokens == max(plain.counts.most_tokens, counts.longest)
    assert more.provenance["further"] == {"captions": {"captions": 48, "cut": counts.cut}}
    assert "further captions captions: 48" in more.describe()
    assert "further" not in plain.provenance
    assert more.counts.splits == plain.counts.splits


def test_a_caption_that_noise_moved_takes_its_further_captions_with_it(small_root: Path) -> None:
    data = data_of(small_root, FURTHER, "dataset.noise_rate=0.9")
    origins = data.dataset.training_origins()
    pairs = captions_of(data.dataset.train)
    assert not all(data.true_pairs.tolist())  # type: ignore[union-attr]
    for pair, ids in texts(data, list(data.train_dataloader())):
        offered = (pairs[pair].text, *data.dataset.further["captions"][origins[pair].image_id])
        assert ids in tokens_of(data, offered)


@pytest.mark.parametrize("weight", ["0", "-1", "true", "null", "many", ".inf"])
def test_a_weight_that_is_none_is_refused(small_root: Path, weight: str) -> None:
    data = data_of(small_root, f"dataset.further_captions={{captions: {weight}}}")
    with pytest.raises(UserError, match=r"dataset.further_captions.captions: .* given, expected a weight above 0"):
        data.check_loading()


def test_a_run_goes_on_with_its_further_captions_and_no_others() -> None:
    with command(*ANY_METHOD, FURTHER) as cfg:
        trained = OmegaConf.to_container(with_composed(cfg), resolve=True)
    for again in ((), (FURTHER,)):
        with command(*ANY_METHOD, *again, "trainer.max_epochs=7") as cfg:
            config = continued_config(cfg, trained, Path("last.ckpt")).config
        assert config.dataset.further_captions == {"captions": 1.5}
    with (
        command(*ANY_METHOD, "dataset.further_captions={captions: 2}") as cfg,
        pytest.raises(UserError, match=r"further_captions.captions=2: last.ckpt was trained with 1.5, and only that"),
    ):
        continued_config(cfg, trained, Path("last.ckpt"))


def test_both_languages_of_an_image_are_in_a_batch_and_each_is_ranked_apart(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = train(small_root, tmp_path, *MIXED, "dataset.num_instance=4")
    report: dict[str, Any] = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    data = data_of(small_root, *MIXED, "dataset.num_instance=4")
    languages = np.array(data.dataset.caption_languages("test"))
    assert languages.tolist() == ["en", "en", "vi", "vi"] * 8
    ranks: Ranks = load_ranks(tmp_path / "ranks.npz")["t2i"][0]
    for language in ("en", "vi"):
        own = measure(ranks.take(np.flatnonzero(languages == language)))
        assert report["metrics"][f"t2i/{language}"] == pytest.approx(own.as_row())
        assert found[f"test/t2i/{language}/R1"] == pytest.approx(own.R1)
        assert f"val/t2i/{language}/mAP" in found
    both = (found["test/t2i/en/mAP"] + found["test/t2i/vi/mAP"]) / 2
    assert found["test/t2i/mAP"] == pytest.approx(both)
    table = capsys.readouterr().out.partition("drawn-mixed, test split")[2].splitlines()
    assert [line.split()[1] for line in table if line.startswith("| ")][:5] == [
        "Task",
        "t2i",
        "i2t",
        "t2i/en",
        "t2i/vi",
    ]
    assert "t2i/vi" in (tmp_path / "report.html").read_text(encoding="utf-8")
    for batch in data.train_dataloader():
        images = data.text_images[batch[INDEX]]
        assert torch.equal(images[::2], images[1::2])
    clipped = replace(data.dataset, test=data.dataset.test[:1])
    assert clipped.caption_languages("test") == ["en", "en", "vi", "vi"]
