from pathlib import Path

import pytest

from utils.config import find_checkpoint, parse_size, run_dir
from utils.errors import UserError


@pytest.mark.parametrize("text", ["(384,128)", "384x128", "384,128", " ( 384 , 128 ) ", "'(384,128)'"])
def test_every_spelling_of_a_size(text: str) -> None:
    assert parse_size(text) == [384, 128]


@pytest.mark.parametrize("text", ["384", "384x", "0x128", "axb", "(384,128,3)", "-1x5", "__import__('os')"])
def test_what_is_no_size_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"img_size_str: .* is not a size; write height and width as \(384,128\)"):
        parse_size(text)


def leave_checkpoint(folder: Path, time: str) -> Path:
    path = folder / "name" / time / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_last_is_the_newest_run_of_the_name(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    newest = leave_checkpoint(tmp_path, "2026-01-02_00-00-00")
    (tmp_path / "name" / "2026-01-03_00-00-00").mkdir()
    assert find_checkpoint(str(tmp_path), "name", "last") == newest
    assert find_checkpoint(str(tmp_path), "name", None) is None
    missing = find_checkpoint(str(tmp_path), "other", "last")
    assert missing is not None
    assert not missing.exists()


def test_a_continued_run_stays_in_its_folder(tmp_path: Path) -> None:
    checkpoint = leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    run = checkpoint.parent.parent
    assert run_dir("train", str(tmp_path), "name", "last", "vn3k_vi") == str(run)
    assert run_dir("train", str(tmp_path), "name", str(checkpoint), "vn3k_vi") == str(run)
    assert run_dir("test", str(tmp_path), "name", str(checkpoint), "vn3k_vi") == str(run / "test-vn3k_vi")
    new = Path(run_dir("train", str(tmp_path), "name", None, "vn3k_vi"))
    assert new.parent == tmp_path / "name"
    assert not new.exists()


@pytest.mark.parametrize(("variable", "value"), [("LOCAL_RANK", "0"), ("SLURM_NTASKS", "2")])
def test_processes_of_one_run_are_not_named_by_the_time(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir.cache_clear()
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match="run_dir: processes that torchrun or srun starts need one folder"):
        run_dir("train", str(tmp_path), "name", None, "vn3k_vi")
    checkpoint = leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    assert run_dir("train", str(tmp_path), "name", "last", "vn3k_vi") == str(checkpoint.parent.parent)
