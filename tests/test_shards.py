"""Runs that train on shards: written by the command, killed and continued, refused combinations."""

import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from data.annotations import read_dataset
from data.shards.command import main
from data.shards.writer import ShardWriter
from lightning_data import build_data
from lightning_models import LitTBPS
from lightning_shards import ShardsDataModule
from tests.forked import forked
from tests.same_run import differences
from tests.small_run import ANY_METHOD, command
from trainer import train
from utils.errors import UserError

SHORT = (
    "dataset=shards",
    *ANY_METHOD,
    "loss=baseline",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "logger=csv",
    "shown_queries=0",
    "callbacks.last.every_n_steps=3",  # of 9 in an epoch
)
pytestmark = pytest.mark.usefixtures("fit_to_fork")


@pytest.fixture(scope="module")
def shards(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two sources of several shards each; the second has no identities."""
    folder = tmp_path_factory.mktemp("shards")
    records = read_dataset("drawn", small_root).train
    for name, own, with_pids in (("a", records[:16], True), ("b", records[16:], False)):
        ShardWriter(folder / name, {}, shard_bytes=5_000, with_pids=with_pids).write(own)
    return f"{{a: {{folder: {folder}/a, weight: 2}}, b: {folder}/b}}"


def run(root: Path, out: Path, shards: str, *overrides: str) -> dict[str, float]:
    places = (f"dataset_root_dir={root}", f"run_dir={out}", f"dataset.shards={shards}", "dataset.epoch_pairs=72")
    with command(*SHORT, *places, *overrides) as cfg:
        return train(cfg)


def test_a_run_killed_within_an_epoch_continues_to_the_same_weights(
    small_root: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed() -> None:
        step = LitTBPS.training_step

        def dies(self: LitTBPS, *args: Any, **kwargs: Any) -> Any:
            if self.trainer.global_step == 14:  # of 18, after a checkpoint at 12
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args, **kwargs)

        LitTBPS.training_step = dies  # type: ignore[method-assign]
        run(small_root, tmp_path / "cut", shards)

    metrics = run(small_root, tmp_path / "whole", shards)
    told = capsys.readouterr().out
    assert "16 images, 32 pairs, 8 identities; 48 of 72 draws of an epoch" in told
    assert "8 images, 16 pairs, no identities: each image counts as a person; 24 of 72 draws of an epoch" in told
    assert forked(killed) == -signal.SIGKILL
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    [folder] = {Path(found).parent for found in re.findall(r"/[^ ,}]*", shards)}
    shutil.copytree(folder, tmp_path / "moved")
    moved = shards.replace(str(folder), str(tmp_path / "moved"))
    assert run(small_root, tmp_path / "cut", moved, f"ckpt_path={last}") == metrics
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dataset.sampler=identity", "set dataset.sampler=random"),
        ("dataset.noise_rate=0.2", "set dataset.noise_rate=0.0"),
        ("pseudo_label=kmeans", "set pseudo_label=none"),
        ("dataset.epoch_pairs=0", "dataset.epoch_pairs: 0 given"),
        ("dataset.epoch_pairs=1", "gives it none of the 1 draws"),
        ("dataset.epoch_pairs=10000000000000", "expected a number up to"),
        ("dataset.cache_dir=null", "dataset.cache_dir: None given"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(small_root: Path, shards: str, override: str, told: str) -> None:
    overrides = ("dataset=shards", f"dataset_root_dir={small_root}", f"dataset.shards={shards}", override)
    with command(*overrides) as cfg, pytest.raises(UserError, match=told):
        build_data(cfg)


def test_the_command_writes_what_training_reads(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = (str(tmp_path / "out"), "dataset=drawn", f"dataset_root_dir={small_root}")
    assert main([*written, "--size", "64x32"]) == 0
    told = capsys.readouterr().out
    assert "1 files" in told
    assert "48 of 24 images, 12 identities, from drawn (train)" in told
    with pytest.raises(UserError, match="holds shards already"):
        main([*written])
    with pytest.raises(UserError, match=r"dataset\.laguage"):
        main([*written, "dataset.laguage=vi"])
    places = (f"dataset_root_dir={small_root}", f"dataset.shards={tmp_path}/out", "dataset.sampler=random")
    with command(*ANY_METHOD, *places) as cfg:
        cfg.backbone.folder = str(small_root / "tiny_siglip_checkpoints")
        data = build_data(cfg)
    assert isinstance(data, ShardsDataModule)
    assert (data.num_classes, data.counts.splits["train"].captions, data.training_batches()) == (12, 48, 6)
    assert data.max_token_id == max(data.tokenize.tokenizer.get_vocab().values())


def test_shards_of_a_dataset_have_none_of_the_images_that_a_run_tests(small_root: Path, tmp_path: Path) -> None:
    """Also if the file has no splits: the run has to divide it as the shards were divided."""
    drawn = small_root / "DRAWN-PEDES"
    records = json.loads((drawn / "data_captions.json").read_text())
    lines = [f'{r["file_path"]},"{r["en_captions"][0]}",{r["id"]}' for r in records]
    (tmp_path / "people.csv").write_text("\n".join(["file_path,caption,id", *lines]) + "\n")
    own = ["dataset=custom", f"dataset.annotations={tmp_path}/people.csv", f"dataset.images={drawn}/imgs"]
    for name, split in (("a", "train"), ("b", "test")):
        main([str(tmp_path / name), *own, f"dataset_root_dir={small_root}", "--split", split])
    common = (*ANY_METHOD, *own, f"dataset_root_dir={small_root}", "dataset.sampler=random")
    for override, folder, told in (
        ("split_seed=7", "a", "divided by .*'split_seed': 0.* and this run by .*'split_seed': 7"),
        ("split_seed=0", "b", "of the split test"),
        ("split_seed=0", "a", None),
    ):
        with command(*common, override, f"dataset.shards={tmp_path}/{folder}") as cfg:
            cfg.backbone.folder = str(small_root / "tiny_siglip_checkpoints")
            with nullcontext() if told is None else pytest.raises(UserError, match=told):
                build_data(cfg)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["dataset=drawn"], "'dataset=drawn' is no folder; the command is"),
        (["", "dataset=drawn"], "'' is no folder"),
        (["s3://bucket/x", "dataset=drawn"], "is no local folder; write to one and copy it"),
        (["out", "dataset=shards"], "dataset.shards= has no effect on shards"),
        (["out", "dataset=drawn", "dataset.further_captions={a: 1}"], "dataset.further_captions=.* has no effect"),
    ],
)
def test_the_command_refuses(line: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        main(line)
    assert not list(tmp_path.iterdir())
