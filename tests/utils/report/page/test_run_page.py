"""The page of a run: what it holds, that it needs nothing else, and that its filters work in a browser."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.figures import figures
from tests.utils.report.page.browser import CHROMIUM, after
from utils.ranking.retrieval import Retrieval
from utils.report.page import queries
from utils.report.page.curves import POINTS, read_charts
from utils.report.page.run_page import flat, write_run_page
from utils.report.run_report import RunReport
from utils.report.tested import Tested as FoundByTest  # pytest would collect a name that begins with Test

HOSTILE = "Áo khoác đỏ </script><img src=x onerror=alert(1)>"
CAPTIONS = ["a red coat", HOSTILE, "a coat", "trousers in a longer caption"]
METRICS = {direction: figures(12.5, queries=4) for direction in ("t2i", "i2t")}
RUN = {
    "strategy": "sdm",
    "dataset": "drawn-en",
    "backbone": "tiny_clip",
    "lora": "full",
    "seed": 3,
    "variant": "loss.terms.sdm.weight=2",
    "val_protocol": "held_out",
    "limited": "",
    "noise": "trained with 20 % of the captions permuted",
}


@pytest.fixture
def tested(tmp_path: Path) -> FoundByTest:
    """Four captions and seven images; the first right image of the captions is at the ranks 1, 7, 2 and 7."""
    paths = [tmp_path / "imgs" / f"{name}.png" for name in range(7)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (20, 40), "blue").save(path)
    images = torch.nn.functional.normalize(torch.tensor([[7.0 - place, 1.0] for place in range(7)]))
    texts, pids = torch.tensor([[1.0, 0.0]] * 3 + [[0.8, -0.6]]), torch.tensor([0, 2, 1, 2])
    retrieval = Retrieval(images, torch.tensor([0, 1, 1, 1, 1, 1, 2]), texts, pids, CAPTIONS, paths)
    return FoundByTest(RUN, retrieval, retrieval.ranks(), METRICS, shown_queries=1)


def write(folder: Path, tested: FoundByTest, **provenance: Any) -> str:
    return write_run_page(folder, tested, provenance, []).read_text(encoding="utf-8")


def data_of(page: str) -> Any:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def test_the_list_has_all_captions_with_their_ranks_and_best_images(tmp_path: Path, tested: FoundByTest) -> None:
    found = data_of(write(tmp_path, tested))["queries"]
    assert found["captions"] == CAPTIONS
    assert found["first"] == [1, 7, 2, 7]
    assert found["right"] == [0, 6, 1, 6]
    assert found["counts"] == [1, 1, 5, 1]
    assert found["best"] == [[0, 1, 2, 3, 4]] * 4
    assert found["images"] == [f"{name}.png" for name in range(7)]
    assert found["thumbnails"].keys() == {"0", "1", "2", "3", "4", "6"}, "of images that a caption shows"


def test_the_worst_captions_have_the_thumbnails_if_there_are_too_many(
    tmp_path: Path, tested: FoundByTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "THUMBNAILS", 1)
    tested.retrieval.paths[0].unlink()  # is left out, as is what cannot be read
    assert data_of(write(tmp_path, tested))["queries"]["thumbnails"].keys() == {"1"}


def test_nothing_is_fetched_and_no_text_is_code(tmp_path: Path, tested: FoundByTest) -> None:
    (tmp_path / "config.yaml").write_text("note: <script>alert(2)</script>", encoding="utf-8")
    page = write(tmp_path, replace(tested, run=RUN | {"variant": "<b>"}), command="trainer.py '</script>'")
    assert page.count("<script") == 2
    assert "&lt;script&gt;alert(2)" in page
    assert "<b>" not in page
    assert "onerror=alert(1)>" not in page.replace("\\u003e", "")
    outside = [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not link.startswith("data:")]
    assert outside == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_curves_are_those_of_the_log(tmp_path: Path) -> None:
    assert read_charts(tmp_path) == []
    (tmp_path / "logs").mkdir()
    rows = [f"{step},{2 / step},{'' if step % 2 else step},nan,0.5" for step in range(1, 2 * POINTS + 2)]
    head = "step,train/loss,val/t2i/R1,train/grad_norm,train/gradient/sdm"
    (tmp_path / "logs" / "steps.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    charts = {chart.title: chart.curves for chart in read_charts(tmp_path)}
    assert list(charts) == ["loss", "share of each term in the gradient", "validation, text to image, %"]
    assert charts["validation, text to image, %"]["R1"][-1] == (2 * POINTS, 2 * POINTS)
    loss = charts["loss"]["loss"]
    assert len(loss) <= POINTS
    assert loss[-1] == (2 * POINTS + 1, pytest.approx(2 / (2 * POINTS + 1), rel=1e-4))
    assert charts["share of each term in the gradient"]["sdm"][0][1] == 0.5


def test_what_is_no_number_in_a_log_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    rows = ["1,2,1", "2,tensor(1),1", "\0,3,1", "1e400,3,1", "4,1.7976931e308,1", "5,\xff,1", "6,1", "7,7,7"]
    text = "\n".join(["step,train/loss,epoch", *rows])
    (tmp_path / "logs" / "steps.csv").write_bytes(text.encode("latin-1"))
    [chart] = read_charts(tmp_path)
    assert chart.curves["loss"] == [(1, 2), (4, 1.797693e308), (6, 1), (7, 7)]


def test_an_image_as_narrow_as_a_line_has_a_thumbnail(tmp_path: Path, tested: FoundByTest) -> None:
    Image.new("RGB", (600, 1), "blue").save(tested.retrieval.paths[0])
    assert "0" in data_of(write(tmp_path, tested))["queries"]["thumbnails"]


def test_a_page_that_fails_loses_no_result(
    tmp_path: Path, tested: FoundByTest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no\nspace")

    monkeypatch.setattr("utils.report.run_report.write_run_page", broken)
    report = RunReport(tmp_path, [], step=1)
    report.save(tested)
    report.page(tested)
    report.close()
    assert capsys.readouterr().out.splitlines() == [
        "page    not complete (RuntimeError: no space); the results are saved",
        f"saved   {tmp_path}: metrics.json, ranks.npz",
    ]


def test_a_record_is_flat() -> None:
    record = {"code": {"commit": "1", "clean": None}, "seed": 3, "data": {"file": "x", "splits": {"train": {"ids": 2}}}}
    assert flat(record) == {"code": "commit 1", "seed": "3", "data, file": "x", "data, splits, train": "ids 2"}


FILTERS = """
const form = document.querySelector("#queries form");
const shown = () => [...document.querySelectorAll("#queries li p:first-child")].map((p) => p.textContent);
const set = (name, value) => { form[name].value = value; form.dispatchEvent(new Event("input")); };
const told = { charts: document.querySelectorAll("svg").length, worst: shown() };
set("order", "best"); told.best = shown(); set("order", "file");
set("text", "COAT"); told.coat = shown(); set("text", "đỏ khoác"); told.vietnamese = shown(); set("text", "");
set("from", "2"); set("to", "2"); told.second = shown(); set("from", ""); set("to", "");
set("fewest", "4"); told.long = shown(); set("fewest", "");
told.count = document.getElementById("count").textContent;
const marks = (row) => [...row.querySelectorAll(".image")].map((image) => image.classList.contains("right"));
told.right = [...document.querySelectorAll("#queries li")].map(marks);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_the_filters_work_in_a_browser(tmp_path: Path, tested: FoundByTest) -> None:
    write(tmp_path, tested)
    told = after(tmp_path / "report.html", FILTERS)
    red, hostile, coat, trousers = CAPTIONS
    assert told["charts"] == 1, "the similarities; there is no log"
    assert told["worst"] == [hostile, trousers, coat, red]
    assert told["best"] == [red, coat, hostile, trousers]
    assert told["coat"] == [red, coat]
    assert told["vietnamese"] == [hostile]
    assert told["second"] == [coat]
    assert told["long"] == [hostile, trousers]
    assert told["count"] == "4 of 4 captions"
    first_alone, last_alone = [True, False, False, False, False], [False] * 5 + [True]
    assert told["right"] == [first_alone, last_alone, [False, True, True, True, True], last_alone]
