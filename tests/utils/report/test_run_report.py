"""What a tested run leaves in its folder and on TensorBoard, and that the documented keys are those."""

import json
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.figures import figures
from utils.report import run_report
from utils.report.plots.pictures import RankedImage, RankedQuery, saved
from utils.report.plots.similarity import PairSimilarities, pair_similarities
from utils.report.run_report import RunReport

METRICS = {direction: figures(10, 20, 30, 40, 50, queries=4) for direction in ("t2i", "i2t")}
DRAWN = ("word_maps.jpg", "part_attention.jpg", "tsne.png", "outliers.png")
FACTS = {"strategy": "fmfa", "dataset": "synthetic-en", "val_protocol": "held_out"}


def word_maps(side: int, path: Path) -> Image.Image:
    return saved(Image.new("RGB", (side, side), "red"), path)


@pytest.fixture
def pairs() -> PairSimilarities:
    return pair_similarities(torch.eye(4), torch.eye(4), torch.arange(4), torch.arange(4) // 2)


def test_everything_is_printed_saved_and_logged(
    tmp_path: Path, pairs: PairSimilarities, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 40), "blue").save(photo)
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    run = tmp_path / "run"
    report = RunReport(run, FACTS, [logger], step=7)
    report.metrics(METRICS, pairs)
    report.ranked([RankedQuery("a coat", (RankedImage(photo, 0.5, True),), 1)])
    for drawn in DRAWN:
        report.draw(drawn, word_maps, 8)
    report.close()
    logger.finalize("success")

    formats = {"ranked.jpg": "JPEG", "similarities.png": "PNG"}
    formats |= {drawn: "PNG" if drawn.endswith("png") else "JPEG" for drawn in DRAWN}
    assert {name: Image.open(run / name).format for name in formats} == formats
    assert {path.name for path in run.iterdir()} == {"metrics.json", "metrics.csv", *formats}
    assert json.loads((run / "metrics.json").read_text())["similarity"] == pairs.as_dict()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "synthetic-en, test split"
    assert lines[-1] == f"saved   {run}: metrics.json, similarities.png, ranked.jpg, {', '.join(DRAWN)}"

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {"test/ranked", "test/similarities", *(f"test/{Path(drawn).stem}" for drawn in DRAWN)}
    assert set(events.Tags()["images"]) == shown
    assert {event.step for key in shown for event in events.Images(key)} == {7}
    assert {name: events.Scalars(f"test/similarity/{name}")[0].value for name in pairs.as_dict()} == pytest.approx(
        pairs.as_dict()
    )
    documented = set(re.findall(r"^`(test/\w+)`", str(run_report.__doc__), re.MULTILINE))
    assert documented == shown
