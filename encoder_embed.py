"""Embeddings of a folder of images or of a file of captions, as .npy or Parquet."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import normalize

from data.text.caption_files import read_captions
from encoder_export import encoder_of
from encoder_loading import LoadedEncoder
from utils.checkpoints.disk import whole_file, why_not_written
from utils.errors import UserError
from utils.images import BadImageError, read_bytes
from utils.training.progress import Bar, Clock, clock_time
from utils.training.threads import in_threads

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".jp2", ".avif")
OUTPUTS: Final = (".npy", ".parquet")


def embed_files(cfg: DictConfig, path: Path | None) -> dict[str, float]:
    """Writes the embeddings of the images or captions that `cfg.embed` names, in order, with their paths or texts.

    Rows have unit norm and are fp32. An image that cannot be read is left out, and a file beside the output says why.

    Args:
        path: the checkpoint that encodes; None: the backbone as it is.

    Returns:
        The number of rows as ``embed/rows``, and of images that could not be read as ``embed/unreadable``.

    Raises:
        UserError: options are absent, or nothing can be read or written.
    """
    options = cfg.embed
    if (options.images is None) == (options.captions is None) or options.out is None:
        raise UserError("task=embed needs embed.out=FILE.npy, and embed.images=FOLDER or embed.captions=FILE")
    out = Path(options.out)
    if out.suffix not in OUTPUTS:
        raise UserError(f"embed.out: {out} given, expected a file that ends in {' or '.join(OUTPUTS)}")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(
            f"embed.out: {out} needs the package pyarrow, which is not installed; install it with 'uv sync --extra "
            "export', or give a file that ends in .npy"
        )
    images = None if options.images is None else find_images(Path(options.images))
    captions = None if options.captions is None else read_captions(Path(options.captions), options.column)
    loaded = encoder_of(cfg, path)
    print(f"embeds  with {loaded}", flush=True)
    clock, unreadable = Clock(), list[str]()
    batch = cfg.dataset.eval_batch_size
    if captions is not None:
        column, names, rows = "caption", captions, _embed_captions(loaded, captions, batch)
    else:
        folder = Path(options.images)
        column = "path"
        names, rows = _embed_images(loaded, folder, images or [], batch, unreadable)
    try:
        written = _write(out, column, names, rows)
        if unreadable:
            written.append(out.with_suffix(".unreadable.txt"))
            _write_lines(written[-1], unreadable)
            print(f"note    {len(unreadable):,} of {len(images or ()):,} images cannot be read; see {written[-1]}")
    except OSError as error:
        why = why_not_written(error, out.parent)
        raise UserError(f"embed.out: {out} cannot be written ({why}); make room or name another place") from error
    print(
        f"saved   {', '.join(map(str, written))}: {len(rows):,} rows of width {rows.shape[1]:,}, "
        f"{clock_time(clock.seconds)}",
        flush=True,
    )
    return {"embed/rows": len(rows), "embed/unreadable": len(unreadable)}


def find_images(folder: Path) -> list[Path]:
    """Returns the image files in `folder` and its subfolders, relative to it, sorted.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"embed.images: {folder} is no folder; give the folder of the images")
    found = sorted(
        file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not found:
        raise UserError(f"embed.images: {folder} has no image, that is no file that ends in {', '.join(SUFFIXES)}")
    return found


def _embed_images(
    loaded: LoadedEncoder, folder: Path, paths: Sequence[Path], batch: int, unreadable: list[str]
) -> tuple[list[str], Any]:
    """Returns the paths of the images that can be read, and their embeddings ``(N, E)``; fills `unreadable`."""

    def read(path: Path) -> Tensor | BadImageError:
        try:
            return loaded.read(read_bytes(folder / path))
        except BadImageError as error:
            return error

    names: list[str] = []
    rows: list[Tensor] = []
    pixels: list[Tensor] = []
    for path, one in zip(paths, in_threads(read, paths, total=len(paths), title="encoding", unit="img"), strict=True):
        if isinstance(one, BadImageError):
            unreadable.append(f"{path.as_posix()}\t{one}")
            continue
        names.append(path.as_posix())
        pixels.append(one)
        if len(pixels) == batch:
            rows.append(loaded.images(torch.stack(pixels)))
            pixels.clear()
    if pixels:
        rows.append(loaded.images(torch.stack(pixels)))
    if not rows:
        raise UserError(f"embed.images: none of the {len(paths):,} images in {folder} can be read ({unreadable[0]})")
    return names, _unit(rows)


def _embed_captions(loaded: LoadedEncoder, captions: Sequence[str], batch: int) -> Any:
    """Returns the embeddings ``(N, E)`` of captions."""
    starts = Bar(range(0, len(captions), batch), desc="encoding", unit="batch", leave=False)
    return _unit([loaded.texts(captions[start : start + batch]) for start in starts])


def _unit(rows: Sequence[Tensor]) -> Any:
    """Returns rows of unit norm in fp32. The K unit-norm blocks of a head count the same, so rankings stay."""
    return normalize(torch.cat(list(rows)).float(), dim=1).numpy()


def _write(out: Path, column: str, names: Sequence[str], rows: Any) -> list[Path]:
    """Writes rows with their names, and returns the files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        beside = out.with_suffix(f".{column}s.txt")
        with whole_file(out) as file:
            np.save(file, rows)
        _write_lines(beside, names)
        return [out, beside]
    import pyarrow
    from pyarrow import parquet

    embeddings = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    with whole_file(out) as file:
        parquet.write_table(pyarrow.table({column: list(map(_as_text, names)), "embedding": embeddings}), file)
    return [out]


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as file:
        for line in lines:
            file.write(line.replace("\n", " ").encode(errors="surrogateescape") + b"\n")


def _as_text(name: str) -> str:
    """Returns a path as text that is valid in UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
