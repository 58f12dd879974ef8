import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from zipfile import ZipFile

import pytest

from tests.forked import run_python
from tests.http_server import WebServer, web_server
from utils.download import fetch
from utils.errors import UserError

REPOSITORY = Path(fetch.__file__).parents[2]
PATH = "/files/CUHK%20PEDES.zip"


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """An archive of a dataset, stored without compression, of about 1 MiB."""
    path = tmp_path / "packed.zip"
    with ZipFile(path, "w") as packed:
        packed.writestr("CUHK-PEDES/imgs/1.bmp", os.urandom(1 << 20))
        packed.writestr("CUHK-PEDES/reid_raw.json", "[]")
    return path.read_bytes()


@pytest.fixture
def server(archive: bytes) -> Iterator[WebServer]:
    with web_server() as running:
        running.files[PATH] = archive
        yield running


def command(root: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "utils.download", "cuhk_pedes", "--root", str(root), *options]


def run(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_python(*command(root, *options)[1:])


def test_a_killed_fetch_is_continued_then_kept(server: WebServer, archive: bytes, tmp_path: Path) -> None:
    server.stalls[PATH] = len(archive) // 2
    source = ("--from", server.url + PATH, "--sha256", hashlib.sha256(archive).hexdigest().upper())
    process = subprocess.Popen(command(tmp_path, *source), cwd=REPOSITORY)
    assert server.stalled.wait(30)
    while not any(path.stat().st_size for path in tmp_path.glob("downloads/*.part")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "CUHK-PEDES").exists()
    server.stalls.clear()

    second = run(tmp_path, *source)
    assert second.returncode == 0, second.stderr
    assert "CUHK-PEDES is in place" in second.stdout
    assert (tmp_path / "CUHK-PEDES" / "imgs" / "1.bmp").stat().st_size == 1 << 20
    start, sent = server.sent(PATH)[-1]
    assert start > 0
    assert start + sent == len(archive)

    third = run(tmp_path, *source)
    assert third.returncode == 0
    assert "holds images already and is kept" in third.stdout
    assert len(server.sent(PATH)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "absent.zip"], "there is no file absent.zip"),
        (["--from", "absent.zip", "--sha256", "12"], "expected the 64 hexadecimal digits"),
        ([], "the following arguments are required: --from"),
    ],
)
def test_a_wrong_call_ends_with_status_2(tmp_path: Path, options: list[str], message: str) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_archive_on_disk_is_used_where_it_lies(tmp_path: Path, archive: bytes) -> None:
    local = tmp_path / "packed.zip"
    assert fetch.fetch_archive(str(local), tmp_path / "downloads", prefix="VN3K") == local
    assert not (tmp_path / "downloads").exists()
    with pytest.raises(UserError, match=rf"SHA-256 {hashlib.sha256(archive).hexdigest()}, expected 00"):
        fetch.fetch_archive(str(local), tmp_path / "downloads", prefix="VN3K", sha256="0" * 64)
    assert local.read_bytes() == archive


def test_an_archive_is_fetched_once_per_address(server: WebServer, archive: bytes, tmp_path: Path) -> None:
    server.files["/other" + PATH] = b"other"
    folder = tmp_path / "downloads"
    first = fetch.fetch_archive(server.url + PATH, folder, prefix="VN3K")
    again = fetch.fetch_archive(server.url + PATH, folder, prefix="VN3K")
    other = fetch.fetch_archive(server.url + "/other" + PATH, folder, prefix="VN3K")
    assert first == again != other
    assert first.name.startswith("VN3K-")
    assert first.name.endswith("-CUHK PEDES.zip")
    assert (first.read_bytes(), other.read_bytes()) == (archive, b"other")
    assert len(server.requests) == 2


class _RefusedError(Exception):
    """Stands in for gdown's own error."""


def fake_gdown(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> list[dict[str, object]]:
    """Puts a gdown in place that writes `content`, or refuses; returns the calls that it gets."""
    calls: list[dict[str, object]] = []

    def download(*, id: str, output: str, resume: bool) -> None:
        calls.append({"id": id, "resume": resume})
        if content is None:
            raise _RefusedError("Too many users have viewed or downloaded this file recently.")
        Path(output).write_bytes(content)

    module = ModuleType("gdown")
    module.download = download  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(FileURLRetrievalError=_RefusedError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gdown", module)
    return calls


def test_google_drive_is_fetched_through_gdown_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_gdown(monkeypatch, b"archive")
    for _ in range(2):
        archive = fetch.fetch_archive("gdrive:1A-b_C", tmp_path / "downloads", prefix="VN3K")
    assert archive.read_bytes() == b"archive"
    assert calls == [{"id": "1A-b_C", "resume": True}]


def test_google_drive_that_refuses_names_the_way_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_gdown(monkeypatch, None)
    with pytest.raises(UserError, match=r"does not hand out abc \(Too many users.*\); open the link in a browser"):
        fetch.fetch_archive("gdrive:abc", tmp_path / "downloads", prefix="VN3K")


def test_google_drive_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match="uv run --extra drive"):
        fetch.fetch_archive("gdrive:abc", tmp_path, prefix="VN3K")


def test_a_google_drive_link_is_not_an_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a Google Drive id; copy what stands between /d/ and /view"):
        fetch.fetch_archive("gdrive:drive.example/file/d/abc/view", tmp_path, prefix="VN3K")
