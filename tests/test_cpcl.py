"""CPCL through the whole path: without identities, resumed within an epoch, and its edges."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import data.loading.chosen
import trainer
from data.annotations import DatasetSplits
from data.synthetic import SyntheticSpec, generate
from lightning_models import LitTBPS
from model.prototypes import ClusteringResult, Labeler
from prepare_checkpoints import prepare
from utils.checkpoints.weights import read_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
SMALL = (
    "experiment=cpcl",
    "backbone=tiny_clip",
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "scheduler.warmup_epochs=0.5",
    "shown_queries=2",
    "logger=csv",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
)
# With these the features of the untrained model have several clusters in each modality, and outliers.
CLUSTERS = (
    *(f"pseudo_label.images.{setting}" for setting in ("k1=3", "k2=2", "eps=0.45", "min_samples=2")),
    *(f"pseudo_label.texts.{setting}" for setting in ("k1=4", "k2=2", "eps=0.45", "min_samples=3")),
)
ALL_OUTLIERS = ("pseudo_label.images.eps=1e-6", "pseudo_label.texts.eps=1e-6", "pseudo_label.images.min_samples=9")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 + 4 + 6 persons, two pictures of each."""
    folder = tmp_path_factory.mktemp("root")
    spec = SyntheticSpec(train=12, val=4, test=6, images_per_identity=2, height=64, width=32)
    generate(folder, spec, workers=1)
    prepare("tiny_clip", folder, steps=1)
    return folder


def arguments(root: Path, out: Path, *overrides: str) -> list[str]:
    clusters = () if any(override.startswith("pseudo_label=") for override in overrides) else CLUSTERS
    return [*SMALL, *clusters, f"dataset_root_dir={root}", f"run_dir={out}", *overrides]


def config(root: Path, out: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return compose("demo", overrides=arguments(root, out, *overrides))


def last(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]


def logged(out: Path) -> list[dict[str, str]]:
    with (out / "logs" / "steps.csv").open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs with everything on."""
    out = tmp_path_factory.mktemp("run")
    plot = "+evaluation.plots.tsne={_target_:utils.report.plots.clusters.tsne,_partial_:true}"
    trainer.train(config(root, out, plot))
    return out


def test_an_epoch_trains_clustered_pairs_by_prototypes_and_then_the_others_by_itc(trained: Path) -> None:
    state = last(trained)
    clustered = (state["labeler.image_labels"] >= 0) & (state["labeler.text_labels"] >= 0)
    steps = [row for row in logged(trained) if "train/loss/pcm" in row]
    assert len(steps) == 2 * 48 // 8
    epoch = steps[6:]
    later = int((~clustered).sum()) // 8
    assert 0 < later < 6
    assert [float(row["train/loss/itc"]) > 0 for row in epoch] == [False] * (6 - later) + [True] * later
    assert [float(row["train/loss/pcm"]) > 0 for row in epoch] == [True] * (6 - later) + [False] * later
    assert [float(row["train/loss/icpm"]) > 0 for row in epoch] == [True] * (6 - later) + [False] * later


def test_figures_and_pictures_of_the_labels(trained: Path) -> None:
    rows = [row for row in logged(trained) if "pseudo_label/images/before/outliers" in row]
    assert [int(row["step"]) for row in rows] == [0, 6]
    history = last(trained)["labeler.history"]
    for row, counts in zip(rows, history.tolist(), strict=True):
        for modality, (clusters, before, after) in zip(("images", "texts"), counts, strict=True):
            assert float(row[f"pseudo_label/{modality}/after/clusters"]) == clusters
            assert float(row[f"pseudo_label/{modality}/before/outliers"]) == before
            assert float(row[f"pseudo_label/{modality}/after/outliers"]) == after
            assert 0 < float(row[f"pseudo_label/{modality}/after/purity"]) <= 1
            assert {f"pseudo_label/{modality}/before/{name}" for name in ("nmi", "ami")} <= row.keys()
    assert {"outliers.png", "tsne.png"} <= {file.name for file in trained.iterdir()}


def test_memories_and_labels_travel_in_the_checkpoint_and_its_test_needs_neither(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    state = last(trained)
    for modality in ("image", "text"):
        prototypes = state[f"objective.terms.pcm.{modality}_memory.prototypes"]
        assert len(prototypes) == state[f"labeler.{modality}_labels"].max() + 1
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
        assert state[f"objective.terms.pcm.{modality}_log_temperature"] != torch.tensor(0.02).log()
    best = next((trained / "checkpoints").glob("best-*"))
    assert trainer.test(config(root, tmp_path, "task=test", f"ckpt_path={best}", "pseudo_label=none"))


def test_identities_are_never_read(trained: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = data.loading.chosen.read_dataset

    def scrambled(*args: Any, **kwargs: Any) -> DatasetSplits:
        splits = read(*args, **kwargs)
        order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0)).tolist()
        pids = [splits.train[i].pid for i in order]
        return replace(splits, train=[r._replace(pid=p) for r, p in zip(splits.train, pids, strict=True)])

    monkeypatch.setattr(data.loading.chosen, "read_dataset", scrambled)
    trainer.train(config(root, tmp_path))
    expected, other = last(trained), last(tmp_path)
    assert expected.keys() == other.keys()
    assert all(torch.equal(expected[name], other[name]) for name in expected)
    purities = [row["pseudo_label/texts/after/purity"] for out in (trained, tmp_path) for row in logged(out)[:1]]
    assert purities[0] != purities[1], "the scrambled identities did not arrive"


def test_losses_that_read_identities_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs 'pids', which this run lacks: set pseudo_label=none or leave"):
        trainer.train(config(root, tmp_path, "+loss/term@loss.terms.id=id"))
    with pytest.raises(UserError, match=r"loss.terms.pcm needs 'image_labels', .*: set pseudo_label=dbscan or leave"):
        trainer.train(config(root, tmp_path, "pseudo_label=none"))
    with pytest.raises(UserError, match=r"dataset\.sampler=identity reads identities"):
        trainer.train(config(root, tmp_path, "dataset.sampler=identity"))


class Died(Exception):  # noqa: N818
    """What stops a training in place of a power cut."""


@pytest.mark.parametrize("dies_at", [3, 9])
def test_continued_within_an_epoch_it_is_bit_identical_and_clusters_no_more_often(
    dies_at: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("callbacks.last.every_n_steps=2", "pseudo_label.every_n_epochs=2", "trainer.max_epochs=3")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    trainer.train(config(root, straight, *overrides))

    step, find, found = LitTBPS.training_step, Labeler.find, []

    def dying(self: LitTBPS, *args: Any) -> torch.Tensor:
        if self.global_step == dies_at:
            raise Died
        return step(self, *args)

    def counted(self: Labeler, *args: Any) -> ClusteringResult:
        found.append(1)
        return find(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LitTBPS, "training_step", dying)
        with pytest.raises(Died):
            trainer.train(config(root, broken, *overrides))
    monkeypatch.setattr(Labeler, "find", counted)
    trainer.train(config(root, broken, *overrides, f"ckpt_path={broken / 'checkpoints' / 'last.ckpt'}"))
    expected, continued = last(straight), last(broken)
    assert expected.keys() == continued.keys()
    assert all(torch.equal(expected[name], continued[name]) for name in expected)
    assert len(found) == 1, "epochs 0 and 2 cluster, and the first one did before"


@pytest.mark.filterwarnings("ignore:pseudo_label=dbscan")
def test_all_outliers_train_by_itc_alone_or_stop(root: Path, tmp_path: Path) -> None:
    trainer.train(config(root, tmp_path / "two", *ALL_OUTLIERS, "trainer.max_epochs=1"))
    steps = [row for row in logged(tmp_path / "two") if "train/loss/pcm" in row]
    assert {row["train/loss/pcm"] for row in steps} == {"0.0"}
    assert all(float(row["train/loss/itc"]) > 0 for row in steps)
    with pytest.raises(UserError, match="oplm=one_stage leaves no pair to train"):
        trainer.train(config(root, tmp_path / "one", *ALL_OUTLIERS, "pseudo_label.oplm=one_stage"))


@pytest.mark.filterwarnings("ignore:pseudo_label=dbscan finds only one cluster")
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("pseudo_label=kmeans", "pseudo_label.images.clusters=12"), id="kmeans"),
        pytest.param(("pseudo_label.images.k1=500", "pseudo_label.texts.k1=500"), id="fewer-samples-than-k1"),
        pytest.param(("pseudo_label.images.eps=0.99", "pseudo_label.texts.eps=0.99"), id="single-cluster"),
        pytest.param(("loss.terms.pcm.matching=single_modal", "loss.terms.pcm.start=member"), id="single-modal"),
        pytest.param(("dataset.num_workers=1", "trainer.precision=bf16-mixed"), id="workers-and-amp"),
    ],
)
def test_other_settings_train(overrides: tuple[str, ...], root: Path, tmp_path: Path) -> None:
    metrics = trainer.train(config(root, tmp_path, "trainer.max_epochs=1", *overrides))
    assert metrics["test/t2i/mAP"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in last(tmp_path).values())
