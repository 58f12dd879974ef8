"""Similarities of pairs against a loop over all of them, and what the two pictures show."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn.functional import normalize

from tests.memory import LargestTensor
from utils.report.plots import similarity as similarity_pictures
from utils.report.plots.similarity import (
    FINE_BINS,
    PairSimilarities,
    histogram_picture,
    pair_similarities,
    word_maps_picture,
)

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def split(queries: int = 30, items: int = 20, blocks: int = 1) -> Split:
    """Features of ten identities, of `blocks` unit-norm blocks each; those of an identity lie close together."""
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(10, blocks, 8, generator=draw)
    query_pids, gallery_pids = torch.arange(queries) % 10, torch.arange(items) % 10
    query, gallery = (
        normalize(centers[pids] + 0.4 * torch.randn(len(pids), blocks, 8, generator=draw), dim=2).flatten(1)
        for pids in (query_pids, gallery_pids)
    )
    return query, gallery, query_pids, gallery_pids


def scores_of(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> tuple[list[float], ...]:
    """The similarities of pairs of the same, and of another identity, one by one."""
    kinds: tuple[list[float], list[float]] = ([], [])
    for q, q_pid in zip(query.double(), query_pids.tolist(), strict=True):
        for g, g_pid in zip(gallery.double(), gallery_pids.tolist(), strict=True):
            kinds[0 if q_pid == g_pid else 1].append(float(q @ g))
    return kinds


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("chunk_size", [1, 7, 256])
def test_densities_means_and_overlap_equal_a_loop_over_all_pairs(
    chunk_size: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity_pictures, "CHUNK_SIZE", chunk_size)
    found = pair_similarities(*split(blocks=blocks))
    kinds = scores_of(*split(blocks=blocks))
    edges = found.edges.double()
    assert len(edges) <= similarity_pictures.SHOWN_BINS + 1
    even = (edges[-1] - edges[0]).expand(len(edges) - 1) / (len(edges) - 1)
    torch.testing.assert_close(edges.diff(), even, rtol=1e-4, atol=1e-6)
    assert (found.same_pairs, found.other_pairs) == tuple(len(scores) for scores in kinds) == (60, 540)
    densities = []
    for scores, density, mean in zip(
        kinds, (found.same, found.other), (found.same_mean, found.other_mean), strict=True
    ):
        counts, _ = np.histogram(scores, edges.numpy())
        # A score may be rounded to the other side of an edge, none further.
        cumulated = (density * found.edges.diff()).cumsum(0) * len(scores)
        torch.testing.assert_close(
            cumulated.double(), torch.tensor(counts.cumsum(), dtype=torch.float64), atol=1.01, rtol=0
        )
        assert float((density * found.edges.diff()).sum()) == pytest.approx(1, abs=1e-5)
        assert mean == pytest.approx(sum(scores) / len(scores), abs=1e-6)
        densities.append(counts / len(scores))
    assert found.overlap == pytest.approx(float(np.minimum(*densities).sum()), abs=0.04)
    assert found.as_dict() == {"same_mean": found.same_mean, "other_mean": found.other_mean, "overlap": found.overlap}


def test_bins_lie_over_the_similarities_that_occur() -> None:
    same, other = scores_of(*split())
    edges = pair_similarities(*split()).edges
    fine = 2 / FINE_BINS
    assert float(edges[0]) == pytest.approx(min(same + other), abs=2 * fine)
    assert float(edges[-1]) == pytest.approx(max(same + other), abs=similarity_pictures.SHOWN_BINS * fine)


def test_overlap_is_none_for_kinds_that_lie_apart_and_all_for_kinds_that_do_not_differ() -> None:
    axes, pids = torch.eye(6), torch.arange(6)
    apart = pair_similarities(axes, axes, pids, pids)
    assert (apart.same_mean, apart.other_mean, apart.overlap) == (1, 0, 0)
    collapsed = pair_similarities(axes[:1].expand(6, -1), axes[:1].expand(6, -1), pids, pids)
    assert collapsed.overlap == pytest.approx(1)
    assert len(collapsed.same) == 1


def test_the_matrix_of_all_pairs_never_exists() -> None:
    inputs = split(queries=3000, items=1000)
    largest = LargestTensor()
    with largest:
        found = pair_similarities(*inputs)
    assert found.same_pairs + found.other_pairs == 3000 * 1000
    assert largest.numel == similarity_pictures.CHUNK_SIZE * 1000


def test_one_identity_has_no_pairs_of_another_and_still_a_picture() -> None:
    query, gallery, query_pids, gallery_pids = split()
    found = pair_similarities(query, gallery, torch.zeros_like(query_pids), torch.zeros_like(gallery_pids))
    assert (found.same_pairs, found.other_pairs, found.overlap) == (600, 0, 0)
    assert np.isnan(found.other_mean)
    assert histogram_picture(found, "one person").size == histogram_picture(pair_similarities(*split()), "ten").size


def test_the_histogram_is_saved_and_shows_which_is_which(tmp_path: Path) -> None:
    found = pair_similarities(*split())
    picture = histogram_picture(found, "test split", tmp_path / "similarities.png")
    assert Image.open(tmp_path / "similarities.png").tobytes() == picture.tobytes()
    swapped = PairSimilarities(
        found.edges, found.other, found.same, found.same_pairs, found.other_pairs, found.same_mean, found.other_mean
    )
    assert histogram_picture(swapped, "test split") != picture


DrawnMaps = Callable[..., Image.Image]


@pytest.fixture
def draw_maps() -> DrawnMaps:
    """``draw_maps(words, before=..., after=...)`` -> the picture of random maps of 6 tokens over 8 x 4 patches."""
    before = torch.rand(6, 32, generator=torch.Generator().manual_seed(0))
    maps = {"before": before, "after": before.masked_fill(before < 0.5, 0)}

    def draw(words: list[tuple[str, list[int]]], path: Path | None = None, **other: Tensor) -> Image.Image:
        shown = {**maps, **other}
        photo = Image.new("RGB", (50, 130), "#3060c0")
        return word_maps_picture(photo, "áo khoác đen", words, shown["before"], shown["after"], (8, 4), path)

    return draw


def test_word_maps_are_saved_with_a_column_for_each_word(draw_maps: DrawnMaps, tmp_path: Path) -> None:
    one = draw_maps([("áo", [0])], tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").tobytes() == one.tobytes()
    assert draw_maps([("áo", [0]), ("khoác", [1, 2])]).width > one.width


def test_only_the_rows_of_the_words_shown_change_the_picture(draw_maps: DrawnMaps) -> None:
    words = [("áo", [0]), ("khoác", [1, 2])]
    picture = draw_maps(words)
    for name in ("before", "after"):
        assert draw_maps(words, **{name: torch.ones(6, 32)}) != picture
    before = torch.rand(6, 32, generator=torch.Generator().manual_seed(0))
    padded = before.index_fill(0, torch.tensor([3, 4, 5]), 7.0)
    assert draw_maps(words, before=padded) == picture


def test_pieces_of_a_word_show_their_mean(draw_maps: DrawnMaps) -> None:
    before = torch.rand(6, 32, generator=torch.Generator().manual_seed(0))
    after = before.masked_fill(before < 0.5, 0)
    joined = [torch.stack([maps[1:3].mean(dim=0)]) for maps in (before, after)]
    assert draw_maps([("khoác", [1, 2])]) == draw_maps([("khoác", [0])], before=joined[0], after=joined[1])


def test_the_photo_is_grey_exactly_where_no_similarity_is_left(draw_maps: DrawnMaps) -> None:
    first, last = (draw_maps([("áo", [0])], after=torch.ones(1, 32).index_fill(1, torch.tensor(i), 0)) for i in (0, 31))
    box = ImageChops.difference(first, last).getbbox()
    assert box is not None
    assert box[3] - box[1] == pytest.approx(2 * (box[2] - box[0]), abs=4)  # of the first patch to the last of 8 x 4
    for corner, in_first, in_last in (((box[0] + 8, box[1] + 8), 1, 3), ((box[2] - 8, box[3] - 8), 3, 1)):
        for picture, colors in ((first, in_first), (last, in_last)):
            pixel = picture.getpixel(corner)
            assert isinstance(pixel, tuple)
            assert len(set(pixel)) == colors


def test_letters_composed_and_apart_look_the_same(draw_maps: DrawnMaps) -> None:
    composed, apart = (draw_maps([(unicodedata.normalize(form, "khoác"), [0])]) for form in ("NFC", "NFD"))
    assert composed == apart
