"""What a checkpoint says of the place in the training, in Lightning's own counters (2.6).

Lightning takes a checkpoint's counters as they stand in whichever hook it was saved, and not every hook can be
continued from: a validation is skipped, or a step is counted twice. Here they are written anew and say one of three
things, each of which Lightning continues exactly:

- so many epochs are done;
- so many epochs and, of the next one, so many batches are done;
- the same, and the validation that follows is due. It then begins anew.
"""

from collections.abc import Mapping
from typing import Any


def settle(checkpoint: Mapping[str, Any], *, batches_per_epoch: float, validation_due: bool) -> None:
    """Rewrites the counters of `checkpoint`, saved between two batches, so that nothing is half done."""
    fit = checkpoint["loops"]["fit_loop"]
    epochs, batches = fit["epoch_progress"], fit["epoch_loop.batch_progress"]
    done = batches["current"]["completed"]
    is_last = done >= batches_per_epoch
    epoch_is_done = is_last and not validation_due
    begun = epochs["current"]["started"]
    ended = begun if epoch_is_done else begun - 1
    for counts in (epochs["current"], epochs["total"]):
        counts.update(ready=begun, started=begun, processed=ended, completed=ended)
    _set(batches["current"], 0 if epoch_is_done else done)
    _set(batches["total"], batches["total"]["completed"])
    batches["is_last_batch"] = is_last and validation_due
    for counts in (fit["epoch_loop.val_loop.batch_progress"][of] for of in ("current", "total")):
        if validation_due:
            counts.update(ready=1, started=1, processed=0, completed=0)
        else:
            _set(counts, counts["completed"])
    for loader in fit["state_dict"].get("combined_loader", ()):
        loader["batches"] = done


def _set(counts: dict[str, int], value: int) -> None:
    counts.update(dict.fromkeys(counts, value))
