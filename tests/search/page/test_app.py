"""The page answers 50 at once, and serves no file that is not an image in an indexed folder."""

import csv
import io
import json
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from search.index import Index
from search.page import app
from search.page.serve import is_loopback, listen, server_of
from search.page.texts import TEXTS, language_of
from search.tables import id_of
from tests.search.color_encoder import COLORS, ColorEncoder, draw
from utils.errors import UserError

SECRET = b"the secret"


class Served:
    """A page at `address` for the images in `photos`, beside which lies a secret."""

    def __init__(self, folder: Path, port: int) -> None:
        self.photos, self.port, self.address = folder / "photos", port, f"http://127.0.0.1:{port}"

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **options)

    def raw(self, path: str, host: str = "127.0.0.1") -> bytes:
        """Returns the answer to a path as it is, which `requests` would tidy."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sent:
            sent.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sent.recv(65536), b""))

    def id(self, name: str) -> str:
        return id_of(str(self.photos / name))

    def found(self, question: str) -> list[str]:
        return [hit["name"] for hit in self.get(f"/api/{question}").json()["hits"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served").resolve()
    (folder / "secret.txt").write_bytes(SECRET)
    draw(folder / "secret.png", "white")
    for color in COLORS:
        draw(folder / "photos" / "cam1" / f"{color}.png", color)
    for name in ("link", "gone", "text", "moved/inner"):
        draw(folder / "photos" / f"{name}.png", (90, 10, 10))
    index = Index.open(folder / "index")
    index.add_folder(folder / "photos", ColorEncoder())
    listening = listen("127.0.0.1", 0)
    server = server_of(index, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield Served(folder, listening.getsockname()[1])
    server.should_exit = True
    thread.join(30)


def test_a_sentence_finds_images_with_their_thumbnails_and_originals(served: Served) -> None:
    [hit] = served.get("/api/search?q=red&k=1").json()["hits"]
    assert hit == {"id": served.id("cam1/red.png"), "name": "photos/cam1/red.png", "score": 1.0}
    small = served.get(f"/thumbnail/{hit['id']}")
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.content)).size == (12, 24)
    original = served.get(f"/original/{hit['id']}")
    assert original.content == (served.photos / "cam1" / "red.png").read_bytes()
    assert original.headers["content-type"] == "image/png"


def test_more_like_an_image_and_like_a_picture(served: Served) -> None:
    like = served.get(f"/api/similar/{served.id('cam1/red.png')}?k=2").json()
    assert like["name"] == "photos/cam1/red.png"
    assert "photos/cam1/red.png" not in [hit["name"] for hit in like["hits"]]
    picture = (served.photos / "cam1" / "blue.png").read_bytes()
    found = requests.post(f"{served.address}/api/picture?k=1", data=picture, timeout=60).json()["hits"]
    assert [hit["name"] for hit in found] == ["photos/cam1/blue.png"]


def test_a_folder_is_a_filter_and_never_a_path_to_read(served: Served) -> None:
    assert set(served.found(f"search?q=red&folder={served.photos}/cam1")) == {f"photos/cam1/{c}.png" for c in COLORS}
    for folder in (served.photos.parent, "/", "..", "/etc"):
        assert not {"photos/../secret.png", "secret.png"} & set(served.found(f"search?q=red&folder={folder}"))
    assert served.found("search?q=red&folder=/etc") == []


def test_fifty_parallel_questions_each_get_their_answer(served: Served) -> None:
    colors = list(COLORS) * 10
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda color: served.found(f"search?q={color}&k=1"), colors))
    assert found == [[f"photos/cam1/{color}.png"] for color in colors]


HOSTILE = (
    "/../secret.txt",
    "/static/../../../secret.txt",
    "/static/%2e%2e/%2e%2e/%2e%2e/app.py",
    "/static/..%2fapp.py",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/original/../../etc/passwd",
    "/original/%2e%2e%2f%2e%2e%2fsecret.txt",
    "/original//etc/passwd",
    "/original/{secret}",
    "/original/{secret_png}",
    "/original/{unindexed}",
    "/original/%00",
    "/original/x%27%20OR%20true%20--",
    "/thumbnail/../original/{secret}",
    "/thumbnail/%27%20OR%20%27%27%3D%27",
    "/thumbnail/{unindexed}",
    "/api/similar/{unindexed}",
    "/api/similar/..%2f..%2fsecret.txt",
    "/api/export",
    "/app.py",
    "/index/images.lance",
    "//etc/passwd",
    "http://127.0.0.1/../secret.txt",
)


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_get_nothing(served: Served, path: str) -> None:
    folder = served.photos.parent
    named = {
        "secret": str(folder / "secret.txt").replace("/", "%2f"),
        "secret_png": str(folder / "secret.png").replace("/", "%2f"),
        "unindexed": id_of(str(folder / "secret.png")),
    }
    answer = served.raw(path.format(**named))
    status = int(answer.split()[1])
    assert 400 <= status < 500, answer
    assert SECRET not in answer
    assert b"root:" not in answer
    assert b"import " not in answer


def test_files_that_are_no_longer_what_was_indexed_are_not_served(served: Served) -> None:
    outside = served.photos.parent
    (served.photos / "link.png").unlink()
    (served.photos / "link.png").symlink_to(outside / "secret.png")
    (served.photos / "gone.png").unlink()
    (served.photos / "text.png").write_bytes(SECRET)
    shutil.rmtree(served.photos / "moved")
    draw(outside / "elsewhere" / "inner.png", "white")
    (served.photos / "moved").symlink_to(outside / "elsewhere")
    for name in ("link", "gone", "text", "moved/inner"):
        answer = served.get(f"/original/{served.id(f'{name}.png')}")
        assert answer.status_code == 404, name
        assert SECRET not in answer.content
        assert served.get(f"/thumbnail/{served.id(f'{name}.png')}").status_code == 200, "of the image as indexed"
    ids = [served.id(name) for name in ("cam1/red.png", "link.png", "gone.png", "moved/inner.png")]
    export = requests.post(f"{served.address}/api/export?as=zip", data="\n".join(ids), timeout=60)
    with zipfile.ZipFile(io.BytesIO(export.content)) as archive:
        assert archive.namelist() == ["photos/cam1/red.png", "left-out.txt"]
        assert archive.read("photos/cam1/red.png") == (served.photos / "cam1" / "red.png").read_bytes()
        assert len(archive.read("left-out.txt").splitlines()) == 3


def test_a_selection_is_exported_as_csv(served: Served) -> None:
    ids = [served.id(f"cam1/{color}.png") for color in ("green", "red")]
    answer = requests.post(f"{served.address}/api/export?as=csv", data="\n".join([*ids, ids[0]]), timeout=60)
    paths = [str(served.photos / "cam1" / f"{color}.png") for color in ("green", "red")]
    assert list(csv.reader(io.StringIO(answer.content.decode()))) == [["path"], *([path] for path in paths)]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::2]"])
def test_another_name_for_this_machine_is_refused(served: Served, host: str) -> None:
    answer = served.raw("/api/search?q=red", host)
    assert answer.split()[1] == b"400"
    assert b"hits" not in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:8000"])
def test_names_of_this_machine_are_answered(served: Served, host: str) -> None:
    assert served.raw("/api/search?q=red", host).split()[1] == b"200"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/api/search?q=", b"", 400, "the sentence is empty"),
        ("GET", f"/api/search?q={2001 * 'a'}", b"", 400, "more than 2,000 letters"),
        ("GET", "/api/search?q=red&k=0", b"", 400, "expected 1 to 200"),
        ("GET", "/api/search?q=red&k=1e9", b"", 400, "expected 1 to 200"),
        ("POST", "/api/picture", b"no picture", 415, "the picture cannot be read"),
        ("POST", "/api/export?as=zip", b"", 400, "0 images are selected"),
        ("POST", "/api/export?as=exe", b"{red}", 400, "expected zip or csv"),
        ("POST", "/api/export?as=zip", b"0123456789abcdef", 400, "no such image"),
        ("POST", "/api/search?q=red", b"", 405, "Method Not Allowed"),
    ],
)
def test_wrong_requests_get_one_sentence(
    served: Served, method: str, path: str, body: bytes, status: int, message: str
) -> None:
    body = body.replace(b"{red}", served.id("cam1/red.png").encode())
    answer = requests.request(method, served.address + path, data=body, timeout=60)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_a_picture_that_is_too_large_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LARGEST_PICTURE", 1000)
    assert requests.post(f"{served.address}/api/picture", data=b"x" * 2000, timeout=60).status_code == 413


def test_every_answer_forbids_other_sites(served: Served) -> None:
    image = served.id("cam1/red.png")
    for path in (
        "/",
        "/static/search.js",
        f"/thumbnail/{image}",
        f"/original/{image}",
        "/nowhere",
        "/api/search?q=red",
    ):
        headers = served.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'"), path
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_page_is_in_the_language_that_is_asked_for(served: Served) -> None:
    assert TEXTS["en"].keys() == TEXTS["vi"].keys()
    for language, asked in (("vi", "?lang=vi"), ("en", "?lang=en"), ("en", "?lang=fr"), ("en", "")):
        page = served.get(f"/{asked}").text
        assert f'<html lang="{language}">' in page
        assert f"<h1>{TEXTS[language]['title']}</h1>" in page
        assert f"{served.photos}/cam1" in page
    assert language_of(None, "fr, vi-VN;q=0.8, en;q=0.5") == "vi"
    texts = json.loads(page.split('id="texts">')[1].split("</script>")[0])
    assert texts == TEXTS["en"]


def test_only_the_loopback_address_is_taken_for_this_machine() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")] == [False] * 4


def test_a_port_in_use_is_told(served: Served) -> None:
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{served.port} cannot be listened on .*; choose another --port"):
        listen("127.0.0.1", served.port)
    with pytest.raises(UserError, match="cannot be listened on"):
        listen("127.0.0.1", 99999)
