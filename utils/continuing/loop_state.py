"""The position in training that a checkpoint stores, in Lightning's own counters (2.6).

Lightning saves its counters as they are in the hook that saves the checkpoint. After some hooks it cannot continue
correctly: it skips a validation, or counts a step twice. `settle` rewrites the counters to one of three states, which
Lightning continues exactly:

- n epochs are done;
- n epochs and m batches of the next one are done;
- the same, and the validation after these batches is due. It then starts from its beginning.
"""

from collections.abc import Mapping
from typing import Any


def settle(checkpoint: Mapping[str, Any], *, batches_per_epoch: float, validation_due: bool) -> None:
    """Rewrites the counters of `checkpoint`, saved between two batches, so that no step or validation is incomplete."""
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
