"""The paired difference to a baseline, against computations by hand."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.utils.report.test_reports import facts, made_with, rows_of
from utils.errors import UserError
from utils.ranking.metrics import DIRECTIONS, STANDARD, measure
from utils.ranking.positives import RANKS_FILE, Ranks, save_ranks
from utils.ranking.significance import PairedTest, holm, values_test
from utils.report.comparison import Comparison, compare_runs, find_metrics, with_differences
from utils.report.reports import save_metrics

PIDS = [3, 3, 5, 5, 7, 7, 9, 9]
ITC = [[1, 4], [2, 3], [3, 5], [1, 2], [4, 6], [2, 9], [2, 3], [1, 7]]
SDM = [[1, 2], [1, 3], [1, 5], [2, 3], [1, 6], [1, 9], [1, 2], [1, 3]]
Lists = list[list[int]]


def save_run(folder: Path, ranks: Lists, *, pids: list[int] = PIDS, i2t: Lists | None = None, **changes: Any) -> Path:
    """Saves a run whose ranks are `ranks` in both directions, unless `i2t` has others."""
    other = {key: changes.pop(key) for key in ("split", "provenance") if key in changes}
    found = {
        d: Ranks.of([np.array(own) for own in own_ranks]) for d, own_ranks in (("t2i", ranks), ("i2t", i2t or ranks))
    }
    save_ranks(folder, found, dict.fromkeys(DIRECTIONS, np.array(pids)))
    return save_metrics(folder, {d: measure(own) for d, own in found.items()}, facts(**changes), **other)


def compare(folder: Path, baseline: str | None = "itc", metric: str = "R1", *, mixed: bool = False) -> Comparison:
    return with_differences(compare_runs(find_metrics([folder]), mixed=mixed), baseline, metric)


def differences(comparison: Comparison, direction: str = "t2i") -> dict[str, PairedTest | str]:
    return {group.info["strategy"]: group.differences[direction] for group in comparison.groups}


@pytest.mark.parametrize("metric", ["R1", "mAP"])
def test_the_difference_is_that_of_each_querys_mean_over_seeds(tmp_path: Path, metric: str) -> None:
    seeds = {"itc": [ITC, SDM[:4] + ITC[4:]], "sdm": [SDM, ITC[:2] + SDM[2:], SDM]}
    for strategy, runs in seeds.items():
        for seed, ranks in enumerate(runs):
            save_run(tmp_path / f"{strategy}/{seed}", ranks, strategy=strategy, seed=seed)

    def by_hand(runs: list[Lists]) -> list[float]:
        one = {
            "R1": lambda own: float(own[0] == 1),
            "mAP": lambda own: sum((place + 1) / rank for place, rank in enumerate(own)) / len(own),
        }[metric]
        return [100 * sum(one(run[query]) for run in runs) / len(runs) for query in range(len(PIDS))]

    itc, sdm = by_hand(seeds["itc"]), by_hand(seeds["sdm"])
    sums = [b1 + b2 - a1 - a2 for a1, a2, b1, b2 in zip(itc[::2], itc[1::2], sdm[::2], sdm[1::2], strict=True)]
    flips = [
        abs(sum(s * f for s, f in zip(sums, signs, strict=True))) for signs in itertools.product((-1, 1), repeat=4)
    ]
    p = sum(total >= abs(sum(sums)) - 1e-9 for total in flips) / 16
    found = differences(compare(tmp_path, metric=metric))
    assert found["itc"] == "baseline"
    test = found["sdm"]
    assert isinstance(test, PairedTest)
    assert test.difference == pytest.approx(sum(sums) / 8)
    assert test.p_value == pytest.approx(min(1, 2 * p))  # two tests, one for each direction
    expected = values_test(np.array(itc), np.array(sdm), np.array(PIDS))
    assert test[1:3] == pytest.approx(expected[1:3])


def test_p_is_corrected_over_all_rows_and_both_directions(tmp_path: Path) -> None:
    pids = list(range(12))
    runs = {name: [[1 + (query < n)] for query in pids] for name, n in (("itc", 12), ("a", 6), ("b", 2), ("c", 11))}
    for name, ranks in runs.items():
        save_run(tmp_path / name, ranks, pids=pids, i2t=runs["itc"] if name == "a" else None, strategy=name)
    comparison = compare(tmp_path)
    values = {
        name: 100 * np.array(STANDARD["R1"](Ranks.of([np.array(own) for own in ranks])), dtype=float)
        for name, ranks in runs.items()
    }
    plain = {name: values_test(values["itc"], values[name], np.array(pids)).p_value for name in "abc"}
    keys = [("a", "t2i"), ("a", "i2t"), ("b", "t2i"), ("b", "i2t"), ("c", "t2i"), ("c", "i2t")]
    corrected = holm([1.0 if key == ("a", "i2t") else plain[key[0]] for key in keys])
    found = [differences(comparison, direction)[name] for name, direction in keys]
    assert [test.p_value for test in found if isinstance(test, PairedTest)] == pytest.approx(corrected)
    marked = {row[0]: row[-1].endswith("†") for row in rows_of(comparison)[1:5]}
    assert marked == {"itc": False, "a": False, "b": True, "c": False}
    assert "corrected for the number of tests, 6 (Holm)" in comparison.note


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset": "rstpreid"}, "another dataset"),
        ({"split": "val"}, "another split"),
        ({"limited": "debug=fast"}, "limited otherwise"),
        ({"skipped_test": 2}, "other images left out"),
        ({"provenance": made_with(data={"annotations": "f" * 64})}, "other annotations"),
        ({"pids": [3, 3, 5, 5, 7, 7, 9, 8]}, "other queries"),
        ({"pids": PIDS[::-1]}, "other queries"),
        ({"ranks": [[*own, 50] for own in SDM]}, "other queries"),
        ({"ranks": SDM[:6], "pids": PIDS[:6]}, "other queries"),
    ],
)
def test_different_queries_are_never_compared(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    save_run(tmp_path / "itc", ITC, strategy="itc", provenance=made_with())
    save_run(tmp_path / "sdm", **({"ranks": SDM, "strategy": "sdm", "provenance": made_with()} | changes))
    for direction in DIRECTIONS:
        assert differences(compare(tmp_path), direction) == {"itc": "baseline", "sdm": reason}


def test_all_seeds_have_to_have_the_same_queries(tmp_path: Path) -> None:
    save_run(tmp_path / "itc", ITC, strategy="itc", provenance=made_with())
    for seed, pids in ((1, PIDS), (2, PIDS[::-1])):
        save_run(tmp_path / f"sdm{seed}", SDM, strategy="sdm", seed=seed, pids=pids)
    for seed in (1, 2):
        provenance = made_with(data={"annotations": str(seed) * 64})
        save_run(tmp_path / f"irra{seed}", SDM, strategy="irra", seed=seed, provenance=provenance)
    found = differences(compare(tmp_path, mixed=True))
    assert found == {"itc": "baseline", "sdm": "other queries", "irra": "other annotations"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no ranks.npz"),
        ("foreign", "damaged ranks.npz"),
        ("cut", "damaged ranks.npz"),
        ("overflow", "damaged ranks.npz"),
        ("other test", "ranks.npz of another test"),
        ("one direction", "no ranks of t2i"),
    ],
)
@pytest.mark.parametrize("strategy", ["itc", "sdm"])
def test_ranks_that_cannot_be_used_are_named_in_the_row(
    tmp_path: Path, strategy: str, content: str | None, reason: str
) -> None:
    for name, ranks in (("itc", ITC), ("sdm", SDM)):
        save_run(tmp_path / name, ranks, strategy=name, seed=7)
    file = tmp_path / strategy / RANKS_FILE
    if content is None:
        file.unlink()
    elif content == "foreign":
        file.write_text("[]", encoding="utf-8")
    elif content == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    elif content == "overflow":
        arrays = {"ranks": np.zeros(0, int), "counts": np.full(4, 2**62), "pids": np.arange(4)}
        np.savez(file, **{f"t2i_{part}": array for part, array in arrays.items()})
    else:
        found = Ranks.of([np.array(own) for own in [*ITC[1:], ITC[1]]])
        save_ranks(
            file.parent, {"t2i" if content == "other test" else "i2t": found}, dict.fromkeys(DIRECTIONS, np.array(PIDS))
        )
    whose = "baseline, seed 7" if strategy == "itc" else "seed 7"
    assert differences(compare(tmp_path)) == {"itc": "baseline", "sdm": f"{whose}: {reason}"}


def test_a_row_is_compared_with_the_baseline_that_has_its_queries(tmp_path: Path) -> None:
    for dataset, pids in (("drawn", PIDS), ("rstpreid", [1, 1, 2, 2, 3, 3, 4, 4])):
        save_run(tmp_path / dataset / "itc", ITC, strategy="itc", pids=pids, dataset=dataset)
        save_run(tmp_path / dataset / "sdm", SDM, strategy="sdm", pids=pids, dataset=dataset)
    save_run(tmp_path / "gamma", SDM, strategy="itc", variant="gamma=64")
    cells = [row[-1][:8] for row in rows_of(compare(tmp_path))[1:6]]
    assert cells == ["+50.00 [", "+50.00 [", "baseline", "+50.00 [", "baseline"]
    chosen = [row[-1] for row in rows_of(compare(tmp_path, "itc gamma=64"))[1:6]]
    assert chosen.count("baseline") == 1
    assert chosen.count("another dataset") == 2


def test_a_baseline_that_is_no_row_or_several_is_refused(tmp_path: Path) -> None:
    for backbone in ("clip", "m_siglip"):
        save_run(tmp_path / backbone, ITC, strategy="itc", backbone=backbone)
    save_run(tmp_path / "sdm", SDM, strategy="sdm")
    with pytest.raises(
        UserError, match=r"'itk' is no row of the table; expected 'itc clip' or .* Did you mean 'itc'\?"
    ):
        compare(tmp_path, "itk")
    with pytest.raises(UserError, match=r"'itc' is the name of several rows; expected 'itc clip' or 'itc m_siglip'$"):
        compare(tmp_path, "itc")
    assert [row[-1][:8] for row in rows_of(compare(tmp_path, "itc clip"))[1:4]] == ["baseline", "+0.00 [+", "+50.00 ["]
    unchosen = compare(tmp_path, None)
    assert "Δ" not in str(unchosen).splitlines()[2]
    assert "no differences to a baseline: --baseline 'itc' is the name of several rows" in str(unchosen)


def test_the_default_baseline_is_one_that_the_table_names(tmp_path: Path) -> None:
    save_run(tmp_path / "1", ITC, strategy="irra")
    save_run(tmp_path / "2", SDM, strategy="sdm")
    assert compare(tmp_path, None) == compare_runs(find_metrics([tmp_path]))
    with pytest.raises(UserError, match="--metric mAP is tested against a row: name it with --baseline"):
        compare(tmp_path, None, "mAP")
    for strategy in ("itc", "baseline"):
        save_run(tmp_path / strategy, ITC, strategy=strategy)
        assert differences(compare(tmp_path, None))[strategy] == "baseline"
        assert f"difference to {strategy} (the default; --baseline names another)" in str(compare(tmp_path, None))


@pytest.mark.parametrize("metric", ["R2", "cmc"])
def test_other_recorded_metrics(tmp_path: Path, metric: str) -> None:
    for strategy, ranks in (("itc", ITC), ("sdm", SDM)):
        save_run(tmp_path / strategy, ranks, strategy=strategy)
        file = tmp_path / strategy / "metrics.json"
        text = file.read_text(encoding="utf-8").replace(
            '"R1": ', f'"{metric}": {100 * (strategy == "sdm") or 75.0}, "R1": '
        )
        file.write_text(text, encoding="utf-8")
    if metric == "cmc":
        with pytest.raises(UserError, match="--metric cmc cannot be tested: name R and a number, or R1 or R5"):
            compare(tmp_path, metric=metric)
    else:
        test = differences(compare(tmp_path, metric=metric))["sdm"]
        assert isinstance(test, PairedTest)
        assert test.difference == 25


def test_older_names_of_datasets_are_read_as_the_new_ones(tmp_path: Path) -> None:
    for seed, dataset in enumerate(("vn3k_vi-vi", "vn3k_vi", "drawn-vi")):
        save_run(tmp_path / str(seed), ITC, strategy="itc", seed=seed, dataset=dataset)
    groups = compare_runs(find_metrics([tmp_path])).groups
    assert [(group.info["dataset"], group.seeds) for group in groups] == [("drawn-vi", [2]), ("vn3k_vi", [0, 1])]
