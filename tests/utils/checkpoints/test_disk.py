import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.forked import die, forked
from utils.checkpoints.disk import scratch_folder, sweep, whole_file, why_not_written, write_whole


def dies_writing(target: Path) -> None:
    with whole_file(target) as file:
        file.write(b"half")
        file.flush()
        die()


def dies_building(target: Path) -> None:
    with scratch_folder(target) as folder:
        (folder / "half").mkdir()
        die()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    write_whole(target, "old")
    with suppress(KeyError), whole_file(target) as file:
        file.write(b"half")
        file.flush()
        assert len(names(target.parent)) == 2, "it is written beside its place"
        raise KeyError
    assert names(target.parent) == ["file"]
    assert target.read_text() == "old"
    write_whole(target, "new")
    assert target.read_text() == "new"


def test_a_folder_to_build_in_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "target") as folder:
        (folder / "built").mkdir()
        (folder / "built").rename(tmp_path / "target")
        (folder / "rest").write_text("rest")
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("dies", [dies_writing, dies_building])
def test_what_a_dead_process_left_is_swept_by_the_next_writer(dies: object, tmp_path: Path) -> None:
    (tmp_path / ".mine").write_text("stays")
    assert forked(lambda: dies(tmp_path / "target")) == -signal.SIGKILL  # type: ignore[operator]
    assert len(names(tmp_path)) > 1
    write_whole(tmp_path / "other", "whole")
    assert names(tmp_path) == [".mine", "other"]


@pytest.mark.parametrize("held_by", ["itself", "a worker of a dead process"])
def test_what_a_living_process_writes_is_left_alone(held_by: str, tmp_path: Path) -> None:
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with scratch_folder(tmp_path / "target") as folder:
            (folder / "built").mkdir()
            if held_by != "itself" and os.fork():
                die()
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
            (folder / "built").rename(tmp_path / "target")
        os.write(ready[1], b"x")
        os._exit(0)
    os.read(ready[0], 1)
    if held_by != "itself":
        os.waitpid(child, 0)
    sweep(tmp_path)
    os.write(go_on[1], b"x")
    os.read(ready[0], 1)
    assert names(tmp_path) == ["target"]


def test_the_systems_own_reason_is_found_behind_a_librarys(tmp_path: Path) -> None:
    try:
        try:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")
    except RuntimeError as error:
        told = why_not_written(error, tmp_path / "not" / "yet")
    assert told.startswith("No space left on device: /")
    assert told.endswith(" GB free")
    assert why_not_written(RuntimeError("first.\nsecond"), tmp_path) == "first"
