import hashlib
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.http_server import WebServer, web_server
from utils.download import download as module
from utils.download.download import UnreachableError, download
from utils.errors import UserError

CONTENT = bytes(range(256)) * 40_000
HALF = 80 * module.CHUNK
SOME = 3 * module.CHUNK
PATH = "/data.zip"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as running:
        running.files[PATH] = CONTENT
        yield running


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size` bytes: what a full disk does to a download."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def interrupt(server: WebServer, target: Path) -> None:
    """Runs a download that gets the first `HALF` of the bytes, then none until it gives up."""
    server.cuts[PATH] = [HALF] + [0] * module.ATTEMPTS
    with pytest.raises(UnreachableError, match=r"cannot be downloaded \(.*\); \d+ bytes of it are kept"):
        download(server.url + PATH, target)
    server.cuts.clear()
    server.requests.clear()
    assert not target.exists()


def test_a_download_leaves_the_file_and_nothing_else(server: WebServer, tmp_path: Path) -> None:
    target = tmp_path / "new" / "data.zip"
    assert download(server.url + PATH, target) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["data.zip"]
    assert server.sent(PATH) == [(0, len(CONTENT))]


def test_a_cut_connection_is_continued_in_the_same_run(server: WebServer, tmp_path: Path) -> None:
    server.cuts[PATH] = [HALF, SOME, 0, SOME]
    download(server.url + PATH, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    starts = [0, HALF, HALF + SOME, HALF + SOME, HALF + 2 * SOME]
    assert [start for start, _ in server.sent(PATH)] == starts
    assert sum(sent for _, sent in server.sent(PATH)) == len(CONTENT)


def test_the_next_run_continues_an_interrupted_one(server: WebServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "data.zip")
    download(server.url + PATH, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.sent(PATH) == [(HALF, len(CONTENT) - HALF)]


def test_a_server_without_ranges_sends_everything_anew(server: WebServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "data.zip")
    server.ranges = False
    download(server.url + PATH, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.sent(PATH) == [(0, len(CONTENT))]


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_half(server: WebServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "data.zip")
    server.files[PATH] = changed = CONTENT[::-1]
    download(server.url + PATH, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == changed


def test_without_validator_only_a_known_sha256_allows_to_continue(server: WebServer, tmp_path: Path) -> None:
    server.validators = False
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    server.cuts[PATH] = [HALF]
    download(server.url + PATH, tmp_path / "data.zip", sha256=sha256)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.sent(PATH) == [(0, HALF), (HALF, len(CONTENT) - HALF)]

    server.requests.clear()
    server.cuts[PATH] = [HALF]
    download(server.url + PATH, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == CONTENT
    assert server.sent(PATH) == [(0, HALF), (0, len(CONTENT))]


def test_a_part_that_is_whole_already_is_taken(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    download(server.url + PATH, tmp_path / "data.zip", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.sent(PATH) == [(len(CONTENT), 0)]


def test_a_part_longer_than_the_file_is_dropped(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT + b"more")
    download(server.url + PATH, tmp_path / "data.zip", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_an_empty_file_is_a_file(server: WebServer, tmp_path: Path) -> None:
    server.files[PATH] = b""
    assert download(server.url + PATH, tmp_path / "data.zip").read_bytes() == b""


def test_a_busy_server_is_asked_again(server: WebServer, tmp_path: Path) -> None:
    server.statuses[PATH] = [503, 429]
    assert download(server.url + PATH, tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_missing_file_is_asked_for_once(server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answered 404 Not Found; check the address"):
        download(server.url + "/absent.zip", tmp_path / "data.zip")
    assert list(tmp_path.iterdir()) == []


def test_another_sha256_leaves_nothing_behind(server: WebServer, tmp_path: Path) -> None:
    found = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(UserError, match=f"SHA-256 {found}, expected {'0' * 64}; it was deleted"):
        download(server.url + PATH, tmp_path / "data.zip", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_says_so(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(UnreachableError, match=r"cannot be downloaded \(Connection refused\)"):
        download(f"http://127.0.0.1:{port}/data.zip", tmp_path / "data.zip")


def test_what_is_no_address_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="check the address"):
        download("http://", tmp_path / "data.zip")


def test_a_full_disk_keeps_what_arrived_and_the_next_run_continues(server: WebServer, tmp_path: Path) -> None:
    with largest_file(3 << 20), pytest.raises(UserError, match=r"cannot write .*data\.zip"):
        download(server.url + PATH, tmp_path / "data.zip")
    assert not (tmp_path / "data.zip").exists()
    kept = (tmp_path / "data.zip.part").stat().st_size
    assert kept > 0
    download(server.url + PATH, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.sent(PATH)[-1] == (kept, len(CONTENT) - kept)


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=rf"needs {len(CONTENT)} more bytes, but .* has 1000 free"):
        download(server.url + PATH, tmp_path / "data.zip")


def test_a_folder_that_cannot_be_made_is_named(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file.data\.zip \(File exists\)"):
        download(server.url + PATH, tmp_path / "file" / "data.zip")
