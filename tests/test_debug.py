"""debug=fast, debug=overfit, limits of batches: they run through, and what they leave out stands in all they report."""

import csv
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import trainer
from tests.small_run import ANY_METHOD, CONFIG_DIR, SMALL

LEFT_OUT = (
    "debug=fast; 1 of the batches of a training epoch; first 1 batch of the validation split (3 of 8 images); "
    "first 1 batch of the test split (3 of 8 images)"
)


def config(root: Path, out: Path, *overrides: str, small: tuple[str, ...] = SMALL) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("demo", overrides=[*small, f"dataset_root_dir={root}", f"run_dir={out}", *overrides])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "logs" / "steps.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_batch_of_everything_is_marked_in_every_table_record_and_log(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("debug=fast", "dataset.eval_batch_size=3", "callbacks.epoch_line.every_seconds=0")
    trainer.train(config(small_root, tmp_path, *options))
    lines = capsys.readouterr().out.splitlines()
    assert f"limited {LEFT_OUT}" in lines
    assert f"drawn-en, test split; {LEFT_OUT}" in lines
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["run"]["limited"] == LEFT_OUT
    assert sum(bool(row["train/loss"]) for row in rows(tmp_path)) == 1
    queries = {split: [row for row in rows(tmp_path) if row[f"{split}/t2i/queries"]] for split in ("val", "test")}
    assert [len(found) for found in queries.values()] == [1, 1]
    assert {found[0][f"{split}/{side}/queries"] for split, found in queries.items() for side in ("t2i", "i2t")} == {
        "6.0",
        "3.0",
    }
    told = [line for line in lines if line.startswith(("epoch 1/1", "validating", "testing"))]
    assert told[0].startswith("epoch 1/1  batch 1/1  loss ")
    assert told[1:4] == [
        "validating  images, batch 1/1",
        *["validating  captions, batch 1/2", "validating  captions, batch 2/2"],
    ]
    assert "val R@1 (of a part) " in told[4]
    assert "  took " in told[4]
    assert "testing  images, batch 1/1" in told

    best = next((tmp_path / "checkpoints").glob("best-*"))
    trainer.test(config(small_root, tmp_path / "again", "task=test", f"ckpt_path={best}", "logger=csv", *options[2:]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"run     {tmp_path / 'again'}",
        f"tests   {best} (after 1 epochs, 1 steps), hybrid_circle on tiny_siglip",
    ]
    assert lines[2].startswith("data    drawn (en): train 24 images")
    assert "testing  captions, batch 1/1" in lines
    assert not any(line.startswith("limited") for line in lines)


def test_a_few_pairs_are_learnt_by_heart(small_root: Path, tmp_path: Path) -> None:
    options = ("debug=overfit", "dataset.overfit_pairs=6", "optimizer.param_groups.default.lr=1e-3", "loss=itc")
    often = "trainer.check_val_every_n_epoch=2"
    metrics = trainer.train(config(small_root, tmp_path, *options, often, small=ANY_METHOD))
    assert metrics["test/t2i/R1"] == metrics["val/t2i/R1"] == 100
    curve = [float(row["val/t2i/R1"]) for row in rows(tmp_path) if row["val/t2i/R1"]]
    assert len(curve) < 150, "training stops when all is learnt"
    assert curve[0] < 100
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    told = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["run"]["limited"]
    assert told == "debug=overfit; trained, validated and tested on the same 6 pairs of train"
