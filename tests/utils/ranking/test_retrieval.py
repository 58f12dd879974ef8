"""`retrieval_metrics` against the definition in plain Python, and what it must never allocate."""

import doctest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from utils.errors import UserError
from utils.ranking import retrieval
from utils.ranking.metrics import METRICS
from utils.ranking.retrieval import both_directions, full_precision, retrieval_metrics, top_k

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def oracle(query: Tensor, gallery: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> dict[str, float]:
    """The metrics by sorting every row, wrong items first among equal scores."""
    sums = dict.fromkeys(METRICS, 0.0)
    for feature, pid in zip(query.double(), query_pids.tolist(), strict=True):
        scores = [round(float(score), 6) for score in gallery.double() @ feature]
        right = [other == pid for other in gallery_pids.tolist()]
        order = sorted(range(len(right)), key=lambda item: (-scores[item], right[item]))
        ranks = [rank for rank, item in enumerate(order, start=1) if right[item]]
        for k in (1, 5, 10):
            sums[f"R{k}"] += any(rank <= k for rank in ranks)
        sums["mAP"] += sum(i / rank for i, rank in enumerate(ranks, start=1)) / len(ranks)
        sums["mINP"] += len(ranks) / ranks[-1]
    return {name: 100 * total / len(query) for name, total in sums.items()}


def case(queries: int, gallery: int, identities: int, dim: int = 16, *, seed: int = 0, noise: float = 1.0) -> Case:
    """Random features around one centre per identity; every identity is in the gallery at least once."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(identities, dim, generator=draw)
    more = torch.randint(identities, (gallery - identities,), generator=draw)
    gallery_pids = torch.cat([torch.arange(identities), more])[torch.randperm(gallery, generator=draw)]
    query_pids = torch.randint(identities, (queries,), generator=draw)
    query, items = (
        normalize(centers[pids] + noise * torch.randn(len(pids), dim, generator=draw), dim=1)
        for pids in (query_pids, gallery_pids)
    )
    return query, items, 7 * query_pids - 3, 7 * gallery_pids - 3


def both_sided(texts: int, images: int, identities: int, **options: float) -> Case:
    """A case in which every identity has a text and an image."""
    text, image, text_pids, image_pids = case(texts, images, identities, **options)
    paired = torch.isin(image_pids, text_pids)
    return text, image[paired], text_pids, image_pids[paired]


def quantized(features: Tensor, steps: int = 1) -> Tensor:
    """Features of few values, whose inner products are exact in fp32 and often equal."""
    return (features * features.shape[1] ** 0.5 * steps).round() / 4


def tied_case() -> Case:
    query, gallery, query_pids, gallery_pids = case(50, 83, 12, dim=6)
    return quantized(query), quantized(gallery), query_pids, gallery_pids


CASES = {
    "random": case(40, 90, 25),
    "more queries than gallery": case(130, 30, 11, seed=1),
    "one query": case(1, 20, 5, seed=2),
    "one item": case(3, 1, 1, seed=3),
    "well separated": case(60, 60, 15, noise=0.1, seed=4),
    "hundreds of positives": case(9, 700, 2, seed=5),
    "uneven": tuple(torch.cat([a, b]) for a, b in zip(case(9, 300, 2, seed=6), case(40, 60, 30, seed=7), strict=True)),
    "ties": tied_case(),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str) -> None:
    metrics = retrieval_metrics(*CASES[name], chunk_size=32)
    assert metrics.as_dict() == pytest.approx(oracle(*CASES[name]), abs=1e-9)
    assert (metrics.queries, metrics.skipped) == (len(CASES[name][0]), 0)


@pytest.mark.parametrize("name", [name for name in CASES if name != "ties"])
def test_equals_scikit_learn_and_torchmetrics(name: str) -> None:
    query, gallery, query_pids, gallery_pids = CASES[name]
    scores = query.double() @ gallery.double().T
    right = query_pids[:, None] == gallery_pids
    metrics = retrieval_metrics(query, gallery, query_pids, gallery_pids).as_dict()
    precision = [average_precision_score(row, score) for row, score in zip(right.numpy(), scores.numpy(), strict=True)]
    assert metrics["mAP"] == pytest.approx(100 * sum(precision) / len(precision), abs=1e-6)
    queries = torch.arange(len(query))[:, None].expand_as(right).flatten()
    found = {"mAP": RetrievalMAP()} | {f"R{k}": RetrievalHitRate(top_k=k) for k in (1, 5, 10)}
    for key, metric in found.items():  # which takes what scores 0 or less for not retrieved
        value = metric((scores + 2).flatten(), right.flatten(), indexes=queries)
        assert metrics[key] == pytest.approx(100 * value.item(), abs=1e-4), key


def test_the_tied_case_is_decided_by_ties() -> None:
    query, gallery, query_pids, gallery_pids = CASES["ties"]
    scores = query @ gallery.T
    best_right = scores.where(query_pids[:, None] == gallery_pids, -torch.inf).amax(dim=1)
    best_wrong = scores.where(query_pids[:, None] != gallery_pids, -torch.inf).amax(dim=1)
    assert (best_right == best_wrong).any()
    metrics = retrieval_metrics(*CASES["ties"]).as_dict()
    assert metrics["R1"] == pytest.approx(100 * (best_right > best_wrong).double().mean().item())


def test_ties_among_positives_do_not_hurt() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    metrics = retrieval_metrics(gallery[:1], gallery, torch.tensor([5]), torch.tensor([5, 5, 9]))
    assert metrics.as_dict() == dict.fromkeys(METRICS, 100.0)


def test_ids_may_have_any_integer_type_and_any_value() -> None:
    query, gallery, query_pids, gallery_pids = CASES["random"]
    expected = retrieval_metrics(query, gallery, query_pids, gallery_pids)
    assert retrieval_metrics(query, gallery, query_pids.int(), gallery_pids) == expected
    assert retrieval_metrics(query, gallery, query_pids + 2**40, gallery_pids + 2**40) == expected


@pytest.mark.parametrize("dim", [3, 64, 513])
def test_a_collapsed_model_scores_near_zero(dim: int) -> None:
    query, gallery, query_pids, gallery_pids = case(101, 203, 100, dim=dim, seed=8)
    one = normalize(torch.randn(1, dim), dim=1)
    metrics = retrieval_metrics(one.expand_as(query), one.expand_as(gallery), query_pids, gallery_pids)
    assert metrics.R1 == metrics.R5 == metrics.R10 == 0
    assert metrics.mAP < 2


@pytest.mark.parametrize(("queries", "items", "dim"), [(1, 9, 513), (31, 3, 512), (3, 333, 513), (150, 70, 64)])
def test_equal_features_tie_wherever_they_stand(queries: int, items: int, dim: int) -> None:
    query, gallery, query_pids, gallery_pids = case(queries, items, items, dim=dim, noise=0.3, seed=9)
    assert retrieval_metrics(query, gallery, query_pids, gallery_pids).R1 > 90
    twice = retrieval_metrics(query, gallery.repeat(2, 1), query_pids, torch.cat([gallery_pids, gallery_pids + 1000]))
    assert twice.R1 == 0
    assert twice.R5 > 90


@pytest.mark.parametrize("name", ["random", "more queries than gallery", "uneven", "ties"])
def test_chunks_change_nothing(name: str) -> None:
    whole = retrieval_metrics(*CASES[name], chunk_size=10_000)
    for chunk_size in (1, 7, 64, 100):
        metrics = retrieval_metrics(*CASES[name], chunk_size=chunk_size)
        assert metrics.as_dict() == pytest.approx(whole.as_dict(), abs=1e-9)


def test_order_of_queries_and_gallery_changes_nothing() -> None:
    query, gallery, query_pids, gallery_pids = CASES["uneven"]
    rows, columns = torch.randperm(len(query)), torch.randperm(len(gallery))
    shuffled = retrieval_metrics(query[rows], gallery[columns], query_pids[rows], gallery_pids[columns])
    assert shuffled.as_dict() == pytest.approx(retrieval_metrics(*CASES["uneven"]).as_dict(), abs=1e-9)


def test_ranks_in_fp32_whatever_the_features_and_the_mode() -> None:
    query, gallery, query_pids, gallery_pids = case(300, 300, 100, dim=256)
    indices, scores = top_k(query, gallery, 5)
    expected = retrieval_metrics(query, gallery, query_pids, gallery_pids)
    assert retrieval_metrics(query.double(), gallery.double(), query_pids, gallery_pids) == expected
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert retrieval_metrics(query, gallery, query_pids, gallery_pids) == expected
            again = top_k(query, gallery, 5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again[0], indices)
    assert torch.equal(again[1], scores)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_memory_of_top_k_is_bounded_by_the_chunk() -> None:
    query, gallery, *_ = case(1500, 1100, 400, dim=8)
    with LargestTensor() as largest:
        top_k(query, gallery, 10, chunk_size=64)
    tiled_width = 1152
    assert 64 * 1100 <= largest.elements <= 64 * tiled_width < len(query) * len(gallery) / 20


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("rank", [retrieval_metrics, both_directions])
def test_memory_of_ranking_is_bounded_by_features_and_blocks(rank: Callable[..., object]) -> None:
    features = both_sided(1500, 1100, 200, dim=8)
    with LargestTensor() as largest:
        rank(*features, chunk_size=192)
    assert 192 * 192 <= largest.elements < 1.1 * 192 * 192 < 1500 * 1100 / 40


BOTH = {
    "as many": both_sided(90, 80, 25),
    "two texts an image": both_sided(200, 100, 40, seed=11),
    "one identity": both_sided(5, 7, 1, seed=12),
    "one pair": both_sided(1, 1, 1, seed=13),
    "uneven": tuple(
        torch.cat(parts) for parts in zip(both_sided(60, 90, 2, seed=14), both_sided(50, 40, 20, seed=15), strict=True)
    ),
    "ties": tuple(quantized(part) if part.is_floating_point() else part for part in both_sided(80, 70, 12, dim=6)),
}


@pytest.mark.parametrize("chunk_size", [1, 128, None])
@pytest.mark.parametrize("name", BOTH)
def test_both_directions_equal_the_definition(name: str, chunk_size: int | None) -> None:
    texts, images, text_pids, image_pids = BOTH[name]
    t2i, i2t = both_directions(*BOTH[name], chunk_size=chunk_size)
    assert t2i.as_dict() == pytest.approx(oracle(texts, images, text_pids, image_pids), abs=1e-9)
    assert i2t.as_dict() == pytest.approx(oracle(images, texts, image_pids, text_pids), abs=1e-9)
    assert (t2i.queries, i2t.queries) == (len(texts), len(images))


@pytest.mark.parametrize(("texts", "items", "dim"), [(2, 9, 513), (33, 30, 512), (150, 70, 64), (700, 300, 100)])
def test_equal_features_tie_in_both_directions(texts: int, items: int, dim: int) -> None:
    """Texts of identities 1000 on are those of 0 on again, and so are images: right and wrong always tie."""
    features = both_sided(texts, items, items, dim=dim, noise=0.3, seed=16)
    text, image, text_pids, image_pids = features
    alone = both_directions(*features, chunk_size=128)
    assert min(metrics.R1 for metrics in alone) > 90
    pids = (torch.cat([ids, ids + 1000]) for ids in (text_pids, image_pids))
    t2i, i2t = both_directions(text.repeat(2, 1), image.repeat(2, 1), *pids, chunk_size=128)
    assert t2i.R1 == i2t.R1 == 0


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing_and_leave_torch_as_it_was(threads: int) -> None:
    features = both_sided(900, 700, 150, seed=17)
    expected = both_directions(*features, chunk_size=64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert both_directions(*features, chunk_size=64) == expected
        assert torch.get_num_threads() == threads
        assert in_new_thread(torch.get_num_threads) == threads
    finally:
        torch.set_num_threads(before)


def in_new_thread(work: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_threads_rank_in_the_inference_mode_of_evaluation_loops() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            inside = both_directions(*(side.clone() for side in BOTH["as many"]), chunk_size=64)
    finally:
        torch.set_num_threads(before)
    assert inside == both_directions(*BOTH["as many"], chunk_size=64)


def test_a_gradient_of_the_features_is_not_recorded() -> None:
    texts, images, *pids = BOTH["as many"]
    assert both_directions(texts.clone().requires_grad_(), images, *pids) == both_directions(*BOTH["as many"])


def test_both_directions_name_the_side_without_a_positive() -> None:
    texts, images, text_pids, image_pids = BOTH["as many"]
    lost = text_pids.clone()
    lost[[4, 11]] = torch.tensor([999, 1001])
    with pytest.raises(UserError, match=r"text 4 \(pid 999\) has no positive in the images \(2 of 90 have none\)"):
        both_directions(texts, images, lost, image_pids)
    lost = image_pids.clone()
    lost[3] = 999
    with pytest.raises(UserError, match=r"image 3 \(pid 999\) has no positive in the texts \(1 of"):
        both_directions(texts, images, text_pids, lost)


def test_a_query_without_a_positive_is_named_or_counted() -> None:
    query, gallery, query_pids, gallery_pids = case(20, 40, 10, seed=10)
    lost = query_pids.clone()
    lost[[4, 11]] = torch.tensor([999, 1001])
    with pytest.raises(UserError, match=r"query 4 \(pid 999\) has no positive in the gallery \(2 of 20"):
        retrieval_metrics(query, gallery, lost, gallery_pids)
    metrics = retrieval_metrics(query, gallery, lost, gallery_pids, skip_unmatched=True)
    kept = lost < 999
    assert metrics.as_dict() == pytest.approx(oracle(query[kept], gallery, lost[kept], gallery_pids), abs=1e-9)
    assert (metrics.queries, metrics.skipped) == (18, 2)
    with pytest.raises(UserError, match="no query of 20 has a positive"):
        retrieval_metrics(query, gallery, lost + 5000, gallery_pids, skip_unmatched=True)


def with_nan(features: Tensor, row: int) -> Tensor:
    features = features.clone()
    features[row, 2] = torch.nan
    return features


BAD = {
    "query feature 3 is not finite": lambda q, g, qp, gp: (with_nan(q, 3), g, qp, gp),
    "gallery feature 5 is not finite": lambda q, g, qp, gp: (q, with_nan(g, 5), qp, gp),
    "no query features to rank": lambda q, g, qp, gp: (q[:0], g, qp[:0], gp),
    "no gallery features to rank": lambda q, g, qp, gp: (q, g[:0], qp, gp[:0]),
    "must share dimension": lambda q, g, qp, gp: (q, g[:, :4], qp, gp),
    r"got torch.float32 of shape \(20, 1, 16\)": lambda q, g, qp, gp: (q[:, None], g, qp, gp),
    "gallery features must be floating point": lambda q, g, qp, gp: (q, g.long(), qp, gp),
    "query pids must be integers, got torch.float32": lambda q, g, qp, gp: (q, g, qp.float(), gp),
    r"gallery pids \(39,\) on cpu must be one per feature": lambda q, g, qp, gp: (q, g, qp, gp[1:]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_sentence(message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        retrieval_metrics(*BAD[message](*case(20, 40, 10)))
    assert "\n" not in str(error.value)


def test_top_k_equals_sorting() -> None:
    query, gallery, *_ = CASES["random"]
    expected = (query @ gallery.T).sort(dim=1, descending=True)
    indices, scores = top_k(query, gallery, 5, chunk_size=16)
    assert torch.equal(indices, expected.indices[:, :5])
    assert torch.allclose(scores, expected.values[:, :5], atol=1e-6)
    assert top_k(query, gallery, 1000)[0].shape == (40, 90)


def test_docstring_examples() -> None:
    result = doctest.testmod(retrieval)
    assert result.attempted > 0
    assert result.failed == 0


MATMUL = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("older", "newer"), [("highest", ("none", "none")), ("high", None), ("medium", None), ("highest", ("tf32", "bf16"))]
)
def test_full_precision_is_readable_inside_and_gone_after(older: str, newer: tuple[str, str] | None) -> None:
    """CUDA's matrix products read settings, an error where the older and the newer kind contradict each other."""
    start = [product.fp32_precision for product in MATMUL]
    torch.set_float32_matmul_precision(older)
    try:
        for product, precision in zip(MATMUL, newer or (), strict=newer is not None):
            product.fp32_precision = precision
        before = [product.fp32_precision for product in MATMUL]
        with full_precision():
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            assert {product.fp32_precision for product in MATMUL} == {"ieee"}
        assert [product.fp32_precision for product in MATMUL] == before
        if newer is None:
            assert torch.get_float32_matmul_precision() == older
            assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        for product, precision in zip(MATMUL, start, strict=True):
            product.fp32_precision = precision
