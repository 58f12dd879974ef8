"""The export of selected images: a ZIP archive of the files, or a CSV of their paths."""

import csv
import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import IO, Final

from search.files import open_image
from search.tables import Hit, ImageRow

MOST: Final = 1_000  # images of an export
LEFT_OUT: Final = "left-out.txt"
IN_MEMORY: Final = 2**25  # bytes of an archive; a larger one goes to a file
CHUNK: Final = 2**20


def shown_name(row: ImageRow | Hit) -> str:
    """Returns the path of an image below the folder that holds its indexed folder: ``PHOTOS/camera1/7.jpg``."""
    return str(PurePosixPath(row.path).relative_to(PurePosixPath(row.folder).parent))


def as_csv(rows: Sequence[ImageRow]) -> bytes:
    """Returns a CSV in UTF-8 with the paths of images."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["path"])
    writer.writerows([row.path] for row in rows)
    return file.getvalue().encode()


def as_zip(rows: Sequence[ImageRow]) -> IO[bytes]:
    """Returns the open file, at its start, of an archive of images. `LEFT_OUT` in it lists files that are gone."""
    archive: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the response closes it
    names: set[str] = set()
    left_out: list[str] = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for row in rows:
            name = shown_name(row)
            name = name if name not in names else row.path.lstrip("/")  # two folders may have the same name
            names.add(name)
            try:
                with open_image(row.path) as file, zipped.open(name, "w", force_zip64=True) as packed:
                    while chunk := file.read(CHUNK):
                        packed.write(chunk)
            except OSError as error:
                left_out.append(f"{row.path}: {error.strerror or 'reached by a link'}")
        if left_out:
            zipped.writestr(LEFT_OUT, "\n".join([*left_out, ""]))
    archive.seek(0)
    return archive
