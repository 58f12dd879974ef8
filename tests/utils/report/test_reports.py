"""Tables in the style of the papers, result files, and the comparison over runs."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.figures import figures
from tests.forked import run_python
from utils.errors import UserError
from utils.ranking.metrics import METRICS, RetrievalMetrics
from utils.report.comparison import compare_runs, find_metrics
from utils.report.reports import metrics_table, save_metrics

ROOT = Path(__file__).parents[3]
PAPER = {
    "t2i": figures(50.53, 77.78, 86.43, 55.94, 49.37, queries=4000),
    "i2t": figures(52.35, 77.55, 86.2, 48.97, 33.27, queries=2000),
}
PAPER_TABLE = """\
+------+-------+-------+-------+-------+-------+
| Task |   R1  |   R5  |  R10  |  mAP  |  mINP |
+------+-------+-------+-------+-------+-------+
| t2i  | 50.53 | 77.78 | 86.43 | 55.94 | 49.37 |
| i2t  | 52.35 | 77.55 | 86.20 | 48.97 | 33.27 |
+------+-------+-------+-------+-------+-------+"""


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "strategy": "hybrid_circle",
        "dataset": "drawn",
        "backbone": "tiny_siglip",
        "lora": "full",
        "seed": 1,
        "val_protocol": "held_out",
    } | changes


def level(percent: float) -> dict[str, RetrievalMetrics]:
    """Metrics that are `percent` in t2i and twice that in i2t."""
    return {d: figures(f * percent, queries=3) for d, f in (("t2i", 1), ("i2t", 2))}


def rows_of(comparison: object) -> list[list[str]]:
    lines = [line for line in str(comparison).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_is_the_papers() -> None:
    assert metrics_table(PAPER, facts()) == "drawn, test split\n" + PAPER_TABLE


def test_table_says_when_the_checkpoint_was_chosen_on_test() -> None:
    title = metrics_table(PAPER, facts(dataset="vn3k_vi", val_protocol="paper")).splitlines()[0]
    assert title == "vn3k_vi, test split; checkpoint chosen on the test split (val_protocol=paper)"


def test_table_says_what_a_run_that_tried_things_out_has_left_out() -> None:
    title = metrics_table(PAPER, facts(limited="debug=fast; first 1 batch of the test split")).splitlines()[0]
    assert title == "drawn, test split; debug=fast; first 1 batch of the test split"


def test_a_comparison_marks_such_runs_and_averages_them_with_no_others(tmp_path: Path) -> None:
    for seed, limited in enumerate(["", "", "debug=fast", "debug=limit"]):
        save_metrics(tmp_path / str(seed), level(10 + seed), facts(seed=seed, limited=limited))
    comparison = compare_runs(find_metrics([tmp_path]))
    assert [row[:2] for row in rows_of(comparison)[1:4]] == [
        ["hybrid_circle [2]", "1"],
        ["hybrid_circle [1]", "1"],
        ["hybrid_circle", "2"],
    ]
    assert str(comparison).splitlines()[-2:] == ["[1] debug=fast", "[2] debug=limit"]
    assert {row["limited"] for row in csv.DictReader(comparison.csv().splitlines())} == {
        "",
        "debug=fast",
        "debug=limit",
    }


NOISE = "trained with 20 % of the captions permuted"


def test_tables_say_which_runs_were_trained_with_noise(tmp_path: Path) -> None:
    title = metrics_table(PAPER, facts(limited="debug=fast", noise=NOISE)).splitlines()[0]
    assert title == f"drawn, test split; debug=fast; {NOISE}"
    for seed, noise in enumerate(["", "", NOISE]):
        save_metrics(tmp_path / str(seed), level(10 + seed), facts(seed=seed, noise=noise))
    save_metrics(tmp_path / "limited", level(9), facts(limited="debug=fast", noise=NOISE))
    comparison = compare_runs(find_metrics([tmp_path]))
    names = ["hybrid_circle [2]", "hybrid_circle", "hybrid_circle [1] [2]"]
    assert [row[0] for row in rows_of(comparison)[1:4]] == names
    assert str(comparison).splitlines()[-2:] == ["[1] debug=fast", f"[2] {NOISE}"]
    noisy, clean, limited = comparison.groups
    assert noisy.queries == clean.queries != limited.queries, "noise in training leaves the queries comparable"


def test_table_says_how_many_queries_were_left_out() -> None:
    metrics = PAPER | {"i2t": figures(0, queries=1, skipped=7)}
    last = metrics_table(metrics, facts(), split="val").splitlines()[-1]
    assert last == "i2t: 7 queries without a positive were left out"


def test_table_says_how_many_images_of_its_split_were_left_out() -> None:
    run = facts(skipped_train=2, skipped_val=0, skipped_test=1_234)
    last = "images left out with their captions because they cannot be read: 1,234"
    assert metrics_table(PAPER, run).splitlines()[-1] == last
    assert "left out" not in metrics_table(PAPER, run, split="val")


def test_runs_without_some_images_are_marked_and_not_averaged_with_whole_ones(tmp_path: Path) -> None:
    for seed, skipped in ((1, {}), (2, {"skipped_test": 0}), (3, {"skipped_test": 4}), (4, {"skipped_test": 4})):
        save_metrics(tmp_path / str(seed), level(10 * seed), facts(seed=seed, **skipped))
    compared = str(compare_runs(find_metrics([tmp_path])))
    assert [row[:3] for row in rows_of(compared)[1:3]] == [
        ["hybrid_circle ‡", "2", "t2i"],
        ["hybrid_circle", "2", "t2i"],
    ]
    assert compared.splitlines()[-1] == "‡ test images left out because they cannot be read: 4"


def test_saved_metrics_keep_every_digit(tmp_path: Path) -> None:
    metrics = level(100 / 3) | {"i2t": figures(1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, queries=9, skipped=2)}
    saved = save_metrics(tmp_path / "run", metrics, facts(variant="gamma=64"))
    report = json.loads(saved.read_text(encoding="utf-8"))
    assert report["run"] == facts(variant="gamma=64")
    assert report["split"] == "test"
    assert report["metrics"] == {d: own.as_row() for d, own in metrics.items()}
    with (saved.parent / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["t2i", "i2t"]
    assert all(row["strategy"] == "hybrid_circle" and row["variant"] == "gamma=64" for row in rows)
    assert float(rows[1]["mINP"]) == 5 / 7
    assert sorted(path.name for path in saved.parent.iterdir()) == ["metrics.csv", "metrics.json"]


def test_comparison_over_seeds(tmp_path: Path) -> None:
    for seed, percent in ((1, 10.0), (2, 13.0), (3, 16.0)):
        save_metrics(tmp_path / f"hybrid/{seed}", level(percent), facts(seed=seed))
    save_metrics(tmp_path / "baseline", level(20), facts(strategy="baseline"))
    comparison = compare_runs(find_metrics([tmp_path]))
    assert str(comparison).splitlines()[0] == "drawn, tiny_siglip, full, test split"
    assert rows_of(comparison) == [
        ["Strategy", "n", "Task", *METRICS],
        ["baseline", "1", "t2i", *["20.00"] * 5],
        ["hybrid_circle", "3", "t2i", *["13.00 ± 3.00"] * 5],
        ["baseline", "1", "i2t", *["40.00"] * 5],
        ["hybrid_circle", "3", "i2t", *["26.00 ± 6.00"] * 5],
    ]
    assert str(comparison).splitlines()[-1] == "mean ± sample standard deviation over n seeds"
    rows = list(csv.DictReader(comparison.csv().splitlines()))
    assert [(row["strategy"], row["task"], row["seeds"]) for row in rows] == [
        ("baseline", "t2i", "1"),
        ("hybrid_circle", "t2i", "1 2 3"),
        ("baseline", "i2t", "1"),
        ("hybrid_circle", "i2t", "1 2 3"),
    ]
    assert (rows[0]["R1_std"], float(rows[3]["mAP"]), float(rows[3]["mAP_std"])) == ("", 26, 6)


def test_similarities_are_kept_beside_the_metrics_and_leave_the_comparison_as_it_is(tmp_path: Path) -> None:
    figures = {"same_mean": 0.5, "other_mean": float("nan"), "overlap": 0.25}
    saved = save_metrics(tmp_path / "with", PAPER, facts(), similarity=figures)
    content = json.loads(saved.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert content["similarity"] == {"same_mean": 0.5, "other_mean": None, "overlap": 0.25}
    without = save_metrics(tmp_path / "without", PAPER, facts())
    assert "similarity" not in json.loads(without.read_text(encoding="utf-8"))
    assert str(compare_runs([saved])) == str(compare_runs([without]))


def test_comparison_of_one_kind_of_run_shows_no_deviation(tmp_path: Path) -> None:
    comparison = compare_runs([save_metrics(tmp_path, PAPER, facts())])
    assert rows_of(comparison)[1] == [
        "hybrid_circle",
        "1",
        "t2i",
        "50.53",
        "77.78",
        "86.43",
        "55.94",
        "49.37",
    ]
    assert "±" not in str(comparison)


def test_what_differs_becomes_a_column_and_is_never_averaged(tmp_path: Path) -> None:
    changes = [
        {"dataset": "vn3k_vi", "val_protocol": "paper"},
        {"dataset": "vn3k_vi"},
        {"lora": "lora"},
        {"variant": "loss.terms.cross_modal_circle.gamma=64"},
        {},
    ]
    files = [save_metrics(tmp_path / str(i), level(i), facts(**change)) for i, change in enumerate(changes)]
    comparison = compare_runs(files)
    assert str(comparison).splitlines()[0] == "tiny_siglip, test split"
    assert [row[:6] for row in rows_of(comparison)[:6]] == [
        ["Strategy", "Dataset", "LoRA", "Variant", "n", "Task"],
        ["hybrid_circle", "drawn", "full", "", "1", "t2i"],
        ["hybrid_circle", "drawn", "full", "loss.terms.cross_modal_circle.gamma=64", "1", "t2i"],
        ["hybrid_circle", "drawn", "lora", "", "1", "t2i"],
        ["hybrid_circle", "vn3k_vi", "full", "", "1", "t2i"],
        ["hybrid_circle *", "vn3k_vi", "full", "", "1", "t2i"],
    ]
    assert "* checkpoint chosen on the test split (val_protocol=paper)" in str(comparison)


def test_a_repeated_run_replaces_the_older_one(tmp_path: Path) -> None:
    old = save_metrics(tmp_path / "z", level(90), facts())
    new = save_metrics(tmp_path / "a", level(10), facts())
    comparison = compare_runs([new, old])
    assert rows_of(comparison)[1][:4] == ["hybrid_circle", "1", "t2i", "10.00"]
    assert str(comparison).endswith("runs left out because a newer run has the same settings and seed: 1")


def made_with(**changes: Any) -> dict[str, Any]:
    code = {"commit": "1" * 40, "clean": True, "sources": "a" * 64} | changes.pop("code", {})
    return {"code": code, "data": {"annotations": "d" * 64}, "options": "e" * 64} | changes


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (made_with(code={"commit": "2" * 40}), "the code (111111111111 aaaaaaaaaaaa, 222222222222 aaaaaaaaaaaa)"),
        (made_with(code={"clean": False, "sources": "b" * 64}), "the code (111111111111 aaaaaaaaaaaa, 111111111111+"),
        (made_with(code={"commit": None, "clean": None}), "the code (111111111111 aaaaaaaaaaaa, no git aaaaaaaaaaaa)"),
        (made_with(data={"annotations": "f" * 64}), "the annotations (dddddddddddd, ffffffffffff)"),
        (made_with(options="f" * 64), "options that the variant does not show (eeeeeeeeeeee, ffffffffffff)"),
        (None, "the code (111111111111 aaaaaaaaaaaa, not recorded)"),
    ],
)
def test_runs_of_other_code_data_or_options_are_averaged_only_when_told_to(
    other: dict[str, Any] | None, difference: str, tmp_path: Path
) -> None:
    for seed, percent, provenance in ((1, 10, made_with()), (2, 20, made_with()), (3, 30, other), (4, 34, other)):
        save_metrics(tmp_path / str(seed), level(percent), facts(seed=seed), provenance=provenance)
    files = find_metrics([tmp_path])
    apart = compare_runs(files)
    assert [row[:4] for row in rows_of(apart)[1:3]] == [
        ["hybrid_circle [b]", "2", "t2i", "32.00 ± 2.83"],
        ["hybrid_circle [a]", "2", "t2i", "15.00 ± 7.07"],
    ]
    note = str(apart).splitlines()[-1]
    assert note.startswith(f"[a] (seed 1 2), [b] (seed 3 4) are not averaged because they differ in {difference}")
    assert note.endswith("python -m utils.report --mixed averages them")
    assert len(apart.csv().splitlines()) == 5
    assert "1" * 12 in apart.csv()
    mixed = compare_runs(files, mixed=True)
    assert rows_of(mixed)[1][:4] == ["hybrid_circle", "4", "t2i", "23.50 ± 10.75"]
    assert "[a]" not in str(mixed)
    assert [row[1] for row in rows_of(command(tmp_path).stdout)[1:3]] == ["2", "2"]
    assert rows_of(command(tmp_path, "--mixed").stdout)[1][1] == "4"


def test_another_card_or_another_version_of_python_is_no_other_run(tmp_path: Path) -> None:
    for seed, device in ((1, "cpu"), (2, "NVIDIA H100")):
        provenance = made_with(device=device, versions={"python": f"3.1{seed}"}, seed=seed)
        save_metrics(tmp_path / str(seed), level(10), facts(seed=seed), provenance=provenance)
    comparison = compare_runs(find_metrics([tmp_path]))
    assert [group.seeds for group in comparison.groups] == [[1, 2]]
    assert "not averaged" not in str(comparison)


def test_runs_with_other_metrics_stay_readable(tmp_path: Path) -> None:
    """Columns are the union over groups; a mean is over what all runs of a group have."""
    new = {d: RetrievalMetrics({"R1": 30.0, "R50": 90.0}, queries=3) for d in ("t2i", "i2t")}
    more = {d: RetrievalMetrics({"R1": 50.0, "R50": 92.0, "R100": 99.0}, queries=3) for d in ("t2i", "i2t")}
    save_metrics(tmp_path / "1", new, facts(seed=1))
    save_metrics(tmp_path / "2", more, facts(seed=2))
    save_metrics(tmp_path / "3", level(10), facts(strategy="baseline"))
    comparison = compare_runs(find_metrics([tmp_path]))
    assert rows_of(comparison)[:3] == [
        ["Strategy", "n", "Task", *METRICS, "R50"],
        ["hybrid_circle", "2", "t2i", "40.00 ± 14.14", *["-"] * 4, "91.00 ± 1.41"],
        ["baseline", "1", "t2i", *["10.00"] * 5, "-"],
    ]
    rows = list(csv.DictReader(comparison.csv().splitlines()))
    assert [(row["R1"], row["R50"], row["mAP"]) for row in rows[:2]] == [("40.0", "91.0", ""), ("10.0", "", "10.0")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"run": {"seed": 1}, "split": "test", "finished": "", "metrics": {}}',
        '{"run": {}}',
        '{"t2i": {"R1": 5}}',
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, text: str) -> None:
    foreign = tmp_path / "metrics.json"
    foreign.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"not a metrics\.json that this framework wrote"):
        compare_runs([foreign])


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "utils.report", *arguments)


def test_command_line(tmp_path: Path) -> None:
    save_metrics(tmp_path / "runs/1", level(10), facts(strategy="baseline"))
    other = save_metrics(tmp_path / "elsewhere", level(20), facts())
    result = command(tmp_path / "runs", other)
    assert (result.returncode, result.stderr) == (0, "")
    assert [row[0] for row in rows_of(result.stdout)] == ["Strategy", *["hybrid_circle", "baseline"] * 2]
    table = tmp_path / "new" / "table.csv"
    result = command(tmp_path / "runs", other, "--format", "csv", "--out", table)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize(
    ("folder", "message"), [("", "there is no metrics.json to compare"), ("no/such", "does not exist")]
)
def test_command_line_without_results(tmp_path: Path, folder: str, message: str) -> None:
    result = command(tmp_path / folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "spoilt",
    [
        {"provenance": [1]},
        {"provenance": "x"},
        {"provenance": {"tested": "x"}},
        {"run": {"seed": float("inf")}},
        {"metrics": {"t2i": {"R1": float("nan")}}},
        {"metrics": {"t2i": {"R1": 10**400}}},
        {"metrics": 3},
    ],
    ids=str,
)
def test_a_spoilt_record_is_one_sentence(tmp_path: Path, spoilt: dict[str, Any]) -> None:
    file = save_metrics(tmp_path, level(10), facts(), provenance=made_with())
    report = json.loads(file.read_text(encoding="utf-8"))
    for key, value in spoilt.items():
        report[key] = report[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(UserError, match=r"not a metrics\.json that this framework wrote"):
        compare_runs([file])


def test_control_codes_of_a_record_do_not_reach_the_terminal(tmp_path: Path) -> None:
    file = save_metrics(tmp_path, level(10), facts(strategy="\x1b[2Jx\ny"))
    assert "\x1b" not in str(compare_runs([file]))
