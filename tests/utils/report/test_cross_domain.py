"""The matrix of methods that were tested on other datasets than their own, in all formats."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.utils.report.test_reports import facts, level, made_with
from tests.utils.report.test_tables import compile_latex
from utils.report.comparison import Comparison, compare_runs, find_metrics
from utils.report.comparison.cross_domain import Matrix
from utils.report.page.comparison_page import comparison_page
from utils.report.reports import save_metrics

NOTE = "° training and test have images of the same collection"


def save(folder: Path, dataset: str, percent: float, source: str = "", *, shared: bool = False, **own: Any) -> None:
    tested = {"tested": {"trained_on": source, "shares_images": shared}} if source else {}
    save_metrics(folder, level(percent), facts(dataset=dataset, **own), provenance=made_with() | tested)


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """Two methods; the first with two seeds on one pair."""
    save(tmp_path / "1", "icfg_pedes", 40, strategy="sdm")
    save(tmp_path / "2", "rstpreid", 20, "icfg_pedes", shared=True, strategy="sdm")
    save(tmp_path / "3", "rstpreid", 22, "icfg_pedes", shared=True, strategy="sdm", seed=2)
    save(tmp_path / "4", "rstpreid", 45, strategy="sdm")
    save(tmp_path / "5", "icfg_pedes", 12.5, "vn3k_en", strategy="sdm")
    save(tmp_path / "6", "rstpreid", 30, "rstpreid", strategy="a_b")
    return compare_runs(find_metrics([tmp_path]))


def test_rows_are_trainings_and_columns_are_tests(comparison: Comparison) -> None:
    assert comparison.cross_domain() == [
        Matrix(
            ["sdm, t2i R1: trained on", "icfg_pedes", "rstpreid"],
            [
                ["icfg_pedes", "40.00", "21.00 ± 1.41 °"],
                ["rstpreid", "", "45.00"],
                ["vn3k_en", "12.50", ""],
            ],
        ),
        Matrix(["a_b, t2i R1: trained on", "icfg_pedes", "rstpreid"], [["rstpreid", "", "30.00"]]),
    ]
    assert comparison.notes()[-1] == NOTE


def test_tests_on_the_own_dataset_have_no_matrix(tmp_path: Path) -> None:
    save(tmp_path / "1", "icfg_pedes", 40)
    save(tmp_path / "2", "rstpreid", 20)
    found = compare_runs(find_metrics([tmp_path]))
    assert found.cross_domain() == []
    assert NOTE not in found.notes()
    assert found.latex().count(r"\begin{table}") == 1


def test_runs_that_are_not_averaged_share_a_cell(tmp_path: Path) -> None:
    for commit, percent in (("1", 20), ("2", 24)):
        made = made_with(code={"commit": commit * 40}) | {"tested": {"trained_on": "icfg_pedes"}}
        save_metrics(tmp_path / commit, level(percent), facts(dataset="rstpreid"), provenance=made)
    [matrix] = compare_runs(find_metrics([tmp_path])).cross_domain()
    assert matrix.rows == [["icfg_pedes", "24.00 / 20.00"]]


def test_a_variant_is_a_row_of_its_own(tmp_path: Path) -> None:
    longer = "backbone.max_length=40 dataset.language="
    save(tmp_path / "1", "drawn-en", 55)
    save(tmp_path / "2", "drawn-vi", 5, "drawn-en", shared=True, variant="dataset.language=vi")
    save(tmp_path / "3", "drawn-en", 8, "drawn-vi", shared=True, variant=f"{longer}en")
    save(tmp_path / "4", "drawn-vi", 60, variant=f"{longer}vi")
    [matrix] = compare_runs(find_metrics([tmp_path])).cross_domain()
    assert matrix.header[1:] == ["drawn-en", "drawn-vi"]
    assert matrix.rows == [["drawn-en", "55.00", "5.00 °"], ["drawn-vi backbone.max_length=40", "8.00 °", "60.00"]]


def test_in_the_terminal_and_in_markdown(comparison: Comparison) -> None:
    terminal = str(comparison).partition(NOTE)[2].strip().splitlines()
    assert terminal[1:6] == [
        "| sdm, t2i R1: trained on | icfg_pedes |       rstpreid |",
        "+-------------------------+------------+----------------+",
        "|              icfg_pedes |      40.00 | 21.00 ± 1.41 ° |",
        "|                rstpreid |            |          45.00 |",
        "|                 vn3k_en |      12.50 |                |",
    ]
    markdown = comparison.markdown().partition(NOTE)[2].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown[:5]]
    assert cells == [
        ["sdm, t2i R1: trained on", r"icfg\_pedes", "rstpreid"],
        cells[1],
        [r"icfg\_pedes", "40.00", "21.00 ± 1.41 °"],
        ["rstpreid", "", "45.00"],
        [r"vn3k\_en", "12.50", ""],
    ]
    assert all(re.fullmatch("-+:", rule) for rule in cells[1])
    assert markdown[6].startswith(r"| a\_b, t2i R1: trained on |")


def test_in_latex_it_is_a_table_of_its_own_that_compiles(comparison: Comparison, tmp_path: Path) -> None:
    latex = comparison.latex()
    main, first, second = latex.split(r"\begin{table}")[1:]
    assert r"$^\circ$ training and test have images of the same collection" in main
    assert first == (
        r"""
\centering
\caption{sdm, t2i R1: trained on (rows), tested on (columns).}
\begin{tabular}{lrr}
\toprule
 & icfg\_pedes & rstpreid \\
\midrule
icfg\_pedes & 40.00 & 21.00 $\pm$ 1.41 $^\circ$ \\
rstpreid &  & 45.00 \\
vn3k\_en & 12.50 &  \\
\bottomrule
\end{tabular}
\end{table}

"""
    )
    assert r"\caption{a\_b, t2i R1: trained on (rows), tested on (columns).}" in second
    assert latex.isascii()
    compile_latex(latex, tmp_path)


def test_on_the_page_it_is_a_table(comparison: Comparison) -> None:
    text = " ".join(re.sub(r"<[^>]*>", " ", comparison_page(comparison)).split())
    assert "sdm, t2i R1: trained on icfg_pedes rstpreid icfg_pedes 40.00 21.00 ± 1.41 ° rstpreid 45.00" in text
