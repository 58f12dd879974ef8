"""What is reported about pseudo labels."""

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from model.prototypes import cluster_statistics


def test_counts_without_identities() -> None:
    assert cluster_statistics(torch.tensor([0, 0, -1, 2, -1])) == {"clusters": 2, "outliers": 2}


def test_perfect_clusters_under_other_numbers() -> None:
    figures = cluster_statistics(torch.tensor([3, 3, 0, 0, -1]), torch.tensor([7, 7, 9, 9, 7]))
    assert figures == pytest.approx({"clusters": 2, "outliers": 1, "purity": 1, "nmi": 1, "ami": 1})


def test_purity_is_the_share_of_the_most_frequent_identity() -> None:
    figures = cluster_statistics(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([5, 5, 6, 6, 6]))
    assert figures["purity"] == pytest.approx(4 / 5)
    assert 0 < figures["ami"] < figures["nmi"] < 1


def test_one_cluster_of_many_persons_says_nothing_about_them() -> None:
    figures = cluster_statistics(torch.zeros(6, dtype=torch.int64), torch.arange(6) // 2)
    assert figures["purity"] == pytest.approx(1 / 3)
    assert figures["nmi"] == pytest.approx(0)
    assert figures["ami"] == pytest.approx(0)


def test_all_outliers_have_counts_only() -> None:
    assert cluster_statistics(torch.full((3,), -1), torch.arange(3)) == {"clusters": 0, "outliers": 3}


@pytest.mark.parametrize(("persons", "clusters"), [(1, 1), (1, 4), (5, 1), (5, 7), (40, 40), (3, 60)])
def test_information_equals_that_of_scikit_learn(persons: int, clusters: int) -> None:
    draw = torch.Generator().manual_seed(persons)
    ids, labels = (torch.randint(most, (60,), generator=draw) for most in (persons, clusters))
    labels = torch.where(torch.rand(60, generator=draw) < 0.6, ids % clusters, labels)
    labels[::9] = -1
    figures, kept = cluster_statistics(labels, ids + 100), labels >= 0
    assert figures["nmi"] == pytest.approx(normalized_mutual_info_score(ids[kept], labels[kept]), abs=1e-9)
    assert figures["ami"] == pytest.approx(adjusted_mutual_info_score(ids[kept], labels[kept]), abs=1e-9)


def test_every_sample_a_cluster_of_its_own() -> None:
    figures = cluster_statistics(torch.arange(6), torch.arange(6))
    assert figures == {"clusters": 6, "outliers": 0, "purity": 1, "nmi": 1, "ami": 1}
