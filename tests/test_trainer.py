"""The whole path on a small drawn dataset: train, resume, test, refuse."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

import trainer
from tests.forked import run_python
from tests.model.openai_clip import PATCH, TEXT_WIDTH, WIDTH, Rde
from tests.small_run import ANY_METHOD, CONFIG_DIR, SMALL
from tests.small_run import command as command_line
from utils.checkpoints.weights import read_checkpoint
from utils.errors import UserError
from utils.report.comparison import compare_runs

ROOT = Path(__file__).parents[1]
LOGGED = ("logger=csv", "trainer.log_every_n_steps=2")


def config(root: Path, out: Path, *overrides: str, small: tuple[str, ...] = SMALL) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("demo", overrides=[*small, *LOGGED, f"dataset_root_dir={root}", f"run_dir={out}", *overrides])


def steps(out: Path) -> list[dict[str, str]]:
    with (out / "logs" / "steps.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of two epochs with the default strategy: its folder and what `train` returned."""
    out = tmp_path_factory.mktemp("run")
    return out, trainer.train(config(small_root, out, "trainer.max_epochs=2"))


def test_train_returns_and_saves_both_splits(trained: tuple[Path, dict[str, float]]) -> None:
    out, metrics = trained
    names = {
        f"{s}/{d}/{m}" for s in ("val", "test") for d in ("t2i", "i2t") for m in ("R1", "R5", "R10", "mAP", "mINP")
    }
    assert set(metrics) == names
    assert all(0 <= value <= 100 for value in metrics.values())
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["metrics"]["t2i"]["R1"] == metrics["test/t2i/R1"]
    assert saved["run"]["strategy"] == "hybrid_circle"
    assert saved["run"]["val_protocol"] == "held_out"
    last = steps(out)[-1]
    assert saved["similarity"] == {
        n: float(last[f"test/similarity/{n}"]) for n in ("same_mean", "other_mean", "overlap")
    }
    assert {file.name for file in out.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "ranked.jpg",
        "similarities.png",
        "checkpoints",
        "logs",
    }
    names = {file.name for file in (out / "checkpoints").iterdir()}
    assert "last.ckpt" in names
    assert any(name.startswith("best-") for name in names)


def test_every_term_is_logged_raw_and_weighted(trained: tuple[Path, dict[str, float]]) -> None:
    rows = steps(trained[0])
    logged = {key for row in rows for key, value in row.items() if value}
    for term in ("nitc", "cross_modal_circle", "citc", "simclr"):
        assert {f"train/loss/{term}", f"train/weighted/{term}"} <= logged
    assert {"train/grad_norm", "train/logit_scale", "train/logit_bias", "lr/default"} <= logged
    assert {f"test/similarity/{name}" for name in ("same_mean", "other_mean", "overlap")} <= logged
    assert {"val/t2i/R1", "val/i2t/mINP", "throughput/images_per_s", "memory/peak_gib"} <= logged
    row = next(row for row in rows if row["train/loss/simclr"])
    assert float(row["train/weighted/simclr"]) == pytest.approx(0.4 * float(row["train/loss/simclr"]), rel=1e-4)


def test_the_validation_curve_has_one_point_an_epoch_though_the_best_checkpoint_is_validated_again(
    trained: tuple[Path, dict[str, float]],
) -> None:
    out, metrics = trained
    curve = [(int(row["epoch"]), float(row["val/t2i/R1"])) for row in steps(out) if row["val/t2i/R1"]]
    assert [epoch for epoch, _ in curve] == [0, 1]
    assert metrics["val/t2i/R1"] == pytest.approx(max(value for _, value in curve))


def test_a_checkpoint_is_tested_on_another_dataset_by_its_own_config(
    trained: tuple[Path, dict[str, float]], small_root: Path, tmp_path: Path
) -> None:
    out, metrics = trained
    best = next((out / "checkpoints").glob("best-*"))
    common = ("task=test", f"ckpt_path={best}")
    again = trainer.test(config(small_root, tmp_path / "same", *common, "seed=7", "loss=baseline"))
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert json.loads((tmp_path / "same" / "metrics.json").read_text())["run"]["strategy"] == "hybrid_circle"
    vietnamese = trainer.test(config(small_root, tmp_path / "vi", *common, "dataset.language=vi"))
    assert set(vietnamese) == set(again)
    records = [json.loads((tmp_path / name / "metrics.json").read_text())["provenance"] for name in ("same", "vi")]
    facts = {"trained_on": "drawn-en", "shares_images": True}
    assert all(record["tested"] | facts == record["tested"] for record in records)
    table = str(compare_runs([out / "metrics.json", tmp_path / "vi" / "metrics.json"])).splitlines()
    matrix = table[next(row for row, line in enumerate(table) if "t2i R1: trained on" in line) :]
    assert [cell.strip() for cell in matrix[0].split("|")[2:-1]] == ["drawn-en", "drawn-vi"]
    shown = [f"{metrics['test/t2i/R1']:.2f}", f"{vietnamese['test/t2i/R1']:.2f} °"]
    assert [cell.strip() for cell in matrix[2].split("|")[1:-1]] == ["drawn-en", *shown]
    assert "° training and test have images of the same collection" in table


def test_a_backbone_is_tested_as_it_is(small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "published_checkpoints"
    shutil.copytree(small_root / "tiny_clip_checkpoints", folder)
    save_file({"id.classifier.weight": torch.zeros(11_003, 128)}, folder / "heads.safetensors")
    overrides = ("task=test", "backbone=tiny_clip", f"backbone.folder={folder}")
    metrics = trainer.test(config(small_root, tmp_path / "run", *overrides))
    assert metrics["test/t2i/mAP"] > 0
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert saved["run"]["strategy"] == "published_checkpoints"
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == [f"note    {folder} was trained on 11,003 identities, this dataset has 12: ranking needs neither"]


def test_published_weights_are_tested_by_one_command(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_root / "DRAWN-PEDES", root / "DRAWN-PEDES")
    (root / "clip_checkpoints").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_root / "tiny_clip_checkpoints" / file, root / "clip_checkpoints")
    torch.manual_seed(0)
    state = Rde(patches=48).state_dict()
    state["base_model.token_embedding.weight"] = torch.randn(2000, TEXT_WIDTH)
    torch.save({"model": state}, tmp_path / "best.pth")

    overrides = (
        *("task=test", "dataset=drawn", f"backbone.folder={tmp_path / 'best.pth'}", "img_size_str=48x16"),
        *("backbone.max_length=12", "shown_queries=2", "dataset.num_workers=0", "logger=csv"),
        f"dataset_root_dir={root}",
        f"backbone.description.architecture.vision_config={{hidden_size:{WIDTH},patch_size:{PATCH}}}",
        f"backbone.description.architecture.text_config={{hidden_size:{TEXT_WIDTH},vocab_size:2000}}",
    )
    first, again, half = (tmp_path / name for name in ("first", "again", "half"))
    found = []
    for out, own in ((first, ()), (again, ()), (half, ("evaluation.precision=16-mixed",))):
        with command_line(*overrides, f"run_dir={out}", *own, name="clip") as cfg:
            found.append(trainer.test(cfg))
    assert found[0] == found[1]
    [folder] = tmp_path.glob("best-*_checkpoints")
    records = [json.loads((out / "metrics.json").read_text()) for out in (first, again, half)]
    assert {record["run"]["strategy"] for record in records} == {folder.name}
    assert records[0]["provenance"]["options"] == records[1]["provenance"]["options"]
    out = capsys.readouterr().out
    assert out.count("what became of it") == 1, "converted once"
    assert out.count(f"tests   {folder} as it is on clip") == 3
    encoded = re.findall(
        r"^ranks   images and captions are encoded in (\S+); trainer.precision is bf16-mixed", out, re.M
    )
    assert encoded == ["32-true", "32-true", "16-mixed"]
    assert "note    RDE's published ranking adds the cosine of its token-selection heads" in out


def test_the_checkpoint_holds_the_config_and_loads_without_code(
    trained: tuple[Path, dict[str, float]],
) -> None:
    checkpoint = read_checkpoint(trained[0] / "checkpoints" / "last.ckpt")
    assert checkpoint["config"]["loss"]["name"] == "hybrid_circle"
    assert checkpoint["config"]["img_size"] == [64, 32]
    assert any(name.startswith("objective.terms.simclr.") for name in checkpoint["state_dict"])


@pytest.mark.parametrize("strategy", ["baseline", "in_modal_circle", "nc_itc", "pure_circle", "tbps_clip"])
def test_every_strategy_trains_on_the_same_path(strategy: str, small_root: Path, tmp_path: Path) -> None:
    metrics = trainer.train(config(small_root, tmp_path, f"loss={strategy}", "trainer.max_epochs=1"))
    assert metrics["test/t2i/mAP"] > 0


@pytest.mark.parametrize("method", ["irra", "fmfa"])
def test_methods_with_masked_words_train_and_are_tested_from_their_checkpoint(
    method: str, small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method_of = partial(config, small_root, small=ANY_METHOD)
    overrides = (f"experiment={method}", "backbone=tiny_clip")
    metrics = trainer.train(method_of(tmp_path, *overrides))
    assert (tmp_path / "word_maps.jpg").is_file() == (method == "fmfa")
    drawn = ["ranked.jpg", "similarities.png", "report.html"]
    drawn += ["word_maps.jpg"] if method == "fmfa" else []
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("saved ")]
    assert set(line.removeprefix(f"saved   {tmp_path}: ").split(", ")) == {"metrics.json", "ranks.npz", *drawn}
    logged = {key for row in steps(tmp_path) for key, value in row.items() if value}
    assert {"train/stat/mlm/accuracy", "train/stat/id/image_accuracy"} <= logged
    assert ("train/stat/a_sdm/mean_weight" in logged) == (method == "fmfa")
    best = next((tmp_path / "checkpoints").glob("best-*"))
    again = trainer.test(method_of(tmp_path / "test", *overrides, "task=test", f"ckpt_path={best}"))
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}


def test_a_published_mlm_head_brings_its_mask_token_and_padding_and_trains_under_the_released_forms(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "published_checkpoints"
    shutil.copytree(small_root / "tiny_clip_checkpoints", folder)
    weights = load_file(folder / "model.safetensors")
    rows = len(weights["text_model.embeddings.token_embedding.weight"])
    save_file({"mlm.head.scores.bias": torch.zeros(rows)}, folder / "heads.safetensors")
    forms = ("loss.terms.a_sdm.form=released", "loss.terms.efa.form=released")
    overrides = ("experiment=fmfa", "backbone=tiny_clip", f"backbone.folder={folder}", *forms, "trainer.max_epochs=1")
    trainer.train(config(small_root, tmp_path / "run", *overrides, small=ANY_METHOD))
    said = capsys.readouterr().out
    assert "heads.safetensors; words attend to padding, as they did there" in said
    assert "no mask token" not in said
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert [len(value) for name, value in last.items() if name.endswith("token_embedding.weight")] == [rows]


@pytest.mark.parametrize(
    ("backbone", "head"), [("tiny_clip", "part"), ("tiny_resnet_bert", "part"), ("tiny_siglip", "part_baseline")]
)
def test_the_part_head_trains_shows_what_it_looks_at_and_is_tested_from_its_checkpoint(
    backbone: str, head: str, small_root: Path, tmp_path: Path
) -> None:
    method_of = partial(config, small_root, small=ANY_METHOD)
    overrides = ("experiment=part_cmr", f"backbone={backbone}", f"head={head}", "trainer.max_epochs=1")
    metrics = trainer.train(method_of(tmp_path, *overrides))
    assert (tmp_path / "part_attention.jpg").is_file() == (head == "part")
    logged = {key for row in steps(tmp_path) for key, value in row.items() if value}
    assert {"train/loss/id", "train/loss/ranking", "train/loss/cmr"} <= logged
    common_parts = {f"train/stat/cmr/{m}_commonality_fine_{n}" for m in ("image", "text") for n in (1, 2, 3, 4)}
    assert logged & common_parts == (common_parts if head == "part" else set())
    best = next((tmp_path / "checkpoints").glob("best-*"))
    again = trainer.test(method_of(tmp_path / "test", *overrides, "task=test", f"ckpt_path={best}"))
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}
    saved = {name for name in read_checkpoint(best)["state_dict"] if name.startswith("encoder.")}
    assert any(name.startswith("encoder.head.") for name in saved) == (head == "part")
    assert any("text_model.encoder" in name for name in saved) == (backbone != "tiny_resnet_bert")  # BERT is frozen


def test_cmr_without_a_part_head_does_not_start(small_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss.terms.cmr needs 'parts', which this run lacks: set head=part"):
        trainer.train(config(small_root, tmp_path, "+loss/term@loss.terms.cmr=cmr", "+loss/term@loss.terms.id=id"))


@pytest.mark.parametrize("lora", ["default", "dora"])
def test_lora_saves_what_it_trains_and_reloads(lora: str, small_root: Path, tmp_path: Path) -> None:
    overrides = (
        f"lora={lora}",
        "backbone=tiny_clip",
        "trainer.max_epochs=1",
        "backbone.gradient_checkpointing=true",
    )
    metrics = trainer.train(config(small_root, tmp_path / "run", *overrides))
    best = next((tmp_path / "run" / "checkpoints").glob("best-*"))
    saved = read_checkpoint(best)["state_dict"]
    assert all("lora_" in name or "logit_scale" in name for name in saved if name.startswith("encoder."))
    again = trainer.test(config(small_root, tmp_path / "test", "task=test", f"ckpt_path={best}"))
    assert again["test/t2i/mAP"] == metrics["test/t2i/mAP"]
    adapters = load_file(tmp_path / "run" / "adapters" / "adapter_model.safetensors")
    trained = {name: tensor for name, tensor in saved.items() if "lora_" in name}
    assert len(adapters) == len(trained) > 0
    assert any(name.endswith(".lora_magnitude_vector") for name in adapters) == (lora == "dora")
    for name, tensor in adapters.items():
        own = f"{name.removesuffix('.weight')}.default.weight"
        assert torch.equal(tensor, next(value for key, value in trained.items() if key.endswith(own)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.limit_val_batches=0", r"trainer\.limit_val_batches: 0 given"),
        ("dataset.batch_size=7", r"dataset\.num_instance=2 does not divide dataset\.batch_size=7"),
        ("dataset.batch_size=40", r"needs 20 persons in a batch, but the training set has 12"),
        ("dataset.num_workers=-1", r"dataset\.num_workers: -1 given"),
        ("scheduler.warmup_epochs=-1", r"scheduler: expected warmup_epochs of at least 0"),
        ("optimizer.algorithm=sgd", r"there is no algorithm 'sgd'"),
        ("trainer.precision=half", r"Precision 'half' is invalid"),
        ("evaluation.plots.ranked._target_=utils.nothing.ranked", r"Error locating target 'utils\.nothing\.ranked'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_logger_starts(
    override: str, message: str, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_run.build_loggers", lambda *_: pytest.fail("W&B would have begun a run"))
    with pytest.raises((UserError, InstantiationException), match=message):
        trainer.train(config(small_root, tmp_path / "run", override))


def test_a_broken_image_is_found_before_a_logger_starts(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_root / "DRAWN-PEDES", tmp_path / "DRAWN-PEDES")
    next((tmp_path / "DRAWN-PEDES" / "imgs").glob("*.jpg")).write_bytes(b"no image")
    monkeypatch.setattr("lightning_run.build_loggers", lambda *_: pytest.fail("W&B would have begun a run"))
    backbone = f"backbone.folder={small_root / 'tiny_siglip_checkpoints'}"
    with pytest.raises(UserError, match="imgs"):
        trainer.train(config(tmp_path, tmp_path / "run", backbone))


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]


def command(root: Path, out: Path, *overrides: str) -> list[str]:
    arguments = [*SMALL, *LOGGED, f"dataset_root_dir={root}", f"output_dir={out}", "trainer.max_epochs=3", *overrides]
    return [str(ROOT / "trainer.py"), *arguments]


def test_killed_in_the_middle_of_an_epoch_and_continued_is_bit_identical(small_root: Path, tmp_path: Path) -> None:
    """The commands themselves, with loading processes; tests/test_kills.py kills runs that load by themselves."""
    overrides = (
        "dataset.num_workers=2",
        "callbacks.last.every_n_steps=2",
        "trainer.accumulate_grad_batches=2",
        "trainer.enable_model_summary=false",
        "lora=dora",  # its dropout draws from the random state of the step
    )
    straight = tmp_path / "straight"
    trainer.train(config(small_root, straight, "trainer.max_epochs=3", *overrides))

    line = [sys.executable, *command(small_root, tmp_path / "killed", *overrides)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (found := list((tmp_path / "killed").rglob("last.ckpt"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert found, "no checkpoint before the deadline"
    loops: Any = read_checkpoint(found[0])["loops"]["fit_loop"]
    done = loops["epoch_loop.batch_progress"]["current"]["completed"]
    continued = run_python(*command(small_root, tmp_path / "killed", *overrides, "ckpt_path=last"))
    assert continued.returncode == 0, continued.stderr

    runs = list((tmp_path / "killed").glob("*/*"))
    assert len(runs) == 1, "the continued run has to stay in its folder"
    expected, continued = last_weights(straight), last_weights(runs[0])
    assert expected.keys() == continued.keys()
    assert all(torch.equal(expected[name], continued[name]) for name in expected)
    assert done > 0


def test_cached_gradients_train_to_the_weights_of_the_plain_step(small_root: Path, tmp_path: Path) -> None:
    overrides = (
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "optimizer.algorithm=adamw",  # Muon's steps have one size for every gradient, for that of rounding too
        "optimizer.param_groups.default.eps=1e-3",  # so has Adam's, without this
    )
    for micro_batch in ("null", "3"):
        trainer.train(config(small_root, tmp_path / micro_batch, *overrides, f"grad_cache.micro_batch={micro_batch}"))
    expected, found = last_weights(tmp_path / "null"), last_weights(tmp_path / "3")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    assert any(not torch.equal(found[name], expected[name]) for name in expected), "the same path was taken twice"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("grad_cache.micro_batch=0",), r"grad_cache\.micro_batch: 0 given, expected at least 1"),
        (("grad_cache.micro_batch=4", "+loss/term@loss.terms.words=mlm"), r"loss\.terms\.words reads tokens"),
    ],
)
def test_a_micro_batch_that_cannot_be_is_refused(
    overrides: tuple[str, ...], message: str, small_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer.train(config(small_root, tmp_path, *overrides))


def test_a_missing_checkpoint_folder_names_the_command(small_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip_checkpoints does not exist; run 'uv run prepare_checkpoints.py clip'"):
        trainer.train(config(small_root, tmp_path, "backbone=clip", "img_size_str=32x16"))


def test_a_checkpoint_of_another_architecture_is_refused(
    trained: tuple[Path, dict[str, float]], small_root: Path, tmp_path: Path
) -> None:
    last = trained[0] / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"^backbone\.name=tiny_clip: .* was trained with tiny_siglip "):
        trainer.train(config(small_root, tmp_path, f"ckpt_path={last}", "backbone=tiny_clip"))
    with pytest.raises(UserError, match=r"^img_size=\[32, 32\]: .* was trained with \[64, 32\] "):
        trainer.train(config(small_root, tmp_path, f"ckpt_path={last}", "img_size_str=32x32"))
    checkpoint = read_checkpoint(last)
    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"is of another architecture: missing tensors: 1, the first"):
        trainer.train(config(small_root, tmp_path / "x", f"ckpt_path={tmp_path}/last.ckpt", "trainer.max_epochs=3"))


def test_a_loss_that_becomes_nan_stops_with_term_and_step(small_root: Path, tmp_path: Path) -> None:
    overrides = ("optimizer.param_groups.default.lr=1e12", "optimizer.param_groups.default.lr_start=1e12")
    with pytest.raises(UserError) as caught:
        trainer.train(config(small_root, tmp_path / "clipped", *overrides))
    assert re.fullmatch(
        r"loss term '\w+' became (nan|-?inf) at step [1-5] \(epoch 1\): lower optimizer.param_groups.default.lr; "
        "there is no checkpoint from before",
        str(caught.value),
    )
    out = tmp_path / "saved"
    saving = ("callbacks.last.every_n_steps=1", "trainer.gradient_clip_val=null", "trainer.precision=bf16-mixed")
    with pytest.raises(UserError) as caught:
        trainer.train(config(small_root, out, *overrides, *saving))
    assert re.fullmatch(
        r".*: lower optimizer.param_groups.default.lr or clip gradients with trainer.gradient_clip_val=1.0 or rule out "
        rf"AMP with trainer.precision=32-true; {out}/checkpoints/last.ckpt is from before",
        str(caught.value),
    )
    step = int(re.findall(r"at step (\d+)", str(caught.value))[0])
    assert read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] == step, "steps are counted as in the logs"
