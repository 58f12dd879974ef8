import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utils.checkpoints import AtomicCheckpointIO, encoder_weights, load_weights, read_checkpoint
from utils.errors import UserError

CONFIG = {
    **{section: {"name": "x"} for section in ("backbone", "head", "lora", "loss")},
    "img_size_str": "64x32",
    "seed": 1,
}


def content(value: float, size: int = 10) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((size,), value)}, "config": CONFIG}


def test_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(2.0), path)
    assert read_checkpoint(path)["state_dict"]["weight"].tolist() == [2.0] * 10
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """The kernel itself stops the write: files of this process may not grow beyond 64 KiB."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last.ckpt cannot be written \(.*; the previous one is intact\)") as error:
            AtomicCheckpointIO().save_checkpoint(content(2.0, size=100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "ckpt_path=last" in str(error.value)
    assert read_checkpoint(path)["state_dict"]["weight"].tolist() == [1.0] * 10
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_nothing_is_executed_on_loading(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": {}, "config": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_files_are_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.ckpt"
    torch.save(content(1.0), path)
    path.write_bytes({"empty": b"", "cut": path.read_bytes()[:500], "text": b"hello"}[damage])
    with pytest.raises(UserError, match=r"damaged.ckpt is not a readable checkpoint \(it .+\); give a .ckpt file"):
        read_checkpoint(path)


def test_absent_and_foreign_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.ckpt does not exist; give the path of a .ckpt file"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="it has no 'state_dict'"):
        read_checkpoint(tmp_path / "foreign.ckpt")


def model() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module


def test_only_frozen_parameters_may_be_missing() -> None:
    module = model()
    frozen = module[0].weight.clone()
    weights = {"1.weight": torch.ones(2, 4), "1.bias": torch.ones(2)}
    load_weights(module, weights, source="x.ckpt")
    assert torch.equal(module[0].weight, frozen)
    assert torch.equal(module[1].weight, torch.ones(2, 4))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"1.weight": torch.ones(2, 4)}, r"it lacks 1 of the model's tensors, the first '1.bias'"),
        (
            {"1.weight": torch.ones(2, 4), "1.bias": torch.ones(2), "2.bias": torch.ones(2)},
            r"it has in addition 1 of the model's tensors, the first '2.bias'",
        ),
        (
            {"1.weight": torch.ones(2, 5), "1.bias": torch.ones(2)},
            r"it has in another shape 1 of the model's tensors, the first '1.weight'",
        ),
    ],
)
def test_another_architecture_is_one_sentence(weights: dict[str, torch.Tensor], message: str) -> None:
    module = model()
    before = module[1].weight.clone()
    with pytest.raises(UserError, match=r"x.ckpt is of another architecture: " + message):
        load_weights(module, weights, source="x.ckpt")
    assert torch.equal(module[1].weight, before)


class Growing(nn.Module):
    """A table whose length follows from the training."""

    resizable = frozenset({"table"})

    def __init__(self, rows: int, width: int = 2) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(rows, width))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.table = torch.zeros(len(state_dict[f"{prefix}table"]), 2)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_resizable_buffer_may_have_another_length_but_no_other_width() -> None:
    module = nn.ModuleDict({"memory": Growing(3)})
    load_weights(module, {"memory.table": torch.ones(5, 2)}, source="x.ckpt")
    assert torch.equal(module["memory"].table, torch.ones(5, 2))
    with pytest.raises(UserError, match=r"has in another shape 1 of the model's tensors, the first 'memory.table'"):
        load_weights(module, {"memory.table": torch.ones(5, 3)}, source="x.ckpt")


def test_encoder_weights_leave_losses_out() -> None:
    weights = {"encoder.backbone.a": torch.ones(1), "objective.terms.id.classifier.weight": torch.ones(9, 1)}
    assert set(encoder_weights({"state_dict": weights, "config": {}})) == {"backbone.a"}
