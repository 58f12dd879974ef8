import os
import pickle
import resource
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utils.checkpoints.weights import AtomicCheckpointIO, encoder_weights, load_weights, read_checkpoint
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
        told = r"last.ckpt cannot be written \(File too large: /.* GB free; the previous one is intact\)"
        with pytest.raises(UserError, match=told) as error:
            AtomicCheckpointIO().save_checkpoint(content(2.0, size=100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "ckpt_path=last" in str(error.value)
    assert read_checkpoint(path)["state_dict"]["weight"].tolist() == [1.0] * 10
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_nothing_is_executed_on_loading(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "config": Payload(tmp_path / "executed")}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_files_are_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.ckpt"
    torch.save(content(1.0), path)
    path.write_bytes({"empty": b"", "cut": path.read_bytes()[:500], "text": b"hello"}[damage])
    told = (
        r"damaged \(.+\); copy it again"
        if damage == "cut"
        else r"not a readable checkpoint \(it .+\); give a .ckpt file"
    )
    with pytest.raises(UserError, match=f"damaged.ckpt is {told}"):
        read_checkpoint(path)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else type(a) is type(b) and a == b


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(2.0), path)
    whole, expected = path.read_bytes(), read_checkpoint(path)
    directory = whole.index(b"PK\1\2")  # outside of the records' checksums: every bit of an entry
    flips = [(at, 1 << at % 8) for at in range(len(whole))]
    flips += [(at, 1 << bit) for at in range(directory, whole.index(b"PK\1\2", directory + 1)) for bit in range(8)]
    told = 0
    for at, bit in flips:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        try:
            assert equal(read_checkpoint(path), expected), f"byte {at} of {len(whole)}, bit {bit}"
        except UserError:
            told += 1
    assert told > len(flips) / 2


def test_a_file_without_checksums_is_read_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content(2.0), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.ckpt")["state_dict"], content(2.0)["state_dict"])
    assert "old.ckpt has no checksums" in capsys.readouterr().out


def test_absent_and_foreign_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.ckpt does not exist; give the path of a .ckpt file"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="it has no 'state_dict'"):
        read_checkpoint(tmp_path / "foreign.ckpt")


class Rebuilt:
    """Something that only executing code can rebuild."""


def nested(depth: int) -> list[Any]:
    return [] if not depth else [nested(depth - 1)]


def doubled(times: int) -> list[Any]:
    """A list of a few hundred bytes that is 2 to the power of `times` values."""
    values: list[Any] = [1]
    for _ in range(times):
        values = [values, values]
    return values


def paired(times: int) -> tuple[Any, ...]:
    """Tuples within tuples, whose hash takes 2 to the power of `times` steps."""
    values: tuple[Any, ...] = (1,)
    for _ in range(times):
        values = (values, values)
    return values


def within_itself() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {}}, "its 'config' has no 'backbone'"),
        ({"config": "x"}, "'config' of it is a text, expected names and values"),
        ({"config": {**CONFIG, "head": None}}, "'head' of its 'config' is nothing, expected names and values"),
        ({"config": {k: v for k, v in CONFIG.items() if k != "head"}}, "its 'config' has no 'head'"),
        ({"config": {**CONFIG, "lora": {}}}, "'lora' of its 'config' has no 'name'"),
        ({"config": {**CONFIG, "seed": "7"}}, "'seed' of its 'config' is a text, expected a whole number"),
        ({"config": {**CONFIG, "x": torch.zeros(1)}}, "'x' of its 'config' is a tensor, expected a plain value"),
        ({"config": {**CONFIG, "x": {1: 2}}}, "'x' of its 'config' has names that are not texts"),
        ({"config": {**CONFIG, "x": "x" * 20_000}}, "its 'config' is larger than any"),
        ({"config": {**CONFIG, "x": nested(50)}}, "its 'config' is larger than any"),
        ({"config": {**CONFIG, "x": doubled(15)}}, "its 'config' is larger than any"),
        ({"x": doubled(60)}, "it holds more than 1,000,000 values"),
        ({"x": paired(60)}, "it holds tuples within each other, 21 deep"),
        ({"x": within_itself()}, "it holds more than 1,000,000 values, or values within themselves"),
        ({"epoch": -1}, "'epoch' of it is the number -1, expected a whole number of at least 0"),
        ({"epoch": True}, "'epoch' of it is true or false"),
        ({"state_dict": []}, "'state_dict' of it is a list of 0, expected names and values"),
        ({"state_dict": {"weight": "x"}}, "'weight' of its 'state_dict' is a text, expected a tensor"),
        ({"state_dict": {1: torch.ones(1)}}, "its 'state_dict' has the number 1 as a name"),
        ({"state_dict": {"x": torch.zeros(1).expand(10**6, 10**6)}}, r"it has [\d,]+ bytes, but claims tensors"),
        ({"state_dict": {"x": torch.zeros(3).to_sparse()}}, "it holds a tensor of a special kind"),
        ({"state_dict": {"x": torch.zeros(3, device="meta")}}, "it holds a tensor of a special kind"),
        ({"x": Rebuilt()}, r"it holds [\w.]+Rebuilt, which cannot be rebuilt without executing its code: refused"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    torch.save({**content(1.0), **change}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"^ckpt_path: .*x.ckpt is not a readable checkpoint \({message}") as error:
        read_checkpoint(tmp_path / "x.ckpt")
    assert "weights_only" not in str(error.value)  # PyTorch's advice, which is to execute the file


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weights = {
        "sound": torch.ones(2),
        "empty": torch.ones(0),
        "count": torch.tensor(3),
        "first": torch.ones(9).to(dtype),
    }
    weights["first"][4] = value
    torch.save({**content(1.0), "state_dict": weights}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt holds NaN or infinite weights, the first in 'first'"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_an_archive_that_is_larger_inside_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    torch.save({**content(0.0, size=1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match=r"it has [\d,]{5,7} bytes, but claims to hold 4,0"):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_refused_unexecuted(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "pickle.ckpt"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "executed"), protocol=protocol))
    with pytest.raises(UserError, match=r"pickle.ckpt is not a readable checkpoint \(it is (another kind|damaged)"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.ckpt")
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    for path in (tmp_path, tmp_path / "fifo.ckpt", tmp_path / "loop.ckpt", Path("/dev/zero")):
        with pytest.raises(UserError, match="does not exist"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("missing", "found"), [("optimizer_states", None), ("loops", []), ("callbacks", 5), ("epoch", None)]
)
def test_a_checkpoint_without_its_progress_is_tested_but_not_continued(
    tmp_path: Path, missing: str, found: object
) -> None:
    progress = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.6.6", "optimizer_states": []}
    progress |= {"loops": {}, "callbacks": {}, "lr_schedulers": []}
    torch.save({**content(1.0), **progress}, tmp_path / "x.ckpt")
    AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    progress = {k: v for k, v in progress.items() if k != missing} | ({} if found is None else {missing: found})
    torch.save({**content(1.0), **progress}, tmp_path / "x.ckpt")
    read_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"x.ckpt cannot be continued \(.*{missing}.*; give a last.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")


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
        ({"1.weight": torch.ones(2, 4)}, r"missing tensors: 1, the first '1.bias'"),
        (
            {"1.weight": torch.ones(2, 4), "1.bias": torch.ones(2), "2.bias": torch.ones(2)},
            r"unknown tensors: 1, the first '2.bias'",
        ),
        (
            {"1.weight": torch.ones(2, 5), "1.bias": torch.ones(2)},
            r"tensors of another shape: 1, the first '1.weight'",
        ),
        (
            {"1.weight": torch.ones(2, 4), "1.bias": torch.ones(2).long()},
            r"tensors of another number type: 1, the first '1.bias'",
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
    with pytest.raises(UserError, match=r"tensors of another shape: 1, the first 'memory.table'"):
        load_weights(module, {"memory.table": torch.ones(5, 3)}, source="x.ckpt")


def test_encoder_weights_leave_losses_out() -> None:
    weights = {"encoder.backbone.a": torch.ones(1), "objective.terms.id.classifier.weight": torch.ones(9, 1)}
    assert set(encoder_weights({"state_dict": weights, "config": {}})) == {"backbone.a"}
