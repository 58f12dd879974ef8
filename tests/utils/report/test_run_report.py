"""What a tested run leaves in its folder and on TensorBoard, and that the documented keys are those."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.figures import figures
from utils.ranking.changes import Changed
from utils.ranking.k_reciprocal import KReciprocal
from utils.ranking.metrics import measure
from utils.ranking.positives import load_ranks
from utils.ranking.rerank import rerank
from utils.ranking.retrieval import Retrieval
from utils.report import run_report
from utils.report.plots.figure import new_figure
from utils.report.plots.pictures import Picture, ranked
from utils.report.plots.robustness import robustness
from utils.report.plots.similarity import similarities
from utils.report.run_report import RunReport
from utils.report.tested import Tested as FoundByTest  # pytest would collect a name that begins with Test

METRICS = {direction: figures(10, 20, 30, 40, 50, queries=4) for direction in ("t2i", "i2t")}
DRAWN = ("word_maps.jpg", "part_attention.jpg", "tsne.png", "robustness.png", "outliers.png")
RUN = {"strategy": "fmfa", "dataset": "drawn-en", "val_protocol": "held_out", "backbone": "tiny_clip"}
RUN |= {"lora": "full", "seed": "1", "variant": "", "limited": "", "noise": ""}


def word_maps(tested: FoundByTest) -> Picture:
    return Picture(new_figure(0.2))


def in_words(tested: FoundByTest) -> Picture:
    return Picture(new_figure(0.2), ".jpg")


@pytest.fixture
def tested(tmp_path: Path) -> FoundByTest:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 40), "blue").save(photo)
    pids = torch.arange(4) // 2
    retrieval = Retrieval(torch.eye(4), pids, torch.eye(4), pids, ["a coat"] * 4, [photo] * 4)
    return FoundByTest(RUN, retrieval, retrieval.ranks(), METRICS, shown_queries=1)


def test_everything_is_printed_saved_and_logged(
    tmp_path: Path, tested: FoundByTest, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    run, pairs = tmp_path / "run", tested.pairs
    report = RunReport(run, [logger], step=7)
    report.save(tested)
    report.show(tested)
    report.draw("similarities", similarities, tested)
    report.draw("ranked", ranked, tested)
    for drawn in map(Path, DRAWN):
        report.draw(drawn.stem, word_maps if drawn.suffix == ".png" else in_words, tested)
    report.draw("nothing", lambda tested: None, tested)
    report.page(tested)
    report.close()
    logger.finalize("success")

    formats = {"ranked.jpg": "JPEG", "similarities.png": "PNG"}
    formats |= {drawn: "PNG" if drawn.endswith("png") else "JPEG" for drawn in DRAWN}
    assert {name: Image.open(run / name).format for name in formats} == formats
    assert {path.name for path in run.iterdir()} == {
        "metrics.json",
        "metrics.csv",
        "ranks.npz",
        "report.html",
        *formats,
    }
    assert json.loads((run / "metrics.json").read_text())["similarity"] == pairs.as_dict()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "drawn-en, test split"
    assert (
        lines[-1]
        == f"saved   {run}: metrics.json, ranks.npz, similarities.png, ranked.jpg, {', '.join(DRAWN)}, report.html"
    )

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {"test/ranked", "test/similarities", *(f"test/{Path(drawn).stem}" for drawn in DRAWN)}
    assert set(events.Tags()["images"]) == shown
    assert {event.step for key in shown for event in events.Images(key)} == {7}
    assert {name: events.Scalars(f"test/similarity/{name}")[0].value for name in pairs.as_dict()} == pytest.approx(
        pairs.as_dict()
    )
    documented = set(re.findall(r"^`(test/\w+)`", str(run_report.__doc__), re.MULTILINE))
    assert documented == shown | {"test/report"}


def test_a_reranked_test_stands_beside_the_plain_one(
    tmp_path: Path, tested: FoundByTest, capsys: pytest.CaptureFixture[str]
) -> None:
    again = rerank(tested.retrieval, tested.ranks["t2i"], KReciprocal(top=3, k1=2, k2=1))
    report = RunReport(tmp_path / "run", [], step=0)
    tested.reranked = again
    report.save(tested)
    report.show(tested)
    table = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert table == ["Task", "t2i", "i2t", "t2i, k_reciprocal"]
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(saved["metrics"]) == ["t2i", "i2t"]
    assert saved["reranked"]["t2i"] == again.metrics.as_row()
    assert saved["reranked"]["options"] == {"top": 3, "k1": 2, "k2": 1, "lambda": 0.3}
    assert saved["reranked"]["seconds"] >= 0
    ranks = load_ranks(tmp_path / "run" / "ranks.npz")
    assert list(ranks) == ["t2i", "i2t", "t2i_k_reciprocal"]
    assert measure(ranks["t2i_k_reciprocal"][0]) == again.metrics


CHANGED = [
    Changed("drop_words", level, {d: figures(value) for d in METRICS}) for level, value in (("0.1", 9), ("0.5", 4))
]
CHANGED.append(Changed("caption length", "3 to 5 words", {"t2i": figures(7)}))


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_each_picture_is_also_saved_as_vectors_with_text_one_column_wide(
    tmp_path: Path, tested: FoundByTest, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = RunReport(tmp_path, [], step=0, vector=kind)
    tested.changed = CHANGED
    shown = {"similarities": (similarities, "overlap"), "ranked": (ranked, "a coat"), "robustness": (robustness, "3-5")}
    for name, (plot, _) in shown.items():
        report.draw(name, plot, tested)
    report.close()
    assert re.findall(r"\w+\.\w+", capsys.readouterr().out.rpartition(": ")[2]) == [
        file for name, suffix in (("similarities", "png"), ("ranked", "jpg"), ("robustness", "png"))
        for file in (f"{name}.{suffix}", f"{name}.{kind}")
    ]  # fmt: skip
    for name, (_, words) in shown.items():
        file = (tmp_path / f"{name}.{kind}").read_bytes()
        if kind == "svg":
            svg = ElementTree.fromstring(file)
            assert svg.get("width") == "237.6pt"  # 3.3 inches
            assert words in " ".join(text.text or "" for text in svg.iter("{http://www.w3.org/2000/svg}text"))
        else:
            assert re.findall(rb"/MediaBox \[ 0 0 (\S+) ", file) == [b"237.6"]
            assert b"/Subtype /Type0" in file or b"/Subtype /TrueType" in file  # an embedded font, no outlines
            assert b"/Subtype /Type3" not in file


def test_robustness_shows_each_level_beside_the_plain_result(tested: FoundByTest) -> None:
    assert robustness(tested) is None
    tested.changed = CHANGED
    picture = robustness(tested)
    assert picture is not None
    words, length = picture.figure.axes
    curves = [list(line.get_ydata()) for line in words.lines]
    assert curves == [[10, 10], [9, 4], [10, 10], [9, 4]]  # t2i: plain, changed; i2t: plain, changed
    assert [tick.get_text() for tick in words.get_xticklabels()] == ["0.1", "0.5"]
    assert [list(line.get_ydata()) for line in length.lines] == [[10, 10], [7]]
    assert (words.get_title("left"), length.get_title("left")) == ("drop words", "caption length")


def test_ranks_are_written_once_unless_a_reranker_adds_some(
    tmp_path: Path, tested: FoundByTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []
    monkeypatch.setattr(run_report, "save_ranks", lambda folder, ranks, *_: written.append(list(ranks)) or folder)
    report = RunReport(tmp_path, [], step=0)
    report.save(tested)
    tested.changed = CHANGED
    report.save(tested)
    assert written == [["t2i", "i2t"]]
    assert len(json.loads((tmp_path / "metrics.json").read_text())["changed"]) == 3
    tested.reranked = rerank(tested.retrieval, tested.ranks["t2i"], KReciprocal(top=3, k1=2, k2=1))
    report.save(tested)
    assert written == [["t2i", "i2t"], ["t2i", "i2t", "t2i_k_reciprocal"]]
