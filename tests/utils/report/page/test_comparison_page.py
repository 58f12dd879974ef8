"""The page of a comparison: its table, the differences, and the captions on which rows differ."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.utils.report.page.browser import CHROMIUM, after
from tests.utils.report.test_differences import ITC, PIDS, SDM, compare, save_run
from utils.ranking.metrics import DIRECTIONS
from utils.ranking.positives import Ranks, load_captions, save_ranks
from utils.report.page.comparison_page import comparison_page

CAPTIONS = ["a red coat", "a blue coat", "<b>jeans</b>", "áo dài", "shoes", "a hat", "a bag", "a scarf"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of ITC and one of SDM, with captions; one of them has a page."""
    for name, ranks in {"itc/1": ITC, "itc/2": SDM[:4] + ITC[4:], "sdm/1": SDM}.items():
        strategy, seed = name.split("/")
        save_run(tmp_path / name, ranks, strategy=strategy, seed=int(seed))
        found = Ranks.of([np.array(own) for own in ranks])
        both = dict.fromkeys(DIRECTIONS, found), dict.fromkeys(DIRECTIONS, np.array(PIDS))
        save_ranks(tmp_path / name, *both, CAPTIONS)
    (tmp_path / "sdm/1/report.html").touch()
    return tmp_path


def data_of(page: str) -> Any:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def test_the_data_are_those_of_the_runs(folder: Path) -> None:
    data = data_of(comparison_page(compare(folder), folder))
    assert data["contrasts"]["captions"] == CAPTIONS
    assert data["contrasts"]["rows"] == {
        "sdm": [own[0] for own in SDM],
        "itc": [(a[0] + b[0]) / 2 for a, b in zip(ITC, SDM[:4] + ITC[4:], strict=True)],
    }
    assert [(row["name"], row["direction"]) for row in data["differences"]] == [("sdm", "t2i"), ("sdm", "i2t")]
    expected = compare(folder).groups[0].differences["t2i"]
    assert data["differences"][0]["difference"] == expected.difference  # type: ignore[union-attr]


def test_the_table_is_that_of_the_terminal_and_links_are_relative(folder: Path) -> None:
    comparison = compare(folder)
    page = comparison_page(comparison, folder / "there")
    assert all(f">{cell}<" in page for block in comparison.blocks() for row in block for cell in row)
    assert re.findall(r'<a href="([^"]*)"', page) == ["../sdm/1/report.html"]
    assert "jeans</b>" not in page


def test_rows_without_the_same_captions_are_left_out(folder: Path) -> None:
    save_run(folder / "older", SDM, strategy="older")  # a version that saved no captions
    assert load_captions(folder / "older" / "ranks.npz") == []
    assert data_of(comparison_page(compare(folder)))["contrasts"]["rows"].keys() == {"sdm", "itc"}
    (folder / "itc/2/ranks.npz").write_bytes(b"damaged")
    assert data_of(comparison_page(compare(folder)))["contrasts"]["rows"] == {}


CHOICES = """
const form = document.querySelector("#contrasts form");
const set = (name, value) => { form[name].value = value; form.dispatchEvent(new Event("input")); };
const shown = () => [...document.querySelectorAll("#contrasts tbody td:first-child")].map((cell) => cell.textContent);
const lines = document.querySelectorAll("#differences circle").length;
const told = { row: form.row.value, against: form.against.value, lines };
told.better = shown();
set("order", "worse"); told.worse = shown(); set("order", "better");
set("text", "Coat"); told.coat = shown(); set("text", "");
set("row", "itc"); set("against", "sdm"); told.swapped = shown();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_rows_are_chosen_in_a_browser(folder: Path) -> None:
    page = folder / "comparison.html"
    page.write_text(comparison_page(compare(folder), folder), encoding="utf-8")
    told = after(page, CHOICES)
    assert (told["row"], told["against"], told["lines"]) == ("sdm", "itc", 2)
    assert told["better"] == ["shoes", "<b>jeans</b>", "a hat", "a bag", "a blue coat"]
    assert told["coat"] == ["a blue coat"]
    assert told["worse"] == told["swapped"] == ["áo dài"]
