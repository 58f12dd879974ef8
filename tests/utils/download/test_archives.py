import io
import os
import signal
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.forked import die, forked
from utils.download import archives
from utils.download.archives import install, unpack
from utils.errors import UserError

PICTURE = bytes(range(256)) * 200
DATASET = {"imgs/a/1.jpg": PICTURE, "imgs/2.jpg": PICTURE[::-1], "reid_raw.json": b"[]"}
KINDS = ["zip", "tar", "tar.gz", "tar.xz"]
OUTSIDE = [
    "../evil",
    "imgs/../../evil",
    "/evil",
    "C:\\evil",
    "C:evil",
    "imgs\\..\\..\\evil",
    "\\\\host\\evil",
]


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """Writes `files` to an archive of the kind that the name of `path` says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def under(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def content(folder: Path) -> dict[str, bytes]:
    """Everything below `folder`, hidden files included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_with(path: Path, name: str, kind: bytes, target: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapped", ["", "CUHK-PEDES", "CUHK-PEDES-main", "some/where/CUHK-PEDES"])
def test_imgs_lands_right_however_it_was_wrapped(tmp_path: Path, kind: str, wrapped: str) -> None:
    archive = pack(tmp_path / f"x.{kind}", under(wrapped, DATASET) if wrapped else DATASET)
    install(archive, tmp_path / "CUHK-PEDES")
    assert content(tmp_path / "CUHK-PEDES") == DATASET
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CUHK-PEDES", archive.name]
    assert stat.S_IMODE((tmp_path / "CUHK-PEDES").stat().st_mode) & 0o500 == 0o500


def test_the_dataset_is_found_among_what_else_was_packed(tmp_path: Path) -> None:
    files = (
        under("CUHK-PEDES", DATASET)
        | under("RSTPReid", {"imgs/9.jpg": b"other"})
        | under("__MACOSX/CUHK-PEDES", {"imgs/._1.jpg": b"junk"})
        | {"README.txt": b"hello"}
    )
    install(pack(tmp_path / "all.zip", files), tmp_path / "CUHK-PEDES")
    assert content(tmp_path / "CUHK-PEDES") == DATASET


def test_several_datasets_of_other_names_are_not_guessed_between(tmp_path: Path) -> None:
    archive = pack(tmp_path / "all.zip", under("a", DATASET) | under("b", DATASET))
    with pytest.raises(UserError, match=r"one folder with imgs/ in it, but there is several \(a, b\)"):
        install(archive, tmp_path / "VN3K")


def test_an_archive_without_images_says_what_it_holds(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.zip", {"paper.pdf": b"", "code/main.py": b""})
    with pytest.raises(UserError, match=r"none among \['code', 'paper.pdf'\]"):
        install(archive, tmp_path / "VN3K")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    archive = pack(home / f"x.{kind}", DATASET | {name: b"evil"})
    with pytest.raises(UserError, match="which would leave the folder"):
        install(archive, home / "VN3K")
    assert [path.name for path in home.iterdir()] == [archive.name]
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tar_with(tmp_path / "x.tar", "imgs/link", kind, target="1.jpg")
    with pytest.raises(UserError, match=r"holds 'imgs/link', a link or a device"):
        install(archive, tmp_path / "VN3K")
    assert not (tmp_path / "VN3K").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("imgs")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match=r"holds 'imgs', a link or a device"):
        install(tmp_path / "x.zip", tmp_path / "VN3K")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.zip", DATASET)
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        install(archive, tmp_path / "VN3K")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_leaves_an_existing_folder_as_it_was(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "VN3K"
    target.mkdir()
    (target / "data_captions.json").write_bytes(b"[1]")
    whole = pack(tmp_path / f"whole.{kind}", DATASET).read_bytes()
    archive = tmp_path / f"x.{kind}"
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged|cannot be unpacked|neither a zip nor a tar"):
        install(archive, target)
    assert content(target) == {"data_captions.json": b"[1]"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VN3K", f"whole.{kind}", f"x.{kind}"]


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("imgs/1.jpg", PICTURE)
    data = bytearray(archive.read_bytes())
    data[500] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged.*CRC"):
        install(archive, tmp_path / "VN3K")
    assert not (tmp_path / "VN3K").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_folders_without_an_end_are_refused(tmp_path: Path, kind: str) -> None:
    archive = pack(tmp_path / f"x.{kind}", DATASET | {"imgs/" + "a/" * 2000 + "1.jpg": b"x"})
    with pytest.raises(UserError, match=r"holds 'imgs/a/a/.*2002 folders deep; nothing of it was kept"):
        install(archive, tmp_path / "VN3K")
    assert not (tmp_path / "VN3K").exists()


def test_a_tar_that_claims_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("imgs/1.jpg")
    member.size = 2**60
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"x" * 10_240)
    with pytest.raises(UserError, match=r"unpacks to 1152921504606846976 bytes, but .* free; make room"):
        install(tmp_path / "x.tar", tmp_path / "VN3K")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.zip")
    for path in (tmp_path / "x.zip", tmp_path, tmp_path / "absent.zip"):
        with pytest.raises(UserError, match="is not a file; give the path of a zip or tar archive"):
            install(path, tmp_path / "VN3K")


def test_an_error_page_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("<html>quota exceeded</html>")
    with pytest.raises(UserError, match=r"neither a zip nor a tar archive.*error page"):
        install(tmp_path / "x.zip", tmp_path / "VN3K")


def test_images_join_an_annotation_file_that_was_there_first(tmp_path: Path) -> None:
    target = tmp_path / "CUHK-PEDES"
    target.mkdir()
    (target / "notes.txt").write_bytes(b"mine")
    install(pack(tmp_path / "x.zip", DATASET), target)
    assert content(target) == DATASET | {"notes.txt": b"mine"}


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "CUHK-PEDES"
    target.mkdir()
    (target / "reid_raw.json").write_bytes(b"[2]")
    with pytest.raises(UserError, match=r"has reid_raw\.json already; move that away"):
        install(pack(tmp_path / "x.zip", DATASET), target)
    assert content(target) == {"reid_raw.json": b"[2]"}


def test_a_folder_on_another_disk_may_be_linked(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "data"
    elsewhere.mkdir(parents=True)
    (tmp_path / "CUHK-PEDES").symlink_to(elsewhere)
    install(pack(tmp_path / "x.zip", under("CUHK-PEDES", DATASET)), tmp_path / "CUHK-PEDES")
    assert content(elsewhere) == DATASET
    assert [path.name for path in elsewhere.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("kind", KINDS)
def test_backslashes_are_slashes(tmp_path: Path, kind: str) -> None:
    windows = {name.replace("/", "\\"): each for name, each in under("CUHK-PEDES", DATASET).items()}
    if kind == "zip":
        windows["CUHK-PEDES\\imgs\\empty\\"] = b""
    install(pack(tmp_path / f"x.{kind}", windows), tmp_path / "CUHK-PEDES")
    assert content(tmp_path / "CUHK-PEDES") == DATASET


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, target = pack(tmp_path / "x.zip", DATASET), tmp_path / "CUHK-PEDES"
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_move_in", die)
        assert forked(lambda: install(archive, target)) == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 3, "an unpacked folder and its lock"
    install(archive, target)
    assert content(target) == DATASET
    assert sorted(os.listdir(tmp_path)) == ["CUHK-PEDES", "x.zip"]


def test_too_little_room_is_noticed_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=rf"unpacks to {2 * len(PICTURE) + 2} bytes, but .* has 10 free"):
        install(pack(tmp_path / "x.zip", DATASET), tmp_path / "VN3K")
    assert not (tmp_path / "VN3K").exists()


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    archive = pack(tmp_path / "x.tar", DATASET)
    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(UserError, match=r"cannot be unpacked \(No space left on device\)"):
        install(archive, tmp_path / "VN3K")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_unpacked_files_do_not_bring_their_set_user_id_along(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("tool")
        member.mode = 0o6777
        archive.addfile(member)
    unpack(tmp_path / "x.tar", tmp_path)
    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) & 0o7022 == 0
