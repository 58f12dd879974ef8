"""Resumable download of a model from the Hugging Face hub, checked against the hub's checksums."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import requests
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers

from utils.checkpoints.folder import make_way, read_record, to_safetensors, write_record
from utils.checkpoints.layouts import TRANSFORMERS, Layout
from utils.download.download import AGAIN, TIMEOUT, UnreachableError, download, reason, sha256_of, writing
from utils.errors import UserError


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. The hub knows the SHA-256 of large files and the git hash of small ones."""

    name: str
    size: int | None
    sha256: str | None
    git_sha1: str | None

    def is_at(self, path: Path) -> bool:
        """Returns whether the file at `path` has the size and hash that the hub gives."""
        if not path.is_file() or self.size not in (None, path.stat().st_size):
            return False
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False)
        return self.git_sha1 in (None, blob.hexdigest())


def download_folder(repo: str, folder: Path, *, weights: bool = True, layout: Layout = TRANSFORMERS) -> None:
    """Downloads config, tokenizer and, if `weights` is true, weights of `repo` to `folder`; keeps files that are right.

    The library's own `snapshot_download` restarts a killed download from the first byte; this function continues
    it. Weights come last, so that a folder with weights is complete. If the hub has only pickled weights, they
    are converted without executing code.

    Raises:
        UnreachableError: if there is no connection to the hub, or it keeps breaking.
        UserError: if there is no such model, a file does not match the hub's checksum, or the disk is full.
    """
    revision, files = list_files(repo)
    large = files.get(layout.weights) or files.get(layout.pickled)
    if large is None and weights:
        raise UserError(f"{repo} has neither {layout.weights} nor {layout.pickled} at {constants.ENDPOINT}")
    small = [files[name] for name in layout.small_files if name in files]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in small:
            _download_file(repo, revision, file, folder)
        if large is None or not weights:
            return
        if large.name == layout.weights:
            _download_file(repo, revision, large, folder)
        elif not _was_converted(folder / layout.weights, revision):
            _download_file(repo, revision, large, folder)
            make_way(folder / layout.weights)
            to_safetensors(folder / layout.pickled, folder / layout.weights)
            (folder / layout.pickled).unlink()
        write_record(folder, repo=repo, revision=revision, files=[layout.weights, *(file.name for file in small)])


def list_files(repo: str) -> tuple[str, dict[str, RemoteFile]]:
    """Returns the newest commit of `repo` and its files by path."""
    if constants.HF_HUB_OFFLINE:
        raise UnreachableError(f"{repo} cannot be downloaded because HF_HUB_OFFLINE is set")
    address = f"{constants.ENDPOINT}/api/models/{repo}"
    try:
        response = requests.get(address, params={"blobs": "true"}, headers=build_hf_headers(), timeout=TIMEOUT)
    except requests.RequestException as error:
        raise UnreachableError(f"{repo} cannot be downloaded from {constants.ENDPOINT} ({reason(error)})") from error
    if response.status_code in (401, 403, 404):
        raise UserError(
            f"{constants.ENDPOINT} does not hand out {repo} ({response.status_code} {response.reason}): "
            "look at HF_ENDPOINT, or log in with 'hf auth login' if the model is gated there"
        )
    if not response.ok:
        raise UnreachableError(f"{address} answered {response.status_code} {response.reason}")
    try:
        info = response.json()
        return info["sha"], {entry["rfilename"]: _remote_file(entry) for entry in info["siblings"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{address} does not answer as the Hugging Face hub does; look at HF_ENDPOINT and at your proxy"
        ) from error


def _remote_file(entry: dict) -> RemoteFile:
    sha256 = (entry.get("lfs") or {}).get("sha256")
    return RemoteFile(entry["rfilename"], entry.get("size"), sha256, entry.get("blobId"))


def _download_file(repo: str, revision: str, file: RemoteFile, folder: Path) -> None:
    target = folder / file.name
    if file.is_at(target):
        return
    make_way(target)
    url = f"{constants.ENDPOINT}/{repo}/resolve/{revision}/{file.name}"
    download(url, target, sha256=file.sha256, headers=build_hf_headers())
    if not file.is_at(target):
        target.unlink()
        raise UserError(f"{url} does not match the hub's own checksum; it was deleted: {AGAIN}")


def _was_converted(path: Path, revision: str) -> bool:
    """Returns whether an earlier run converted the weights at `path` from this revision."""
    record = read_record(path.parent)
    known = record.get("sha256", {}).get(path.name)
    return record.get("revision") == revision and path.is_file() and sha256_of(path) == known
