"""Downloads over http(s) that continue where they were interrupted."""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import requests
from requests.exceptions import ChunkedEncodingError

from utils.errors import UserError
from utils.training.progress import Bar

CHUNK: Final = 1 << 16  # bytes; at most so many are lost when a connection breaks
ATTEMPTS: Final = 5
PAUSE = 1.0  # seconds before the second attempt; each further pause is twice as long
TIMEOUT: Final = 30
BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
AGAIN: Final = "run the same command again"


class UnreachableError(UserError):
    """A server that cannot be reached, or a connection that keeps breaking."""


class _PartialError(Exception):
    """A transfer that stopped early and may be continued."""


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of the file system (disk full, no permission) into a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); make room or permit it, then {AGAIN}"
        ) from error


def reason(error: Exception) -> str:
    """Returns why a request failed, without the layers that libraries wrap around it."""
    text = str(error)
    known = re.search(r"Connection (refused|broken|reset)|Failed to resolve|Name or service not known|timed out", text)
    return known[0] if known else text or type(error).__name__


def download(url: str, target: Path, *, sha256: str | None = None, headers: Mapping[str, str] | None = None) -> Path:
    """Downloads `url` to `target` and returns `target`.

    Bytes are written to ``<target>.part``. If a run is interrupted, the next run continues this file with a Range
    request. Without `sha256`, the request also sends the validator of the first response (If-Range, RFC 9110). If
    the server ignores Range, or its file has changed, it sends the whole file and the part starts again.

    Args:
        sha256: the expected SHA-256 of the file, in lower case.
        headers: sent with the request; Authorization is not sent to another host after a redirect.

    Raises:
        UnreachableError: if there is no connection, or `ATTEMPTS` attempts in a row brought no new byte.
        UserError: if the server refuses, the disk is full, or the SHA-256 differs.
    """
    part = _Part(target, trusted=sha256 is not None)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer_patiently(url, part, headers or {})
        if sha256 is not None and (found := sha256_of(part.path)) != sha256:
            part.discard()
            raise UserError(f"{url} arrived with SHA-256 {found}, expected {sha256}; it was deleted: {AGAIN}")
        part.path.replace(target)
        part.discard()
    return target


class _Part:
    """The unfinished file beside a download's target, and the validator of the response that it came from.

    trusted: whether the finished file's SHA-256 is checked; then it may be continued without a validator.
    """

    def __init__(self, target: Path, *, trusted: bool) -> None:
        self.title = target.name
        self.path = target.with_name(f"{target.name}.part")
        self._mark = target.with_name(f"{target.name}.part.validator")
        self._trusted = trusted

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def headers(self) -> dict[str, str]:
        """Returns request headers that ask for the rest; empty if the part has to start again."""
        validator = self._mark.read_text(encoding="utf-8") if self._mark.is_file() else ""
        if self.size == 0 or not (self._trusted or validator):
            return {}
        return {"Range": f"bytes={self.size}-"} | ({} if self._trusted else {"If-Range": validator})

    def begin(self, response: requests.Response) -> None:
        """Empties the part and stores the strong validator of `response`, if it has one."""
        etag = response.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        self.path.write_bytes(b"")
        self._mark.write_text(strong, encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


def _transfer_patiently(url: str, part: _Part, headers: Mapping[str, str]) -> None:
    """Fills `part`; gives up after `ATTEMPTS` attempts in a row without a new byte."""
    failures = 0
    while True:
        before = part.size
        try:
            _transfer(url, part, headers)
            return
        except (requests.ConnectionError, requests.Timeout, ChunkedEncodingError, _PartialError) as error:
            failures = 1 if part.size > before else failures + 1
            if failures == ATTEMPTS:
                raise UnreachableError(
                    f"{url} cannot be downloaded ({reason(error)}); {part.size} bytes of it are kept: "
                    f"{AGAIN} to continue"
                ) from error
            time.sleep(PAUSE * 2 ** (failures - 1))
        except requests.RequestException as error:
            raise UserError(f"{url} cannot be downloaded ({reason(error)}); check the address") from error


def _transfer(url: str, part: _Part, headers: Mapping[str, str]) -> None:
    """Makes one request and appends the response to `part`; returns only if the file is complete."""
    resume = part.headers()
    sent = {"Accept-Encoding": "identity", **headers, **resume}
    with requests.get(url, headers=sent, stream=True, timeout=TIMEOUT) as response:
        content_range = response.headers.get("Content-Range", "")
        if resume and response.status_code == 416:
            if content_range == f"bytes */{part.size}":
                return
            part.discard()
            raise _PartialError("the file is shorter than what had arrived of it")
        if response.status_code in BUSY:
            raise _PartialError(f"the server answered {response.status_code} {response.reason}")
        if not response.ok:
            raise UserError(f"{url} answered {response.status_code} {response.reason}; check the address")
        if response.status_code != 206:
            part.begin(response)
        elif not content_range.startswith(f"bytes {part.size}-"):
            part.discard()
            raise _PartialError("the server sent another range than asked for")
        _receive(response, part)


def _receive(response: requests.Response, part: _Part) -> None:
    length = response.headers.get("Content-Length")
    total = None if length is None else part.size + int(length)
    if total is not None and total - part.size > (free := shutil.disk_usage(part.path.parent).free):
        raise UserError(
            f"{part.title} needs {total - part.size} more bytes, but {part.path.parent} has {free} free: "
            f"make room and {AGAIN}"
        )
    with (
        Bar(total=total, initial=part.size, desc=part.title, unit="B", unit_scale=True) as bar,
        part.path.open("ab") as file,
    ):
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.size != total:
        raise _PartialError(f"{part.size} of {total} bytes arrived")
