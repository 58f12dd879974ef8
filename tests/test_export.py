"""task=export: what a run leaves for other programs, and what each format costs on the test split."""

import json
from pathlib import Path

import pytest
import torch

import trainer
from data.loading.chosen import chosen_dataset
from encoder_loading import load_encoder
from model.export.onnx_towers import PACKAGES
from tests.small_run import ANY_METHOD, command
from utils.errors import UserError

METHOD = (*ANY_METHOD, "trainer.max_epochs=1", "logger=csv")


def run(task: str, root: Path, out: Path, *overrides: str) -> dict[str, float]:
    with command(*METHOD, f"task={task}", f"dataset_root_dir={root}", f"run_dir={out}", *overrides) as cfg:
        return trainer.TASKS[task](cfg)


def best_of(out: Path) -> Path:
    return next((out / "checkpoints").glob("best-*"))


def test_full_fine_tuning_leaves_a_folder_that_gives_the_result_of_the_run(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("backbone=tiny_clip", "head=part", "head.fine=2")
    metrics = run("train", small_root, tmp_path / "run", *options, "loss=itc", "lora=none")
    hub = tmp_path / "run" / "hub"
    assert f"model   {hub}" in capsys.readouterr().out
    card = (hub / "README.md").read_text(encoding="utf-8")
    assert f"| t2i | {metrics['test/t2i/R1']:.2f} |" in card
    assert "`from_pretrained` alone gives the global embedding" in card
    assert "backbone=tiny_clip backbone.folder=THIS_FOLDER" in card
    assert "head=part head.coarse=4 head.fine=2" in card
    again = run("test", small_root, tmp_path / "again", *options, f"backbone.folder={hub}")
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}


def test_onnx_ranks_as_the_run_and_8_bits_say_what_they_cost(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in PACKAGES:
        pytest.importorskip(package)
    metrics = run("train", small_root, tmp_path / "run", "backbone=tiny_siglip", "loss=itc", "lora=default")
    assert not (tmp_path / "run" / "hub").exists(), "LoRA leaves adapters"
    best, out = best_of(tmp_path / "run"), tmp_path / "out"
    capsys.readouterr()
    figures = run("export", small_root, out, f"ckpt_path={best}")
    record = json.loads((out / "export.json").read_text(encoding="utf-8"))
    test, exact, small = record["test"], record["test"]["onnx"], record["test"]["onnx_int8"]
    assert exact["cosine_min"] >= 0.9999
    assert exact["same_ten_best"] == 1
    for name in ("pytorch", "onnx"):
        assert {direction: test[name][direction] for direction in ("t2i", "i2t")} == {
            direction: {key: pytest.approx(metrics[f"test/{direction}/{key}"]) for key in test["onnx"]["t2i"]}
            for direction in ("t2i", "i2t")
        }
    assert figures["export/onnx/t2i/R1"] == exact["t2i"]["R1"]
    assert small["cosine_mean"] > 0.9
    assert small["bytes"] < 0.7 * exact["bytes"]
    assert {"image_ms", "caption_ms"} <= small.keys()
    assert record["onnx"] | {"opset": 18, "size": [64, 32]} == record["onnx"]
    assert (out / "onnx" / "tokenizer.json").is_file()
    printed = capsys.readouterr().out
    assert "drawn-en, test split: 8 images" in printed
    assert "onnx_int8" in printed

    merged, with_adapters = load_encoder(out / "hub"), load_encoder(best)
    with command(f"dataset_root_dir={small_root}") as cfg:
        records = chosen_dataset(cfg, ["test"]).test
    sentences = [caption for record in records for caption in record.captions]
    pixels = torch.stack([with_adapters.read(record.image_path.read_bytes()) for record in records])
    assert merged.resize == with_adapters.resize
    torch.testing.assert_close(merged.texts(sentences), with_adapters.texts(sentences), atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.images(pixels), with_adapters.images(pixels), atol=1e-6, rtol=0)


def test_a_backbone_itself_is_exported_without_its_dataset(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_root / "tiny_siglip_checkpoints"
    places = (f"backbone.folder={folder}", "export.formats=hub")
    assert run("export", tmp_path / "elsewhere", tmp_path / "out", *places) == {}
    assert json.loads((tmp_path / "out" / "export.json").read_text())["formats"] == ["hub"]
    assert not (tmp_path / "elsewhere").exists()
    card = (tmp_path / "out" / "hub" / "README.md").read_text(encoding="utf-8")
    assert "was not tested" in card


def test_an_unknown_format_is_named(small_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export.formats=onx is unknown; expected hub or onnx or onnx_int8"):
        run("export", small_root, tmp_path / "out", "export.formats=[onx]")
