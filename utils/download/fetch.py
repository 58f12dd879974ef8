"""Downloads a dataset archive and unpacks it into its folder; a folder that already has images is not changed.

uv run python -m utils.download cuhk_pedes --from https://example.org/CUHK-PEDES.zip --sha256 HEX
uv run --extra drive python -m utils.download vn3k_vi --from gdrive:FILE_ID
uv run python -m utils.download rstpreid --from ~/RSTPReid.tar.gz
"""

import argparse
import hashlib
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from utils.continuing.composed import described
from utils.download.archives import IMAGE_FOLDER, install
from utils.download.download import download, reason, sha256_of, writing
from utils.errors import UserError


def fetch_archive(source: str, downloads: Path, *, prefix: str, sha256: str | None = None) -> Path:
    """Returns the archive that `source` names: a local file, or a file that is downloaded to `downloads`.

    If an earlier run has downloaded the same source, its file is used.

    Args:
        source: an http(s) address, ``gdrive:FILE_ID``, or a path.
        prefix: prefix of the file name under `downloads`.
        sha256: the expected SHA-256 of the archive, in lower case.
    """
    if source.startswith(("http://", "https://")):
        key = hashlib.sha256(source.encode()).hexdigest()[:8]
        archive = downloads / f"{prefix}-{key}-{Path(unquote(urlsplit(source).path)).name or 'archive'}"
        if not archive.is_file():
            return download(source, archive, sha256=sha256)
    elif source.startswith("gdrive:"):
        archive = downloads / f"{prefix}-{source.replace(':', '-')}"
        if not archive.is_file():
            _download_from_drive(source.removeprefix("gdrive:"), archive)
    else:
        archive = Path(source).expanduser()
        if not archive.is_file():
            raise UserError(f"there is no file {source}; --from takes an http(s) address, gdrive:FILE_ID or an archive")
    if sha256 is not None and (found := sha256_of(archive)) != sha256:
        raise UserError(f"{archive} has SHA-256 {found}, expected {sha256}; check the number, or delete the file")
    return archive


def _download_from_drive(file_id: str, archive: Path) -> None:
    if not re.fullmatch(r"[\w-]+", file_id):
        raise UserError(
            f"gdrive:{file_id} is not a Google Drive id; copy what stands between /d/ and /view in the link"
        )
    try:
        import gdown
    except ImportError as error:
        raise UserError("Google Drive needs the extra 'drive': run it as uv run --extra drive ...") from error
    with writing(archive):
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            gdown.download(id=file_id, output=str(archive), resume=True)
        except (gdown.exceptions.FileURLRetrievalError, requests.RequestException) as error:
            raise UserError(
                f"Google Drive does not hand out {file_id} ({reason(error)}); open the link in a browser, "
                "download the file and pass its path to --from"
            ) from error


def main() -> None:
    """Parses the command line, downloads and unpacks the archive."""
    parser = argparse.ArgumentParser(prog="python -m utils.download", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", help="its name, such as cuhk_pedes: its YAML names its folder")
    parser.add_argument("--from", dest="source", required=True, help="http(s) address, gdrive:FILE_ID, or a file")
    parser.add_argument("--sha256", type=_sha256, help="expected SHA-256 of the archive")
    parser.add_argument("--root", type=Path, default=Path(), help="where the datasets lie (default: here)")
    args = parser.parse_args()
    description = described("dataset", args.dataset).description
    folder = description.folder
    if description.images != IMAGE_FOLDER:
        raise UserError(f"{args.dataset} cannot be unpacked here: {description.source}, then python -m data.doctor")
    target: Path = args.root / folder
    if (target / IMAGE_FOLDER).is_dir():
        print(f"{target} holds images already and is kept; move it away to fetch it again")
        return
    archive = fetch_archive(args.source, args.root / "downloads", prefix=folder, sha256=args.sha256)
    install(archive, target)
    print(f"{target} is in place, unpacked from {archive}")


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError("expected the 64 hexadecimal digits of a SHA-256")
    return text.lower()
