from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.loading.loader import ResumableLoader, evaluation_loader, worker_processes
from data.loading.samplers import Draw, IdentitySampler, RandomSampler
from utils.errors import UserError

PAIRS, BATCH = 22, 4
EPOCH = PAIRS // BATCH


class Draws(Dataset[Tensor]):
    """Samples that tell which draw they are."""

    def __getitem__(self, draw: Draw) -> Tensor:
        return torch.tensor(draw)

    def __len__(self) -> int:
        return PAIRS


def stack(samples: Any) -> Any:
    return {"draws": torch.stack(samples)}


def loader(num_workers: int = 0, pairs: int = PAIRS) -> ResumableLoader:
    return ResumableLoader(Draws(), RandomSampler(pairs, BATCH, seed=3), stack, num_workers=num_workers)


def contents(batches: Any) -> list[list[list[int]]]:
    return [batch["draws"].tolist() for batch in batches]


def whole_epochs(count: int) -> list[list[list[list[int]]]]:
    sampler = RandomSampler(PAIRS, BATCH, seed=3)
    epochs = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        epochs.append([[list(draw) for draw in batch] for batch in sampler])
    return epochs


class TestResumableLoader:
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_the_state_counts_what_was_handed_out_and_a_copy_yields_the_rest(self, num_workers: int) -> None:
        first, second, third = whole_epochs(3)
        running = loader(num_workers)
        assert contents(running) == first
        running.batch_sampler.set_epoch(1)
        batches = iter(running)
        assert contents(next(batches) for _ in range(2)) == second[:2]
        state = running.state_dict()
        assert state == {"epoch": 1, "batches": 2, "length": EPOCH}

        copy = loader(num_workers)
        copy.load_state_dict(state)
        assert copy.state_dict() == state
        copy.batch_sampler.set_epoch(1)
        assert len(copy) == EPOCH
        assert contents(copy) == second[2:]
        copy.batch_sampler.set_epoch(2)
        assert contents(copy) == third

    def test_an_epoch_begins_with_its_first_batch_not_with_iter(self) -> None:
        fresh = loader()
        early = iter(fresh)
        fresh.batch_sampler.set_epoch(1)
        assert contents(early) == whole_epochs(2)[1]

    def test_a_position_in_another_epoch_is_forgotten(self) -> None:
        copy = loader()
        copy.load_state_dict({"epoch": 0, "batches": EPOCH, "length": EPOCH})
        copy.batch_sampler.set_epoch(1)
        assert contents(copy) == whole_epochs(2)[1]

    def test_an_epoch_that_was_left_early_starts_anew(self) -> None:
        running = loader()
        next(iter(running))
        assert contents(running) == whole_epochs(1)[0]

    def test_the_middle_of_an_epoch_of_another_length_is_refused(self) -> None:
        state = {"epoch": 0, "batches": 2, "length": EPOCH}
        with pytest.raises(UserError, match="after 2 of 5 batches of an epoch, but an epoch of this run has 10"):
            loader(pairs=40).load_state_dict(state)
        loader(pairs=40).load_state_dict(state | {"batches": EPOCH})

    def test_the_global_random_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        contents(loader())
        list(evaluation_loader(range(5), list, 2, num_workers=0))
        assert torch.equal(torch.get_rng_state(), before)


class Recorder(L.LightningModule):
    """Trains one weight and writes down every batch that it is given, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[list[int]]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch["draws"].tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", float(self.current_epoch), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, num_workers: int, saver: ModelCheckpoint, ckpt_path: Path | None = None
) -> list[tuple[int, list[list[int]]]]:
    """Trains for three epochs and returns (epoch, batch) of every step."""
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[saver],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Recorder()
    validation = evaluation_loader(range(3), list, 2, num_workers=0)
    trainer.fit(module, loader(num_workers), validation, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def every_second_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "step-{step}", every_n_train_steps=2, save_top_k=-1)


def after_validation(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, "val-{step}", monitor="score", mode="max", save_top_k=-1, save_on_train_epoch_end=False
    )


def after_the_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "end-{step}", save_top_k=-1, save_on_train_epoch_end=True)


STRAIGHT = [(epoch, batch) for epoch, batches in enumerate(whole_epochs(3)) for batch in batches]


@pytest.mark.filterwarnings("ignore")  # what Lightning advises for real trainings
class TestResumeUnderLightning:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_straight_run_sees_every_epoch_whole(self, tmp_path: Path, num_workers: int) -> None:
        assert fit(tmp_path, num_workers, every_second_step(tmp_path)) == STRAIGHT

    @pytest.mark.parametrize("save", [every_second_step, after_validation, after_the_epoch])
    def test_every_checkpoint_continues_with_exactly_the_rest(
        self, tmp_path: Path, save: Callable[[Path], ModelCheckpoint]
    ) -> None:
        fit(tmp_path, 0, save(tmp_path / "saved"))
        checkpoints = sorted((tmp_path / "saved").iterdir())
        assert len(checkpoints) == (7 if save is every_second_step else 3)
        for checkpoint in checkpoints:
            step = int(checkpoint.stem.split("=")[-1])
            assert fit(tmp_path, 0, every_second_step(tmp_path / "again"), checkpoint) == STRAIGHT[step:]

    @pytest.mark.parametrize("step", [6, 8])
    def test_workers_that_read_ahead_change_nothing(self, tmp_path: Path, step: int) -> None:
        fit(tmp_path, 2, every_second_step(tmp_path / "saved"))
        checkpoint = tmp_path / "saved" / f"step-step={step}.ckpt"
        for num_workers in (2, 0):
            seen = fit(tmp_path, num_workers, every_second_step(tmp_path / "again"), checkpoint)
            assert seen == STRAIGHT[step:]


class TestEvaluationLoader:
    @pytest.mark.parametrize("items", [4, 7, 9, 64, 101])
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("batch_size", [1, 2, 5, 200])
    def test_shares_are_exact_equal_in_batches_and_ordered(self, items: int, world_size: int, batch_size: int) -> None:
        shares = [
            list(evaluation_loader(range(items), list, batch_size, num_workers=0, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert sorted(item for share in shares for batch in share for item in batch) == list(range(items))
        assert len({len(share) for share in shares}) == 1
        for share in shares:
            mine = [item for batch in share for item in batch]
            assert mine == sorted(mine)
            assert 0 < min(map(len, share)) <= max(map(len, share)) <= max(batch_size, 1 + (world_size > 1))

    def test_fewer_items_than_processes_are_refused(self) -> None:
        with pytest.raises(UserError, match="A split of 2 items cannot be shared out over 3 processes"):
            evaluation_loader(range(2), list, 8, num_workers=0, rank=0, world_size=3)


def test_both_samplers_serve_the_loader() -> None:
    pids = torch.arange(12).numpy() // 3
    sampler = IdentitySampler(pids, torch.arange(12).numpy(), 6, 3, seed=0)
    batches = list(ResumableLoader(Draws(), sampler, stack, num_workers=0))
    assert [tuple(batch["draws"].shape) for batch in batches] == [(6, 2), (6, 2)]


def test_workers_are_counted_or_refused() -> None:
    assert worker_processes(3, training_processes=1) == 3
    assert 0 <= worker_processes("auto", training_processes=2) <= 4
    for wanted in ("many", -1, None):
        with pytest.raises(UserError, match=rf"dataset.num_workers: {wanted} given, expected auto or a number"):
            worker_processes(wanted, training_processes=1)  # type: ignore[arg-type]
