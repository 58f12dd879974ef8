"""Ranks of positives against sorting, metrics as functions of them, and the file that a run keeps them in."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import utils.ranking
from utils.errors import UserError
from utils.ranking.metrics import METRICS, STANDARD, measure
from utils.ranking.positives import Ranks, load_ranks, save_ranks
from utils.ranking.retrieval import Retrieval, positive_ranks, rank_both, retrieval_metrics, top_k

Case = tuple[Tensor, Tensor, Tensor, Tensor]
ROOT = Path(__file__).parents[3]


def drawn(texts: int = 70, images: int = 90, identities: int = 20, *, tied: bool = False) -> Case:
    draw = torch.Generator().manual_seed(texts + images)
    features = [normalize(torch.randn(number, 8, generator=draw), dim=1) for number in (texts, images)]
    if tied:
        features = [(2 * part).round() / 2 for part in features]
    text_pids, image_pids = (
        (torch.arange(number) % identities)[torch.randperm(number, generator=draw)] for number in (texts, images)
    )
    return (*features, 5 * text_pids - 7, 5 * image_pids - 7)


def sorted_ranks(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> list[list[int]]:
    """The ranks by sorting every row, wrong items first among equal scores."""
    found = []
    for feature, pid in zip(query.double(), query_pids.tolist(), strict=True):
        scores = [round(float(score), 6) for score in gallery.double() @ feature]
        right = [other == pid for other in gallery_pids.tolist()]
        order = sorted(range(len(right)), key=lambda item: (-scores[item], right[item]))
        found.append([rank for rank, item in enumerate(order, start=1) if right[item]])
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk_size", [64, None])
def test_ranks_are_those_of_sorting_in_the_order_of_the_queries(tied: bool, chunk_size: int | None) -> None:
    texts, images, text_pids, image_pids = case = drawn(tied=tied)
    expected = sorted_ranks(*case), sorted_ranks(images, texts, image_pids, text_pids)
    ranks = positive_ranks(*case, chunk_size=chunk_size)
    assert [own.tolist() for own in ranks] == expected[0]
    assert {own.dtype.kind for own in ranks} == {"i"}
    both = rank_both(*case, chunk_size=chunk_size)
    assert [[own.tolist() for own in side.as_list()] for side in both] == list(expected)


def test_a_query_without_a_positive_has_no_ranks_where_that_is_allowed() -> None:
    texts, images, text_pids, image_pids = drawn()
    text_pids[[0, 5, 69]] = 999
    with pytest.raises(UserError, match=r"query 0 \(pid 999\) has no positive"):
        positive_ranks(texts, images, text_pids, image_pids)
    ranks = positive_ranks(texts, images, text_pids, image_pids, skip_unmatched=True)
    assert [own.tolist() for own in ranks] == sorted_ranks(texts, images, text_pids, image_pids)
    assert [query for query, own in enumerate(ranks) if not len(own)] == [0, 5, 69]
    metrics = measure(Ranks.of(ranks))
    assert metrics == retrieval_metrics(texts, images, text_pids, image_pids, skip_unmatched=True)
    assert (metrics.queries, metrics.skipped) == (67, 3)


def test_lists_and_ranks_are_the_same() -> None:
    ranks = Ranks.of([np.array([1, 4]), np.array([], dtype=int), np.array([3]), np.array([2, 5, 6])])
    assert [own.tolist() for own in ranks.as_list()] == [[1, 4], [], [3], [2, 5, 6]]
    assert [own.tolist() for own in ranks.take(np.array([3, 1, 0])).as_list()] == [[2, 5, 6], [], [1, 4]]
    found = ranks.matched()
    assert (found.first.tolist(), found.last.tolist()) == ([1, 3, 2], [4, 3, 6])
    assert found.place.tolist() == [1, 2, 1, 1, 2, 3]
    assert found.mean(found.values).tolist() == [2.5, 3, 13 / 3]
    assert found.mean(found.values <= 2).tolist() == [(found.as_list()[i] <= 2).mean() for i in range(3)]
    assert Ranks.of([]).as_list() == []


def test_metrics_of_known_ranks() -> None:
    ranks = Ranks.of([np.array([1, 4]), np.array([3]), np.array([7, 8])])
    values = {name: metric(ranks).astype(float).tolist() for name, metric in STANDARD.items()}
    assert values == {
        "R1": [1, 0, 0],
        "R5": [1, 1, 0],
        "R10": [1, 1, 1],
        "mAP": [(1 + 2 / 4) / 2, 1 / 3, (1 / 7 + 2 / 8) / 2],
        "mINP": [2 / 4, 1 / 3, 2 / 8],
    }
    metrics = measure(ranks)
    assert tuple(metrics.as_dict()) == METRICS
    assert metrics.R1 == metrics.values["R1"] == pytest.approx(100 / 3)


def test_a_new_metric_is_a_function_of_ranks_and_a_name() -> None:
    metrics = measure(Ranks.of([np.array([2, 4]), np.array([1])]), {"MRR": lambda ranks: 1 / ranks.first})
    assert metrics.as_row() == {"MRR": 75.0, "queries": 2, "skipped": 0}
    assert metrics.MRR == 75.0
    with pytest.raises(AttributeError, match="no metric 'R1' here, only MRR"):
        _ = metrics.R1
    assert pickle.loads(pickle.dumps(retrieval_metrics(*drawn()))) == retrieval_metrics(*drawn())


def test_the_package_names_what_is_public_and_loads_no_pytorch_for_the_names_of_metrics() -> None:
    assert utils.ranking.positive_ranks is positive_ranks
    assert utils.ranking.retrieval_metrics is retrieval_metrics
    assert {name for name in utils.ranking.__all__ if getattr(utils.ranking, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'positive_rank'"):
        _ = utils.ranking.positive_rank
    code = "import sys; from utils.ranking.metrics import METRICS; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_retrieval_ranks_in_both_directions() -> None:
    texts, images, text_pids, image_pids = case = drawn()
    retrieval = Retrieval(images, image_pids, texts, text_pids)
    ranks = retrieval.ranks()
    assert [own.tolist() for own in ranks["t2i"].as_list()] == sorted_ranks(*case)
    assert [own.tolist() for own in ranks["i2t"].as_list()] == sorted_ranks(images, texts, image_pids, text_pids)
    assert {d: len(pids) for d, pids in retrieval.query_pids().items()} == {"t2i": 70, "i2t": 90}
    indices, scores = retrieval.best_images([3, 8], 4)
    assert torch.equal(indices, top_k(texts, images, 4)[0][[3, 8]])
    assert scores.shape == (2, 4)


def saved_file(tmp_path: Path) -> Path:
    retrieval = Retrieval(*(drawn()[i] for i in (1, 3, 0, 2)))
    return save_ranks(tmp_path / "run", retrieval.ranks(), retrieval.query_pids())


def test_saved_ranks_are_loaded_as_they_were_without_pickle(tmp_path: Path) -> None:
    _, _, text_pids, image_pids = case = drawn()
    path = saved_file(tmp_path)
    found = load_ranks(path)
    assert [path.name for path in path.parent.iterdir()] == ["ranks.npz"]
    assert list(found) == ["t2i", "i2t"]
    for (ranks, pids), expected, own in zip(found.values(), rank_both(*case), (text_pids, image_pids), strict=True):
        assert np.array_equal(ranks.values, expected.values)
        assert np.array_equal(ranks.counts, expected.counts)
        assert np.array_equal(pids, own.numpy())
    assert path.read_bytes() == saved_file(tmp_path / "again").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"t2i_ranks": np.array([{}], dtype=object)},
        {"t2i_ranks": np.zeros(3)},
        {"t2i_counts": np.array([4, -1])},
        {"i2t_pids": np.zeros(2, dtype=int)},
        {"other": np.zeros(2, dtype=int)},
        None,
    ],
)
def test_a_foreign_file_of_ranks_is_named(tmp_path: Path, changes: dict[str, np.ndarray] | None) -> None:
    path = saved_file(tmp_path)
    if changes is None:
        path.write_bytes(path.read_bytes()[:-200])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, **changes})
    with pytest.raises(UserError, match=r"ranks\.npz is not a ranks\.npz that this framework wrote"):
        load_ranks(path)


def test_ranks_of_a_large_split_take_little_room(tmp_path: Path) -> None:
    """As many as CUHK-PEDES has: 6,156 captions and 3,074 images of 1,000 persons."""
    texts, images, text_pids, image_pids = drawn(6156, 3074, 1000)
    retrieval = Retrieval(images, image_pids, texts, text_pids)
    assert save_ranks(tmp_path, retrieval.ranks(), retrieval.query_pids()).stat().st_size < 300_000
