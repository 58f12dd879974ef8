"""A training loader that can continue in the middle of an epoch, and exact evaluation loaders for several processes."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import Queue
from typing import Any, Final, Literal, TypedDict

import numpy as np
import torch
from lightning.fabric.utilities import suggested_max_num_workers
from torch.utils.data import DataLoader, Dataset

from data.batch import Batch
from data.loading.samplers import EpochSampler
from utils.config.surroundings import DIED, lost_worker
from utils.errors import UserError
from utils.training.signals import leave_signals_to_parent

MOST_AUTO_WORKERS: Final = 4

CollateFn = Callable[[Sequence[Any]], Batch]


class LoaderState(TypedDict):
    """An epoch, the number of its batches that the trainer received, and the number of all its batches."""

    epoch: int
    batches: int
    length: int


class ResumableLoader(DataLoader[Any]):
    """A training loader whose state is the number of batches that the trainer has received.

    Batches that workers have only prefetched do not count. After its state is restored, the loader yields the rest
    of that epoch; all other epochs start at their beginning. The epoch is read at the first batch, not in `iter`,
    because Lightning sets it between the two.

    `len` is always the length of a whole epoch. The loader does not use PyTorch's global random state.
    """

    batch_sampler: EpochSampler

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_sampler: EpochSampler,
        collate_fn: CollateFn,
        *,
        num_workers: int,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate_fn,
            **_process_options(num_workers, pin_memory),
        )
        self._epoch = 0
        self._handed_out = 0
        self._restored = False

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        sampler = self.batch_sampler
        continues = self._restored and self._epoch == sampler.epoch
        sampler.start = self._handed_out if continues else 0
        self._epoch, self._handed_out, self._restored = sampler.epoch, sampler.start, False
        for batch in _received(super().__iter__()):
            self._handed_out += 1
            yield batch

    def state_dict(self) -> LoaderState:
        return {"epoch": self._epoch, "batches": self._handed_out, "length": len(self)}

    def load_state_dict(self, state: LoaderState) -> None:
        """Restores the position in an epoch.

        Raises:
            UserError: if it lies within an epoch of another length.
        """
        if 0 < state["batches"] < state["length"] != len(self):
            raise UserError(
                f"The checkpoint was saved after {state['batches']} of {state['length']} batches of an epoch, but an "
                f"epoch of this run has {len(self)}; continue with the same dataset, sampler and batch size."
            )
        self._epoch, self._handed_out, self._restored = state["epoch"], state["batches"], True


class EvaluationLoader(DataLoader[Batch]):
    """A loader that raises `UserError` if it loses a worker process."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return _received(super().__iter__())


def evaluation_loader(
    dataset: Dataset[Any],
    collate_fn: CollateFn,
    batch_size: int,
    *,
    num_workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Returns a loader of this process's share of a dataset, in order: items rank, rank + world_size, ...

    Over all processes, every item comes exactly once. All processes have the same number of batches, because DDP
    synchronises buffers at each batch; their shares may differ by one item. The code that gathers the rows sorts
    them by `INDEX` and drops none.

    Args:
        batch_size: the most items in a batch (if it is 1, a process may get batches of 2).
        pin_memory: whether batches will be copied to a GPU.

    Raises:
        UserError: if there are fewer items than processes.
    """
    items = len(dataset)  # type: ignore[arg-type]
    if items < world_size:
        raise UserError(f"A split of {items} items cannot be shared out over {world_size} processes; use fewer.")
    batches = min(-(-items // (world_size * batch_size)), items // world_size)
    share = np.array_split(np.arange(rank, items, world_size), batches)
    return EvaluationLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in share],
        collate_fn=collate_fn,
        **_process_options(num_workers, pin_memory),
    )


def worker_processes(wanted: int | Literal["auto"], training_processes: int) -> int:
    """Returns the number of loading processes for each training process; ``auto`` uses the remaining cores, up to 4.

    Raises:
        UserError: if `wanted` is neither ``auto`` nor a number of processes.
    """
    if wanted != "auto" and (not isinstance(wanted, int) or wanted < 0):
        raise UserError(f"dataset.num_workers: {wanted} given, expected auto or a number of processes, 0 or more")
    # The tokenizers library warns about its threads when a worker forks, unless this is set.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return min(MOST_AUTO_WORKERS, suggested_max_num_workers(training_processes)) if wanted == "auto" else wanted


def prepare_worker(worker: int) -> None:
    """Makes a loading process leave signals to its parent, and end if it cannot send a batch.

    Otherwise the training process would wait for this batch for ever.
    """
    leave_signals_to_parent()

    def end(error: Exception, batch: Any) -> None:
        print(f"loading process {worker}: a batch cannot be handed over ({error})", file=sys.stderr, flush=True)
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def _received(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields `batches` from the loading processes.

    Raises:
        UserError: if a loading process died, or this process cannot open a batch that it sent.
    """
    try:
        yield from batches
    except (RuntimeError, ConnectionError, EOFError) as error:
        told = lost_worker(str(error)) if isinstance(error, RuntimeError) else DIED
        if told is None:
            raise
        raise UserError(told) from error


def _process_options(num_workers: int, pin_memory: bool) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "worker_init_fn": prepare_worker,
        "persistent_workers": num_workers > 0,
        "pin_memory": pin_memory,
        "generator": torch.Generator(),  # otherwise every epoch would draw from the global random state
    }
