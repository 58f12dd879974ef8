"""Checkpoint files: atomic writing, reading without executing anything, checks against damage."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from utils.checkpoints.disk import whole_file, why_not_written
from utils.checkpoints.schema import Checkpoint, check_progress, checked
from utils.checkpoints.tensor_files import ARCHIVE, UnreadableError, check_finite, check_members, read_pickled
from utils.errors import UserError, first_line


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint writer that writes a new file and renames it, so a full disk or a kill keeps the previous file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        try:
            with whole_file(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            kept = "the previous one is intact" if target.exists() else "none was there before"
            raise UserError(
                f"checkpoint {target} cannot be written ({why_not_written(error, target.parent)}; {kept}); make room "
                "or set output_dir= to another disk, then continue with ckpt_path=last"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        checkpoint = cast(dict[str, Any], read_checkpoint(path))
        with refused_to_continue(path):
            check_progress(checkpoint)
        return checkpoint


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Returns the content of a checkpoint that `trainer.py` wrote, on the CPU. Never unpickles code.

    Raises:
        UserError: if the file is absent, damaged or from another program, or its weights are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"ckpt_path: {path} does not exist; give the path of a .ckpt file under outputs/, or 'last'")
    is_checked = check_intact(path)
    try:
        checkpoint = checked(read_pickled(path))
    except UnreadableError as error:
        raise UserError(
            f"ckpt_path: {path} is not a readable checkpoint ({error}); give a .ckpt file that trainer.py wrote"
        ) from error
    check_finite(checkpoint["state_dict"], f"ckpt_path: {path}")
    if not is_checked:
        print(f"note    {path} has no checksums, so damage cannot be detected", flush=True)
    return checkpoint


def check_intact(path: Path) -> bool:
    """Checks the checksums in a file of `torch.save`; returns False if it has none, as files from before 2020.

    The file is a zip archive with a CRC-32 for each record, which `torch.load` does not check. Neither check notices
    a record that is wrongly marked as a folder, which `torch.load` reads as garbage; so this function checks the mark.

    Raises:
        UserError: if a byte has changed, or the file is cut short.
    """
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE and not zipfile.is_zipfile(path):
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path.stat().st_size)
            record = archive.testzip() or next((m.filename for m in archive.infolist() if m.external_attr), None)
            damage = record and f"its record {record} is not what was written"
    except Exception as error:  # damaged headers can raise any error
        damage = first_line(error)
    if damage:
        raise UserError(
            f"{path} is damaged ({damage}); copy it again from an intact copy, or use another checkpoint of the run"
        )
    return True


@contextmanager
def refused_to_continue(path: str | Path | None) -> Iterator[None]:
    """Turns an `UnreadableError` into a `UserError` that says why a checkpoint cannot be continued."""
    try:
        yield
    except UnreadableError as error:
        raise UserError(
            f"ckpt_path: {path} cannot be continued ({error}); give a last.ckpt of the same trainer.py, or test this "
            "one with task=test"
        ) from error


def encoder_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Returns the weights of the encoder only, without the losses' classifiers and other parameters."""
    prefix = "encoder."
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def frozen_names(module: nn.Module) -> set[str]:
    """Returns the names of the parameters that are not trained; their values come from the backbone's folder."""
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Loads `weights` into `module`; only frozen parameters may be missing, only `resizable` buffers may change length.

    Raises:
        UserError: if names, shapes or types differ from the module's: the checkpoint has another architecture.
    """
    own = module.state_dict()
    missing = own.keys() - weights.keys() - frozen_names(module)
    unknown = weights.keys() - own.keys()
    resizable = {
        f"{prefix}.{name}" for prefix, part in module.named_modules() for name in getattr(part, "resizable", ())
    }
    common = own.keys() & weights.keys()
    reshaped = {
        name for name in common if own[name].shape[name in resizable :] != weights[name].shape[name in resizable :]
    }
    retyped = {name for name in common if own[name].is_floating_point() != weights[name].is_floating_point()}
    problems = {
        "missing tensors": missing,
        "unknown tensors": unknown,
        "tensors of another shape": reshaped,
        "tensors of another number type": retyped,
    }
    for problem, names in problems.items():
        if names:
            raise UserError(
                f"ckpt_path: {source} is of another architecture: {problem}: {len(names)}, the first "
                f"{min(names)!r}; choose the backbone, head, lora, loss, pseudo_label and "
                "img_size_str that it was trained with"
            )
    module.load_state_dict(dict(weights), strict=False)
