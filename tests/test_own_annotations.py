"""A run on annotations of one's own: what its records say, what it refuses, how it is continued."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import trainer
from data.doctor import main
from tests.small_run import ANY_METHOD, command
from utils.errors import UserError

NO_IDENTITIES = "no identities: each image counts as a person"


@pytest.fixture
def own(small_root: Path, tmp_path: Path) -> list[str]:
    """Overrides that name the drawn images, with one English caption each in a CSV without identities and splits."""
    records = json.loads((small_root / "DRAWN-PEDES" / "data_captions.json").read_text(encoding="utf-8"))
    with (tmp_path / "people.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["file", "caption", "photographer"])
        writer.writerows((r["file_path"], r["en_captions"][0], "a man with a camera") for r in records)
    return [f"dataset.annotations={tmp_path}/people.csv", f"dataset.images={small_root}/DRAWN-PEDES/imgs"]


def run(root: Path, out: Path, *overrides: str) -> dict[str, float]:
    options = (*ANY_METHOD, "loss=itc", "logger=csv", f"dataset_root_dir={root}", f"run_dir={out}")
    with command(*options, *overrides) as cfg:
        return trainer.TASKS[cfg.task](cfg)


def test_every_record_says_that_there_are_no_identities(
    small_root: Path, tmp_path: Path, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(
        small_root,
        out,
        "dataset=custom",
        *own,
        "dataset.sampler=random",
        "trainer.max_epochs=1",
    )
    screen = capsys.readouterr().out
    read_as = "people.csv is read as CSV with semicolons: path 'file', captions 'caption'"
    assert f"; {read_as}; {NO_IDENTITIES}; no splits: the test split is cut by identity (split_seed=0)" in screen
    assert f"custom, test split; {NO_IDENTITIES}" in screen.splitlines()
    record = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (record["run"]["dataset"], record["run"]["identities"]) == ("custom", NO_IDENTITIES)
    assert record["provenance"]["data"]["read_as"][0] == read_as
    assert NO_IDENTITIES in (out / "report.html").read_text(encoding="utf-8")
    last = out / "checkpoints" / "last.ckpt"
    moved = tmp_path / "moved.csv"
    (tmp_path / "people.csv").rename(moved)
    with pytest.raises(UserError, match=r"dataset.annotations: .*people\.csv does not exist"):
        run(small_root, out, f"ckpt_path={last}", "trainer.max_epochs=2")
    run(small_root, out, f"ckpt_path={last}", "trainer.max_epochs=2", f"dataset.annotations={moved}")
    assert "\ndiffers dataset.annotations=" in capsys.readouterr().out


def test_the_identity_sampler_is_refused_without_identities(small_root: Path, tmp_path: Path, own: list[str]) -> None:
    with pytest.raises(UserError, match=r"^dataset\.sampler=identity needs several .*people\.csv has no identities"):
        run(small_root, tmp_path / "run", "dataset=custom", *own, "dataset.sampler=identity", "trainer.max_epochs=1")


def test_a_plan_counts_the_persons_of_the_file(small_root: Path, own: list[str]) -> None:
    from lightning_plan import trace_step

    with command(
        *ANY_METHOD, "loss=sdm", "+loss/term@loss.terms.id=id", "dataset=custom", *own, f"dataset_root_dir={small_root}"
    ) as cfg:
        assert trace_step(cfg, 8).step.total > 0


def test_the_doctor_takes_the_options_of_the_run(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["custom", *own, "--json", "--fast"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["read_as"][1] == NO_IDENTITIES
    assert report["annotation_file"].endswith("people.csv")
    assert (
        report["ids"]["distinct"] == report["ids"]["with_one_image"] == sum(s["ids"] for s in report["splits"].values())
    )
    assert report["further_captions"]["photographer"]["problem"] is None
    assert sum(counts["images"] for counts in report["images"]["folders"].values()) == report["records"]
    assert main(["custom", "--fast", *own, "dataset.columns.captions=photographer"]) == 0
    screen = capsys.readouterr().out
    assert "captions 'photographer'" in screen
    assert NO_IDENTITIES in screen.splitlines()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["dataset.colums.path=file"], r"^dataset\.colums\.path=file: not options of dataset/custom\.yaml"),
        (["people.csv"], r"^people\.csv: not options of dataset/custom\.yaml .*; expected dataset\.KEY=VALUE"),
        ([], r"^dataset=custom needs dataset\.annotations=FILE and dataset\.images=FOLDER"),
    ],
)
def test_the_doctor_names_a_wrong_option(options: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        main(["custom", *options])


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_a_path_that_is_none_is_refused(small_root: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"^dataset\.{key}: 7 given, expected the path of a"):
        run(small_root, tmp_path, "dataset=custom", f"dataset.{key}=7", "trainer.max_epochs=1")
