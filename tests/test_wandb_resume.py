"""An offline W&B run, killed in the middle of an epoch and continued: exit status, run id, and what its files hold."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from tests.small_run import SMALL
from tests.wandb_files import of_kind, records, values

ROOT = Path(__file__).parents[1]
SAVED_AFTER, KILLED_AFTER = 2, 3  # of the six steps of an epoch
OVERRIDES = (
    *SMALL,
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=1",
    f"callbacks.last.every_n_steps={SAVED_AFTER}",
    "logger=wandb",
)
STARTS_AND_CONTINUES = f"""
import os, runpy, signal, sys
from pathlib import Path
import lightning_data, lightning_models  # the slow imports, once for all processes
from utils.checkpoints.callback import Checkpoints

def status_of(work, *arguments):
    child = os.fork()
    if not child:
        work(*arguments)
        sys.exit()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def trainer(*arguments):
    sys.argv = ["trainer.py", *arguments]
    runpy.run_path("trainer.py", run_name="__main__")

def goes_on_or_dies(self, trainer, *rest):
    if trainer.global_step == {KILLED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)
    goes_on(self, trainer, *rest)

arguments = sys.argv[1:]
assert "wandb" not in sys.modules
goes_on, Checkpoints.on_train_batch_start = Checkpoints.on_train_batch_start, goes_on_or_dies
killed = status_of(trainer, *arguments)
Checkpoints.on_train_batch_start = goes_on
continued = status_of(trainer, *arguments, "ckpt_path=last")
print("statuses", killed, continued)
"""


@dataclass(frozen=True)
class Continued:
    """A run that was killed and continued: its folder, what it said, the W&B id of each start, and what W&B holds."""

    folder: Path
    stdout: str
    stderr: str
    ids: list[str]
    records: list[Any]

    def of_kind(self, kind: str) -> list[Any]:
        return of_kind(kind, self.records)


@pytest.fixture(scope="module")
def run(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    """Started where the calling process has a W&B service of its own, which both starts inherit."""
    out, home = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("home")
    arguments = [*OVERRIDES, f"dataset_root_dir={small_root}", f"output_dir={out}"]
    with wandb.init(mode="offline", dir=home, settings=wandb.Settings(silent=True)):
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_DATA_DIR"}
        environment |= {"WANDB_MODE": "offline", "HOME": str(home), "XDG_DATA_HOME": str(home)}
        assert "WANDB_SERVICE" in environment
        options: Any = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
        process = subprocess.run([sys.executable, "-c", STARTS_AND_CONTINUES, *arguments], **options)
    wandb.teardown()
    assert process.returncode == 0, process.stderr
    [folder] = out.glob("*/*")
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    ids = [file.stem.removeprefix("run-") for file in files]
    return Continued(folder, process.stdout, process.stderr, ids, records(files[-1]))


def test_it_ends_well_under_the_same_run_id(run: Continued) -> None:
    assert f"statuses {-signal.SIGKILL} 0" in run.stdout, run.stderr
    assert "Traceback" not in run.stderr
    assert run.ids == 2 * [(run.folder / "wandb_run_id").read_text(encoding="utf-8")]
    [end] = run.of_kind("exit")
    assert end.exit_code == 0
    steps = [values(row.item)["trainer/global_step"] for row in run.of_kind("history")]
    assert steps[0] == SAVED_AFTER, "the step that follows the last checkpoint, in the middle of the epoch"
    assert steps == sorted(steps)
    assert (run.folder / "metrics.json").exists()


def test_it_groups_itself_on_a_dashboard(run: Continued) -> None:
    [start] = run.of_kind("run")
    facts = {
        "strategy": "hybrid_circle",
        "dataset": "drawn-en",
        "backbone": "tiny_siglip",
        "lora": "full",
        "seed": 42,
    }
    config = values(start.config.update)
    assert config["run"].items() >= facts.items()
    assert config["loss"]["terms"]["cross_modal_circle"]["weight"] > 0
    assert config["img_size"] == [64, 32]
    made_with = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    for key in ("code", "command", "options", "versions", "data", "continued"):
        assert config["provenance"][key] == made_with[key]
    assert made_with["continued"]["step"] == SAVED_AFTER
    later = values(run.of_kind("config")[-1].update)
    assert later["provenance"]["training"] == made_with["training"]
    assert made_with["training"]["images"] == 48
    assert set(start.tags) == {f"{name}:{value}" for name, value in facts.items()}
    assert (start.project, start.job_type) == ("tbps", "train")
    assert start.run_group.startswith("hybrid_circle-drawn-en-tiny_siglip-full dataset.batch_size=8 dataset.num_i")
    assert start.display_name.startswith("hybrid_circle-drawn-en-tiny_siglip-full-s42 dataset.batch_size=8 ")


def test_every_figure_is_there_over_the_optimizer_step(run: Continued) -> None:
    history = [values(row.item) for row in run.of_kind("history")]
    metrics = {f"{d}/{m}" for d in ("t2i", "i2t") for m in ("R1", "R5", "R10", "mAP", "mINP")}
    terms = ("nitc", "cross_modal_circle", "citc", "simclr")
    expected = {f"train/{kind}/{term}" for kind in ("loss", "weighted") for term in terms}
    expected |= {"lr/default", "train/loss", "train/grad_norm", "train/logit_scale", "train/logit_bias"}
    expected |= {"throughput/images_per_s", "memory/peak_gib"}
    expected |= {f"{split}/{metric}" for split in ("val", "test") for metric in metrics}
    expected |= {"test/ranked/nrows", "test/similarities/filenames"}
    expected |= {f"test/similarity/{name}" for name in ("same_mean", "other_mean", "overlap")}
    assert expected <= {name for row in history for name in row}
    assert all("trainer/global_step" in row for row in history)

    defined = {metric.name or metric.glob_name: metric for metric in run.of_kind("metric")}
    assert defined["*"].step_metric == "trainer/global_step"
    assert all(defined[f"val/{metric}"].summary.max for metric in metrics)
    summary = {k: v for change in run.of_kind("summary") for k, v in values(change.update).items()}
    [validated] = [row["val/t2i/R1"] for row in history if "val/t2i/R1" in row]
    assert summary["val/t2i/R1"] == {"max": validated, "last": validated}


def test_pictures_lie_in_the_runs_folder(run: Continued) -> None:
    history = [values(row.item) for row in run.of_kind("history")]
    [[picture]] = [row["test/similarities/filenames"] for row in history if "test/similarities/filenames" in row]
    [file] = run.folder.glob(f"wandb/offline-run-*/files/{picture}")
    with Image.open(file) as logged, Image.open(run.folder / "similarities.png") as saved:
        assert logged.convert("RGB").tobytes() == saved.tobytes()


def test_the_table_of_queries_lies_with_its_images_in_the_runs_folder(run: Continued) -> None:
    [table] = run.of_kind("artifact")
    entries = {entry.path: Path(entry.local_path) for entry in table.manifest.contents}
    assert all(path.is_relative_to(run.folder.resolve()) for path in entries.values())
    content = json.loads(entries["test/ranked.table.json"].read_text(encoding="utf-8"))
    ranks = [f"rank {i}" for i in range(1, 9)]  # as many as the gallery has images
    assert content["columns"] == ["caption", "right in top 8", "true images", *ranks]
    for caption, right, true_images, *images in content["data"]:
        marks = [image["caption"].split()[0] for image in images]
        assert set(marks) <= {"✓", "✗"}
        assert (marks.count("✓"), true_images) == (right, 2)
        assert caption
        assert all(entries[image["path"]].read_bytes().startswith(b"\x89PNG") for image in images)
