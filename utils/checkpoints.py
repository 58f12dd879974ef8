"""Checkpoint files: written whole or not at all, read without executing anything, proven to be as they were written."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from utils.disk import whole_file, why_not_written
from utils.errors import UserError

ZIP: Final = b"PK\x03\x04"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a full disk or a kill leaves the previous file intact."""

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
        return read_checkpoint(path, map_location=map_location)


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Returns the content of a checkpoint that `trainer.py` wrote. Never unpickles code.

    Raises:
        UserError: no such file, not a checkpoint, or one of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"ckpt_path: {path} does not exist; give the path of a .ckpt file under outputs/, or 'last'")
    is_checked = check_intact(path)
    try:
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except Exception as error:  # garbage makes the unpickler raise anything
        raise UserError(
            f"ckpt_path: {path} is not a readable checkpoint ({_reason(error)}); it may be damaged or of "
            "another program: give a .ckpt file that trainer.py wrote"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config"} <= checkpoint.keys():
        raise UserError(
            f"ckpt_path: {path} holds no 'state_dict' and 'config'; give a .ckpt file that trainer.py wrote"
        )
    if not is_checked:
        print(f"note    {path} has no checksums: whether it is damaged cannot be told", flush=True)
    return checkpoint


def check_intact(path: Path) -> bool:
    """Returns whether the checksums in a file of `torch.save` were compared; one of before 2020 has none.

    The file is a zip archive: it has a CRC-32 for each of its records, which `torch.load` does not look at. Of all
    that stands outside of records only a folder's mark goes unnoticed by both: `torch.load` then reads garbage.

    Raises:
        UserError: a byte has changed, or the file is cut.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP and not zipfile.is_zipfile(path):
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip() or next((m.filename for m in archive.infolist() if m.external_attr), None)
            damage = record and f"its record {record} is not what was written"
    except Exception as error:  # damaged headers make it raise anything
        damage = _reason(error)
    if damage:
        raise UserError(
            f"{path} is damaged ({damage}); copy it again from where it is whole, or take another checkpoint of the run"
        )
    return True


def encoder_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of the encoder alone, without losses and their classifiers."""
    prefix = "encoder."
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def frozen_names(module: nn.Module) -> set[str]:
    """Names of the parameters that are not trained: their values come from the backbone's folder."""
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Loads `weights` into `module`; only frozen parameters may be missing, only `resizable` buffers may change length.

    Raises:
        UserError: other names or shapes than the module's: a checkpoint of another architecture.
    """
    own = module.state_dict()
    missing = own.keys() - weights.keys() - frozen_names(module)
    unknown = weights.keys() - own.keys()
    resizable = {
        f"{prefix}.{name}" for prefix, part in module.named_modules() for name in getattr(part, "resizable", ())
    }
    reshaped = {
        name
        for name in own.keys() & weights.keys()
        if own[name].shape[name in resizable :] != weights[name].shape[name in resizable :]
    }
    problems = {"lacks": missing, "has in addition": unknown, "has in another shape": reshaped}
    for problem, names in problems.items():
        if names:
            raise UserError(
                f"ckpt_path: {source} is of another architecture: it {problem} {len(names)} of the model's "
                f"tensors, the first {min(names)!r}; choose the backbone, head, lora, loss, pseudo_label and "
                "img_size_str that it was trained with"
            )
    module.load_state_dict(dict(weights), strict=False)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
