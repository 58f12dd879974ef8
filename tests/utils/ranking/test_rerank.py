"""Re-ranking against loops over every caption, and k-reciprocal distances against those of pseudo labels."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.prototypes import k_reciprocal_jaccard
from utils.errors import UserError
from utils.ranking import rerank as module
from utils.ranking.k_reciprocal import KReciprocal
from utils.ranking.rerank import rerank, reranked_ranks
from utils.ranking.retrieval import Retrieval


def drawn(texts: int = 30, images: int = 40, persons: int = 8, *, gap: float = 0.0) -> Retrieval:
    """Texts and images around one centre a person; `gap` moves the texts away from all images."""
    draw = torch.Generator().manual_seed(texts)
    centers = torch.randn(persons, 12, generator=draw)
    pids = [(torch.arange(count) % persons)[torch.randperm(count, generator=draw)] for count in (images, texts)]
    parts = [normalize(centers[own] + torch.randn(len(own), 12, generator=draw), dim=1) for own in pids]
    parts[1] = normalize(parts[1] + gap, dim=1)
    return Retrieval(parts[0], pids[0], parts[1], pids[1])


def encodings(features: Tensor, k1: int, k2: int) -> np.ndarray:
    """V of the paper, sample by sample."""
    unit = normalize(features.double(), dim=1).numpy()
    d = np.round(2 - 2 * unit @ unit.T, 10)
    count = len(d)
    order = [[i, *sorted((j for j in range(count) if j != i), key=lambda j, i=i: (d[i, j], j))] for i in range(count)]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = np.zeros((count, count))
    for i in range(count):
        start = mutual(i, k1)
        members = set(start)
        for c in start:
            candidates = mutual(c, round(k1 / 2))
            if 3 * len(candidates & start) > 2 * len(candidates):
                members |= candidates
        for j in members:
            v[i, j] = np.exp(-d[i, j])
        v[i] /= v[i].sum()
    return np.stack([v[order[i][:k2]].mean(axis=0) for i in range(count)])


def slow_scores(text: Tensor, images: Tensor, k1: int, k2: int, weight: float) -> list[float]:
    """The scores of a caption's best images, one after another."""
    features = torch.cat([text[None], images])
    v = encodings(features, k1, k2)
    scores = []
    for j in range(1, len(v)):
        shared = sum(min(v[0, k], v[j, k]) for k in range(len(v)))
        plain = 2 - 2 * float(normalize(text.double(), dim=0) @ normalize(images[j - 1].double(), dim=0))
        scores.append(-((1 - weight) * (1 - shared / (2 - shared)) + weight * plain))
    return scores


OPTIONS = [(12, 5, 3, 0.3), (20, 6, 1, 0.3), (100, 8, 6, 0.0), (7, 50, 50, 0.5), (1, 1, 1, 0.3)]


@pytest.mark.parametrize("gap", [0.0, 3.0])
@pytest.mark.parametrize(("top", "k1", "k2", "weight"), OPTIONS)
def test_ranks_are_those_of_sorting_the_new_scores(top: int, k1: int, k2: int, weight: float, gap: float) -> None:
    found = drawn(6, 40, 6, gap=gap)
    ranks = reranked_ranks(found, found.ranks()["t2i"], KReciprocal(top=top, k1=k1, k2=k2, lambda_=weight)).as_list()
    for text, pid, own in zip(found.texts, found.text_pids.tolist(), ranks, strict=True):
        plain = sorted(range(len(found.images)), key=lambda image, text=text: -float(text @ found.images[image]))
        best, others = plain[:top], plain[top:]
        scores = slow_scores(text, found.images[best], k1, k2, weight)
        right = {image: found.image_pids[image] == pid for image in plain}
        new = sorted(range(len(best)), key=lambda place: (-round(scores[place], 5), bool(right[best[place]])))
        order = [best[place] for place in new] + others
        assert own.tolist() == [rank for rank, image in enumerate(order, start=1) if right[image]]


def test_distances_are_those_of_pseudo_labels() -> None:
    found = drawn(3, 25, 3)
    text, best = found.texts[:1], found.images[None]
    scores = KReciprocal(top=25, k1=6, k2=3, lambda_=0.0)(text, best)[0]
    stored = k_reciprocal_jaccard(torch.cat([text, found.images]), k1=6, k2=3)[0].tocoo()
    expected = np.ones(26)
    expected[stored.col] = stored.data
    assert (-scores).tolist() == pytest.approx(expected[1:].tolist(), abs=1e-5)


def test_the_plain_distance_alone_leaves_the_ranking_as_it_is() -> None:
    found = drawn()
    plain = found.ranks()["t2i"]
    again = reranked_ranks(found, plain, KReciprocal(top=10, lambda_=1.0))
    assert np.array_equal(again.values, plain.values)


class Level:
    """Scores all images alike."""

    top, name, options = 9, "level", {"top": 9}

    def __call__(self, texts: Tensor, images: Tensor) -> Tensor:
        return images.new_zeros(images.shape[:2])


def test_ties_count_against_the_query_and_images_behind_the_top_stay_where_they_were() -> None:
    found = drawn()
    plain = found.ranks()["t2i"]
    result = rerank(found, plain, Level())
    for before, after in zip(plain.as_list(), result.ranks.as_list(), strict=True):
        inside = int((before <= 9).sum())
        assert after.tolist() == [*range(10 - inside, 10), *before[inside:]]
    assert (result.as_dict()["name"], result.as_dict()["options"]) == ("level", {"top": 9})
    assert result.as_dict()["t2i"] == result.metrics.as_row()


def test_blocks_of_captions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn()
    plain, reranker = found.ranks()["t2i"], KReciprocal(top=15, k1=6, k2=3)
    whole = reranked_ranks(found, plain, reranker)
    monkeypatch.setattr(module, "CAPTIONS", 7)
    assert np.array_equal(reranked_ranks(found, plain, reranker).values, whole.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, r"evaluation\.rerankers\.k_reciprocal\.top"),
        ({"k1": 0}, r"k_reciprocal\.k1"),
        ({"k2": 1.5}, r"k_reciprocal\.k2"),
        ({"lambda_": 1.1}, r"k_reciprocal\.lambda_: 1.1 given, expected a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KReciprocal(**options)
