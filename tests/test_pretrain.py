"""Pre-training with noise-aware masking through the whole path, and fine-tuning from what it leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

import trainer
from lightning_models import LitTBPS
from model.noise_aware_masking import STEPS, UNSEEN, NoiseAwareMasking
from tests.same_run import differences
from utils.checkpoints.weights import read_checkpoint
from utils.errors import UserError
from utils.report.run_report import RunReport

ROOT = Path(__file__).parents[1]
SMALL = (
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "dataset.num_workers=0",
    "shown_queries=0",
    "evaluation.page=false",
    "logger=csv",
    "trainer.log_every_n_steps=1",
)
PAIRS = 48
EVERY_2 = ("trainer.max_epochs=2", "callbacks.last.every_n_steps=2")


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReport, "draw", lambda *_: None)
        yield


def config(small_root: Path, out: Path, *overrides: str, experiment: str = "pretrain") -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        places = (f"experiment={experiment}", f"dataset_root_dir={small_root}", f"run_dir={out}")
        return compose("demo", overrides=[*SMALL, *places, *overrides])


def table(out: Path) -> Tensor:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]["masking.steps"]


class Watched:
    """What masking used and kept in each step of a run."""

    def __init__(self) -> None:
        self.used: list[tuple[Tensor, Tensor]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []

    def start(self, patch: pytest.MonkeyPatch) -> None:
        of, keep = NoiseAwareMasking.of, NoiseAwareMasking.keep

        def watched_of(masking: NoiseAwareMasking, pairs: Tensor, ids: Tensor) -> Tensor:
            self.used.append((pairs.clone(), of(masking, pairs, ids)))
            return self.used[-1][1]

        def watched_keep(masking: NoiseAwareMasking, pairs: Tensor, probabilities: Tensor, *args: Any) -> None:
            self.kept.append((pairs.clone(), probabilities.clone()))
            keep(masking, pairs, probabilities, *args)

        patch.setattr(NoiseAwareMasking, "of", watched_of)
        patch.setattr(NoiseAwareMasking, "keep", watched_keep)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def trained(watched: Watched, small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs of 6 steps, saved every two steps."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        watched.start(patch)
        trainer.train(config(small_root, out, *EVERY_2))
    return out


def test_each_pair_is_masked_by_what_its_step_of_the_last_epoch_found(trained: Path, watched: Watched) -> None:
    assert len(watched.used) == len(watched.kept) == 12
    assert all((used == torch.tensor(0.15)).all() for _, used in watched.used[:6])
    found = {int(pair): row for pairs, rows in watched.kept[:6] for pair, row in zip(pairs, rows, strict=True)}
    assert sorted(found) == list(range(PAIRS))
    for pairs, rows in watched.used[6:]:
        for pair, row in zip(pairs, rows, strict=True):
            expected = found[int(pair)]
            length = min(len(row), len(expected))
            torch.testing.assert_close(row[:length], expected[:length], rtol=0, atol=0.5 / STEPS + 1e-6)
    assert any((used != torch.tensor(0.15)).any() for _, used in watched.used[6:])


def test_the_checkpoint_has_the_probabilities_of_all_pairs(trained: Path) -> None:
    steps = table(trained)
    assert (steps.shape, steps.dtype) == ((PAIRS, 40), torch.uint8)
    probabilities = (steps.float() / STEPS).masked_fill(steps == UNSEEN, 0)
    words = probabilities > 0
    means = probabilities.sum(dim=1) / words.sum(dim=1)
    assert ((means > 0.14) & (means < 0.25)).all(), "the mean is kept, but for what is clipped at 0"
    assert probabilities[words].std() > 0.01


class Died(Exception):  # noqa: N818
    """What stops a training in place of a power cut."""


def train_until(step: int, cfg: DictConfig) -> None:
    """Trains until optimizer step `step`, where the run dies."""
    whole = LitTBPS.training_step

    def dying(self: LitTBPS, *args: Any) -> Tensor:
        if self.global_step == step:
            raise Died
        return whole(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitTBPS, "training_step", dying)
        with pytest.raises(Died):
            trainer.train(cfg)


def test_continued_within_the_second_epoch_it_is_bit_identical(trained: Path, small_root: Path, tmp_path: Path) -> None:
    train_until(9, config(small_root, tmp_path, *EVERY_2))  # step 8 is saved: two steps masked by what was found
    trainer.train(config(small_root, tmp_path, *EVERY_2, f"ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"))
    assert differences(trained, tmp_path) == []


def test_grad_cache_finds_the_same_probabilities(
    trained: Path, watched: Watched, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = Watched()
    cached.start(monkeypatch)
    train_until(2, config(small_root, tmp_path, *EVERY_2, "grad_cache.micro_batch=3"))
    for (pairs, rows), (expected_pairs, expected) in zip(cached.kept, watched.kept[:2], strict=True):
        assert torch.equal(pairs, expected_pairs)
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)


def test_what_it_leaves_is_a_backbone_for_another_recipe(trained: Path, small_root: Path, tmp_path: Path) -> None:
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", f"backbone.folder={trained / 'hub'}")
    metrics = trainer.train(config(small_root, tmp_path, *short, experiment="irra"))
    assert metrics["test/t2i/mAP"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=irra",), r"^masking=noise_aware makes no labels of masked words, which loss\.terms\.mlm needs: leave"),
        (("loss=sdm",), r"^masking=noise_aware changes masked captions, but no loss reads them: set loss\.terms\.sdm"),
        (
            ("aug=tbps_clip",),
            r"^masking=noise_aware remembers each word .* which aug\.text changes .* set aug\.text=\[\]",
        ),
        (("aug=rde",), r"^masking=noise_aware remembers each word .* which aug\.tokens changes"),
        (("dataset.further_captions={captions: 1}",), r"^masking=.* which dataset\.further_captions changes"),
        (
            ("loss.terms.sdm.text_view=masked",),
            r"^loss\.terms\.sdm\.text_view=masked is unknown; expected text or text_m",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    overrides: tuple[str, ...], message: str, small_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer.train(config(small_root, tmp_path, *overrides))
