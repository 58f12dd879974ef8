"""Labeler: what it finds and keeps, which pairs are trained when, and what there is nothing to learn from."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.labeling import EncodedPairs
from model.objectives import Objective
from model.prototypes import (
    ClusteringResult,
    JaccardDBSCAN,
    KMeans,
    Labeler,
    Labels,
    Modality,
    dbscan,
    k_reciprocal_jaccard,
    kmeans,
    mine_outliers,
)
from utils.errors import UserError

IMAGES, TEXTS = 12, 24
TEXT_IMAGES = torch.arange(TEXTS) // 2
OUTLIERS = Labels(torch.full((IMAGES,), -1), torch.full((TEXTS,), -1))

Cluster = Callable[[Tensor, int], Tensor]


def features(count: int, seed: int, per_person: int = 3, noise: float = 0.3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(count // per_person, 8, generator=draw).repeat_interleave(per_person, dim=0)
    return F.normalize(centers + noise * torch.randn(count, 8, generator=draw), dim=1)


def fixed(labels: list[int]) -> Cluster:
    """A clustering that finds these labels, repeated, whatever the features."""
    return lambda features, seed: torch.tensor(labels).repeat(len(features) // len(labels))


def labeler(images: Cluster, texts: Cluster, oplm: str = "two_stage", every_n_epochs: int = 1) -> Labeler:
    return Labeler(name="test", images=images, texts=texts, oplm=oplm, every_n_epochs=every_n_epochs)  # type: ignore[arg-type]


class NoPrototypes(Objective):
    """An objective without terms, which keeps the labels with which prototypes are reset."""

    def __init__(self) -> None:
        super().__init__({})
        self.reset: list[Labels] = []

    def reset_prototypes(self, images: Modality, texts: Modality, seed: int) -> None:
        self.reset.append(Labels(images.labels, texts.labels))


def encoded(images: Tensor, texts: Tensor, text_images: Tensor) -> EncodedPairs:
    one, pids = torch.ones(()), torch.arange(len(images)) // 3
    return EncodedPairs(images, texts, text_images, pids, pids[text_images], one, one)


PAIRS = encoded(features(IMAGES, 1), features(TEXTS, 2, 6), TEXT_IMAGES)


def find(made: Labeler) -> ClusteringResult:
    return made.find(PAIRS, NoPrototypes(), seed=3)


def take(made: Labeler, found: ClusteringResult) -> Labeler:
    objective = NoPrototypes()
    made.take(found, PAIRS, objective, seed=3)
    assert objective.reset == [found.after]
    return made


def relabeled(made: Labeler) -> Labeler:
    return take(made, find(made))


def test_both_modalities_are_clustered_apart_and_then_mined() -> None:
    images, texts = JaccardDBSCAN(k1=3, k2=2, eps=0.3, min_samples=2), JaccardDBSCAN(5, 2, 0.3, 4)
    found = find(labeler(images, texts))
    for own, label in ((features(IMAGES, 1), found.before.images), (features(TEXTS, 2, 6), found.before.texts)):
        k1, least = (3, 2) if len(own) == IMAGES else (5, 4)
        assert torch.equal(label, dbscan(k_reciprocal_jaccard(own, k1, 2), 0.3, least))
    mined = mine_outliers(
        Modality(features(IMAGES, 1), found.before.images),
        Modality(features(TEXTS, 2, 6), found.before.texts),
        TEXT_IMAGES,
    )
    assert torch.equal(found.after.images, mined[0])
    assert torch.equal(found.after.texts, mined[1])


def test_without_oplm_outliers_stay() -> None:
    found = find(labeler(fixed([0, 1, -1]), fixed([0]), oplm="none"))
    assert found.after is found.before


def test_kmeans_goes_by_the_seed() -> None:
    found = find(labeler(KMeans(4), KMeans(5), oplm="none"))
    assert torch.equal(found.before.images, kmeans(features(IMAGES, 1), 4, seed=3))
    assert torch.equal(found.before.texts, kmeans(features(TEXTS, 2, 6), 5, seed=3))


def test_a_pair_has_the_label_of_its_image_and_that_of_its_caption() -> None:
    made = relabeled(labeler(fixed([0, 1, 2]), fixed([3, 2, 1, 0]), oplm="none"))
    pairs = torch.tensor([0, 5, 23])
    labels = made.of(pairs)
    assert labels["image_labels"].tolist() == [0, 2, 2]
    assert labels["text_labels"].tolist() == [3, 2, 0]


@pytest.mark.parametrize(("oplm", "later"), [("none", 0), ("two_stage", 2)])
def test_a_pair_with_an_outlier_on_either_side_is_left_out_or_trained_later(oplm: str, later: int) -> None:
    made = labeler(fixed([0, 1, -1]), fixed([0, 0, 0, -1]), oplm)
    labels = Labels(fixed([0, 1, -1])(torch.zeros(IMAGES), 0), fixed([0, 0, 0, -1])(torch.zeros(TEXTS), 0))
    take(made, ClusteringResult(labels, labels))
    expected = [
        1 if labels.images[i] >= 0 and t >= 0 else later for i, t in zip(TEXT_IMAGES, labels.texts, strict=True)
    ]
    assert made.stages.tolist() == expected
    assert expected[:6] == [1, 1, 1, later, later, later]


def test_the_history_counts_clusters_and_outliers_before_and_after() -> None:
    made = labeler(fixed([0]), fixed([0]))
    for rescued in (1, 3):
        after = OUTLIERS.images.clone()
        after[:rescued] = torch.arange(rescued)
        take(made, ClusteringResult(OUTLIERS, Labels(after, OUTLIERS.texts)))
    assert made.history.tolist() == [[[1, 12, 11], [0, 24, 24]], [[3, 12, 9], [0, 24, 24]]]
    assert made.describe() == (
        "labels  3 clusters of images (12 outliers, 9 after mining), 0 clusters of captions (24 outliers, 24 after "
        "mining); 0 of 24 pairs clustered"
    )


def test_statistics_are_named_by_modality_and_stage() -> None:
    made = labeler(fixed([0, 1, -1]), fixed([0, 1]))
    figures = made.statistics(find(made), PAIRS)
    assert figures["images/before/outliers"] == 4
    assert figures["texts/after/clusters"] == 2
    assert {name.split("/")[2] for name in figures} == {"clusters", "outliers", "purity", "nmi", "ami"}
    assert len(figures) == 20


def test_labels_are_due_every_so_many_epochs_and_whenever_there_are_none() -> None:
    made = labeler(fixed([0]), fixed([0]), every_n_epochs=3)
    assert made.due(4)
    relabeled(made)
    assert [epoch for epoch in range(8) if made.due(epoch)] == [0, 3, 6]


def test_labels_and_history_travel_in_the_state() -> None:
    saved, loaded = relabeled(labeler(fixed([0, 1, 2]), fixed([1, 0]))), labeler(fixed([0]), fixed([0]))
    nn.ModuleDict({"labeler": loaded}).load_state_dict({f"labeler.{k}": v for k, v in saved.state_dict().items()})
    assert torch.equal(loaded.stages, saved.stages)
    assert torch.equal(loaded.history, saved.history)
    assert Labeler.resizable == set(saved.state_dict())


def test_all_outliers_train_pairs_alone_with_a_warning_or_stop_with_a_sentence() -> None:
    nothing = fixed([-1])
    with pytest.warns(UserWarning, match="pseudo_label=test finds no clustered pair: this epoch"):
        made = relabeled(labeler(nothing, nothing))
    assert made.stages.tolist() == [2] * TEXTS
    for oplm in ("none", "one_stage"):
        with pytest.raises(UserError, match=f"pseudo_label=test with oplm={oplm} leaves no pair to train: each of 24"):
            relabeled(labeler(nothing, nothing, oplm))


def test_one_single_cluster_is_said() -> None:
    with pytest.warns(UserWarning, match="finds only one cluster, which separates nothing"):
        made = relabeled(labeler(fixed([0]), fixed([0])))
    assert made.stages.tolist() == [1] * TEXTS


def test_clusters_worth_learning_from_are_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relabeled(labeler(fixed([0, 1]), fixed([0, 1])))


def test_fewer_samples_than_neighbours() -> None:
    two = features(2, 1, per_person=1)
    cluster = JaccardDBSCAN(k1=20, k2=6, eps=0.5, min_samples=2)
    made = labeler(cluster, cluster)
    with pytest.warns(UserWarning, match="only one cluster"):
        found = made.find(encoded(two, two, torch.arange(2)), NoPrototypes(), seed=0)
    assert found.after.images.tolist() == found.after.texts.tolist() == [0, 0]


def test_misspelt_options_stop_before_training() -> None:
    with pytest.raises(UserError, match=r"pseudo_label.oplm: 'two' given, expected one of none, one_stage, two_stage"):
        labeler(fixed([0]), fixed([0]), oplm="two")
    with pytest.raises(UserError, match=r"pseudo_label.every_n_epochs: 0 given, expected at least 1"):
        labeler(fixed([0]), fixed([0]), every_n_epochs=0)
